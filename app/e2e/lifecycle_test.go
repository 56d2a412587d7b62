package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"
)

// certificates counts what core has issued so far, by kind.
func (d *deployment) certificates() map[string]int {
	d.t.Helper()
	var list struct {
		Certificates []struct{ Kind string }
	}
	out := run(d.t, d.coreEnv, "cert", "ls", "--all", "--json")
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		d.t.Fatalf("%v: %s", err, out)
	}
	n := map[string]int{}
	for _, c := range list.Certificates {
		n[c.Kind]++
	}
	return n
}

// TestShortLifetimes: with certificates of one minute every component renews,
// again and again, and no call notices. SALLYPORT_E2E_LONG=10m makes the run
// as long.
func TestShortLifetimes(t *testing.T) {
	length, messages := 85*time.Second, 200 // of one stream of the server: ten seconds
	if long := os.Getenv("SALLYPORT_E2E_LONG"); long != "" {
		var err error
		if length, err = time.ParseDuration(long); err != nil {
			t.Fatal(err)
		}
		messages = 1500 // more than a minute: each stream sees renewals
	}
	notWithShort(t)
	t.Parallel()
	d := deployCore(t, interopPolicy, "--cert-lifetime", "1m")
	d.addGateway("office", nil, "SALLYPORT_UPSTREAM=interop="+startInteropServer(t))
	d.waitRouted(testService, "office")
	client := testgrpc.NewTestServiceClient(d.dial())
	streams := openStreams(t, client, 10) // each as long as the test
	before := d.certificates()
	calls := startLoad(paced{client}, 8)
	listeners := startLoadOf(5, func(ctx context.Context) error { return listen(ctx, client, messages) })
	exchanges := 0
	for end := time.Now().Add(length); time.Now().Before(end); time.Sleep(500 * time.Millisecond) {
		for i, s := range streams {
			if err := exchange(s); err != nil {
				t.Errorf("stream %d after %d exchanges of all: %v", i, exchanges, err)
				streams[i] = openStreams(t, client, 1)[0]
			}
			exchanges++
		}
	}
	calls.stop()
	after := d.certificates()
	listeners.stop()
	renewals := 0
	for _, kind := range []string{"core", "proxy", "gateway"} {
		n := after[kind] - before[kind]
		t.Logf("%s: %d renewals", kind, n)
		if least := int(length / (50 * time.Second)); n < least {
			t.Errorf("%s renewed %d times, at least %d were due", kind, n, least)
		}
		renewals += n
	}
	t.Logf("%d renewals, %d exchanges on %d streams", renewals, exchanges, len(streams))
	calls.wantAll(t, "calls")
	listeners.wantAll(t, "streams of the server")
}

// TestRevocationCuts: a removed gateway loses its open calls and its way back
// within a second.
func TestRevocationCuts(t *testing.T) {
	d := deploy(t, interopPolicy)
	d.addGateway("office", nil, "SALLYPORT_UPSTREAM=interop="+startInteropServer(t))
	d.waitRouted(testService, "office")
	client := testgrpc.NewTestServiceClient(d.dial())
	streams := openStreams(t, client, 100)
	began := time.Now()
	run(t, d.coreEnv, "gateway", "rm", "office")
	for i, s := range streams {
		_, err := s.Recv()
		if status.Code(err) != codes.Unavailable {
			t.Fatalf("stream %d: %v", i, err)
		}
	}
	t.Logf("100 streams were cut %v after the verb was started", time.Since(began))
	waitLog(t, d.gateways["office"], "removed", "gateway add office")
	waitLog(t, d.gateways["office"], "closed to the address")

	// The name may be used again, by its next incarnation.
	d.gateways["office"].kill()
	os.RemoveAll(filepath.Join(d.dir, "office"))
	d.addGateway("office", nil, "SALLYPORT_UPSTREAM=interop="+startInteropServer(t))
	d.waitRouted(testService, "office")
}

// TestBackupKeepsRevocations: back up, revoke, restore on the same host: what
// was revoked stays so, and everybody else comes back by himself.
func TestBackupKeepsRevocations(t *testing.T) {
	notWithShort(t)
	t.Parallel()
	d := deploy(t, interopPolicy)
	d.addGateway("kept", nil, "SALLYPORT_UPSTREAM=interop="+startInteropServer(t))
	d.addGateway("gone", []string{"--serve", "acme.*"})
	d.waitRouted(testService, "kept")
	pass := filepath.Join(d.dir, "passphrase")
	if err := os.WriteFile(pass, []byte("correct horse battery staple\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(d.dir, "core.backup")
	run(t, d.coreEnv, "backup", file, "--passphrase-file", pass)
	run(t, d.coreEnv, "gateway", "rm", "gone")
	waitLog(t, d.gateways["gone"], "revoked")

	restored := func(where string) {
		t.Helper()
		d.core.start(t)
		client := testgrpc.NewTestServiceClient(d.dial())
		eventually(t, 30*time.Second, "calls go through the restored core ("+where+")", func() error {
			_, err := client.EmptyCall(t.Context(), &testgrpc.Empty{})
			return err
		})
		out := run(t, d.coreEnv, "gateway", "ls")
		for line := range strings.SplitSeq(out, "\n") {
			if strings.HasPrefix(line, "gone") && strings.Contains(line, "connected") {
				t.Errorf("%s: the removed gateway is back:\n%s", where, out)
			}
		}
	}
	d.core.stop(t, 40*time.Second)
	run(t, d.coreEnv, "restore", file, "--passphrase-file", pass, "--force")
	restored("same host")

	// The host is lost: a fresh directory, the file and its passphrase.
	d.core.kill()
	fresh := filepath.Join(d.dir, "fresh")
	d.coreEnv = []string{"SALLYPORT_DATA_DIR=" + fresh}
	d.core.env = baseEnv(d.coreEnv...)
	run(t, d.coreEnv, "restore", file, "--passphrase-file", pass)
	restored("fresh host")
}

// TestRotationUnderLoad: the CA is replaced from publication to retirement
// while calls run.
func TestRotationUnderLoad(t *testing.T) {
	notWithShort(t)
	t.Parallel()
	d := deployCore(t, interopPolicy, "--cert-lifetime", "5m") // components spread their renewals over a part of it
	d.addGateway("office", nil, "SALLYPORT_UPSTREAM=interop="+startInteropServer(t))
	d.waitRouted(testService, "office")
	root := run(t, d.coreEnv, "ca", "export")
	client := testgrpc.NewTestServiceClient(d.dial())
	l := startLoad(paced{client}, 8)
	run(t, d.coreEnv, "ca", "rotate")
	eventually(t, 4*time.Minute, "the rotation is finished", func() error {
		out := run(t, d.coreEnv, "ca", "rotate", "--status", "--json")
		if !strings.Contains(out, `"steady"`) {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	l.stop()
	l.wantAll(t, "calls")
	if now := run(t, d.coreEnv, "ca", "export"); now == root {
		t.Error("the root is the same as before")
	}
	d.addGateway("late", []string{"--serve", "acme.*"})
}
