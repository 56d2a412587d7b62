package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"
)

func (d *deployment) dial() *grpc.ClientConn {
	d.t.Helper()
	pem, err := os.ReadFile(d.caFile)
	if err != nil {
		d.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	cc, err := grpc.NewClient(d.public, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: pool, ServerName: "localhost"})))
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { cc.Close() })
	return cc
}

func TestKillEachUnderLoad(t *testing.T) {
	d := deploy(t, interopPolicy)
	d.addGateway("office", nil, "SALLYPORT_UPSTREAM=interop="+startInteropServer(t))
	d.waitRouted("grpc.testing.TestService", "office")
	client := testgrpc.NewTestServiceClient(d.dial())

	for _, victim := range []struct {
		p    *process
		hops []string // one of them must be named; none: the client's own words
	}{
		{d.gateways["office"], []string{"gateway office"}},
		{d.core, []string{"core"}},
		{d.proxy, nil},
	} {
		t.Run(victim.p.name, func(t *testing.T) {
			streams := openStreams(t, client, 20)
			l := startLoad(client, 8)
			eventually(t, 10*time.Second, "calls are running", func() error {
				if l.ok.Load() < 100 {
					return fmt.Errorf("%d calls", l.ok.Load())
				}
				return nil
			})
			victim.p.kill()
			for i, s := range streams {
				_, err := s.Recv()
				if status.Code(err) != codes.Unavailable {
					t.Fatalf("stream %d: %v", i, err)
				}
				named := victim.hops == nil
				for _, h := range victim.hops {
					named = named || strings.Contains(status.Convert(err).Message(), h)
				}
				if !named {
					t.Fatalf("stream %d: the message names no hop of %v: %v", i, victim.hops, err)
				}
			}
			victim.p.start(t)
			began := time.Now()
			eventually(t, 10*time.Second, "calls succeed again", func() error {
				ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
				defer cancel()
				_, err := client.EmptyCall(ctx, &testgrpc.Empty{})
				return err
			})
			t.Logf("%s: calls succeed %v after its restart", victim.p.name, time.Since(began).Round(time.Millisecond))
			before := l.ok.Load()
			eventually(t, 10*time.Second, "the load goes on", func() error {
				if l.ok.Load() < before+100 {
					return errors.New("too few calls")
				}
				return nil
			})
			l.stop()
			if len(l.wrong) > 0 {
				t.Errorf("%d calls with another status, first: %s", len(l.wrong), l.wrong[0])
			}
			if l.slowest > 15*time.Second {
				t.Errorf("a call hung for %v", l.slowest)
			}
			t.Logf("%d ok, %d unavailable, slowest %v", l.ok.Load(), l.unavailable.Load(), l.slowest.Round(time.Millisecond))
		})
	}
	eventually(t, 10*time.Second, "no call is left in flight", func() error {
		out := run(t, d.coreEnv, "status", "--json")
		if strings.Contains(out, `"calls_in_flight": 0`) || !strings.Contains(out, `"calls_in_flight"`) {
			return nil
		}
		return errors.New(out)
	})
}

// TestStopDrains: SIGTERM lets a running call finish and then ends the process.
func TestStopDrains(t *testing.T) {
	t.Parallel()
	for _, role := range []string{"proxy", "core", "office"} {
		t.Run(role, func(t *testing.T) {
			d := deploy(t, interopPolicy)
			d.addGateway("office", nil, "SALLYPORT_UPSTREAM=interop="+startInteropServer(t))
			d.waitRouted("grpc.testing.TestService", "office")
			client := testgrpc.NewTestServiceClient(d.dial())
			s := openStreams(t, client, 1)[0]
			p := map[string]*process{"proxy": d.proxy, "core": d.core, "office": d.gateways["office"]}[role]
			stopped := make(chan struct{})
			go func() { defer close(stopped); p.stop(t, 20*time.Second) }()
			eventually(t, 10*time.Second, "it takes no new calls", func() error {
				ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
				defer cancel()
				if _, err := client.EmptyCall(ctx, &testgrpc.Empty{}); status.Code(err) != codes.Unavailable {
					return fmt.Errorf("got %v", err)
				}
				return nil
			})
			if err := s.Send(&testgrpc.StreamingOutputCallRequest{ResponseParameters: []*testgrpc.ResponseParameters{{Size: 1000}}}); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Recv(); err != nil {
				t.Fatalf("the open call was cut: %v", err)
			}
			s.CloseSend()
			for {
				if _, err := s.Recv(); err != nil {
					if err.Error() != "EOF" {
						t.Fatalf("the open call ended with %v", err)
					}
					break
				}
			}
			<-stopped
			if !p.state.Success() {
				t.Errorf("exit status: %v", p.state)
			}
		})
	}
}
