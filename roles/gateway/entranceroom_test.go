package gateway

import (
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sallyport/configs"
	"sallyport/roles/control"
)

// TestEntrancesTakeNothingFromEachOther: an app that opens all the connections it
// can at one entrance keeps nobody out of another.
func TestEntrancesTakeNothingFromEachOther(t *testing.T) {
	t.Parallel()
	core := newFakeCore(t)
	_, socket, loopback := entered(t, core)
	if err := say(t, appAt(t, "unix://"+socket)); err != nil {
		t.Fatal(err)
	}
	var greedy sync.WaitGroup
	defer greedy.Wait()
	refused := make(chan bool, maxApps)
	for n := 0; ; n++ {
		if n > maxApps/2+100 {
			t.Fatal("one entrance takes more than its part of the connections")
		}
		nc, err := net.Dial("tcp", loopback)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		greedy.Go(func() {
			if _, err := nc.Read(make([]byte, 1)); err == io.EOF {
				refused <- true // long before the time that it has to speak in
			}
		})
		if n < maxApps/2 {
			continue
		}
		select {
		case <-refused:
		case <-time.After(20 * time.Millisecond):
			continue
		}
		break
	}
	if err := say(t, appAt(t, "unix://"+socket)); err != nil {
		t.Errorf("at the other entrance: %v", err)
	}
}

// TestRoom: at an entrance for strangers, one source leaves half to the others,
// in connections and in calls; what ends makes room.
func TestRoom(t *testing.T) {
	t.Parallel()
	r := newRoom(2, true)
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	n := 0
	var s *appSource
	for next := r.come(a); next != nil; next = r.come(a) {
		s = next
		n++
	}
	if n != maxApps/4 {
		t.Errorf("one source has %d connections", n)
	}
	calls := 0
	for r.begin(s) {
		calls++
	}
	if calls != maxAppCalls/4 {
		t.Errorf("one source has %d calls", calls)
	}
	other := r.come(b)
	if other == nil || !r.begin(other) || r.come(netip.MustParseAddr("2001:db8::2")) != other {
		t.Error("another source has no place")
	}
	for range n {
		r.leave(s)
	}
	for range calls {
		r.end(s)
	}
	if r.come(a) == nil || len(r.sources) != 2 || r.all.calls != 1 {
		t.Errorf("when all has ended: %d sources, %+v", len(r.sources), r.all)
	}
}

// TestPlaintextStaysOnThisHost: a name that a resolver leads elsewhere opens no
// plaintext entrance to other hosts.
func TestPlaintextStaysOnThisHost(t *testing.T) {
	t.Parallel()
	for target, ok := range map[string]bool{"127.0.0.1:0": true, "0.0.0.0:0": false} {
		g := &gateway{log: slog.New(slog.DiscardHandler), settings: configs.Gateway{Listen: []configs.Listen{{Address: configs.UpstreamAddress{Scheme: configs.SchemePlain, Target: target}}}}}
		e, err := g.openEntrances()
		if err == nil {
			e.close()
		}
		if (err == nil) != ok || err != nil && !strings.Contains(err.Error(), "write 127.0.0.1") {
			t.Errorf("%s: %v", target, err)
		}
	}
}

// TestLongSocketPath: the longest path that a socket can have is one that an
// entrance can have.
func TestLongSocketPath(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	path := dir + "/" + strings.Repeat("d", 104-len(dir))
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	path += "/s"
	if len(path) != 107 {
		t.Fatalf("%d bytes", len(path))
	}
	l, err := listenUnix(path, "")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	nc, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	nc.Close()
}

// TestCallsInCircles: a call whose upstream is an entrance again comes to an end
// soon, and in words.
func TestCallsInCircles(t *testing.T) {
	t.Parallel()
	core := newFakeCore(t)
	core.part = demoPart()
	socket, other := filepath.Join(shortDir(t), "call.sock"), freeAddress(t)
	g := runGateway(t, configs.Gateway{Join: core.token(), Listen: []configs.Listen{
		{Address: configs.UpstreamAddress{Scheme: configs.SchemeUnix, Target: socket}}, {Address: configs.UpstreamAddress{Scheme: configs.SchemePlain, Target: other}}},
		Upstreams: []configs.Upstream{plain("circle", other, echoName)}})
	g.until(true)
	core.announcement("the circle", serves(echoName))
	err := say(t, appAt(t, "unix://"+socket))
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "goes in circles") {
		t.Errorf("it ended with %v", err)
	}
}

// TestSocketThatOthersCanReplace: a directory that is everybody's is none for a
// socket, unless what is in it stays its owner's.
func TestSocketThatOthersCanReplace(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	for mode, ok := range map[os.FileMode]bool{0o777: false, 0o777 | os.ModeSticky: true, 0o755: true} {
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		l, err := listenUnix(filepath.Join(dir, "s"), "")
		if err == nil {
			l.Close()
		}
		if (err == nil) != ok || err != nil && !strings.Contains(err.Error(), "chmod o-w") {
			t.Errorf("in a directory of mode %v: %v", mode, err)
		}
	}
}

// TestDeniedHere: a call that the entrance itself refuses is reported to core with
// the gateway, the entrance and the reason.
func TestDeniedHere(t *testing.T) {
	t.Parallel()
	core := newFakeCore(t)
	core.denied = make(chan *control.DenialReport, 100)
	_, _, loopback := entered(t, core)
	if err := say(t, appAt(t, loopback), "authorization", ""); status.Code(err) != codes.Unauthenticated {
		t.Fatal(err)
	}
	for limit := time.After(20 * time.Second); ; {
		select {
		case r := <-core.denied:
			for _, d := range r.GetDenials() {
				if d.GetCaller() != "gateway attic batch="+loopback || d.GetReason() != "empty_authorization" || d.GetCount() != 1 {
					t.Errorf("core is told %v", d)
				}
			}
			return
		case <-limit:
			t.Fatal("core is told nothing")
		}
	}
}
