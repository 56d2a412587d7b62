package gateway

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"sallyport/configs"
	"sallyport/roles/gateway/demo"
)

// entered runs a gateway with a unix socket and a loopback entrance, whose calls
// come back to its own demo service.
func entered(t *testing.T, core *fakeCore) (g *running, socket, loopback string) {
	t.Helper()
	core.part = demoPart()
	socket, loopback = filepath.Join(shortDir(t), "call.sock"), freeAddress(t)
	listen := func(text string) configs.Listen {
		l, err := configs.ParseListen(text)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	g = runGateway(t, configs.Gateway{Join: core.token(), Demo: true, DrainTimeout: 3 * time.Second, Listen: []configs.Listen{listen("unix://" + socket), listen("batch=" + loopback)}})
	g.until(true)
	core.announcement("the demo", serves(echoName))
	return g, socket, loopback
}

func appAt(t *testing.T, target string) *grpc.ClientConn {
	t.Helper()
	cc, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	return cc
}

// say calls until there is a call link.
func say(t *testing.T, cc *grpc.ClientConn, pairs ...string) error {
	t.Helper()
	for limit := time.Now().Add(15 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		_, err := demo.NewEchoClient(cc).Say(metadata.AppendToOutgoingContext(t.Context(), pairs...), &demo.SayRequest{Text: "x"})
		if status.Code(err) != codes.Unavailable || time.Now().After(limit) {
			return err
		}
	}
}

// TestEntrance: what core is told of an app's call is the gateway's word alone;
// what an app sends that is none of gRPC, or too much of it, harms nobody else.
func TestEntrance(t *testing.T) {
	t.Parallel()
	core := newFakeCore(t)
	g, socket, loopback := entered(t, core)
	cc := appAt(t, "unix://"+socket)
	told := func(name string) (values []string) {
		for _, f := range *core.brought.Load() {
			if f.Name == name {
				values = append(values, f.Value)
			}
		}
		return values
	}
	forged := []string{"sallyport-listener", "root", "sallyport-client-cert", "spiffe://test.internal/client/root", "sallyport-caller", "me", "sallyport_source", "192.0.2.1", "x-forwarded-for", "192.0.2.1", "x-own", "stays"}
	if err := say(t, cc, forged...); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"sallyport-listener": "", "x-own": "stays"} {
		if got := told(name); len(got) != 1 || got[0] != want {
			t.Errorf("core was told %s: %q, want %q", name, got, want)
		}
	}
	for _, name := range []string{"sallyport-client-cert", "sallyport-caller", "sallyport-source", "sallyport_source", "x-forwarded-for"} {
		if got := told(name); len(got) != 0 {
			t.Errorf("core was told %s: %q", name, got)
		}
	}
	if err := say(t, appAt(t, loopback), forged...); err != nil || len(told("sallyport-listener")) != 1 || told("sallyport-listener")[0] != "batch" {
		t.Errorf("by the labelled entrance: %v, core was told %q", err, told("sallyport-listener"))
	}
	// Who brings credentials is not the gateway, whatever they are worth.
	if err := say(t, cc, "authorization", "Bearer x"); err != nil || told("sallyport-listener") != nil || len(told("authorization")) != 1 {
		t.Errorf("with a token: %v, core was told %q and %q", err, told("sallyport-listener"), told("authorization"))
	}
	if err := say(t, cc, "authorization", "a", "authorization", "b"); err == nil {
		t.Error("two tokens were passed on")
	}
	if err := say(t, cc, "authorization", ""); status.Code(err) != codes.Unauthenticated {
		t.Errorf("an empty token: %v", err)
	}

	chat, err := demo.NewEchoClient(cc).Chat(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	talk := func(when string) {
		t.Helper()
		if err := chat.Send(&demo.SayRequest{Text: when}); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		if _, err := chat.Recv(); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
	}
	talk("a stream")
	for what, raw := range map[string]string{"nonsense": "hello\r\n\r\n", "HTTP/1.1": "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "half a preface": "PRI * HTT", "a preface and no frame": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nxxxxxxxxxxxxxxxxxxxxxxxxx"} {
		nc, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		if _, err := io.WriteString(nc, raw); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if nc, err := tls.Dial("tcp", loopback, &tls.Config{InsecureSkipVerify: true}); err == nil {
		nc.Close()
		t.Error("a plaintext entrance spoke TLS")
	}
	reset(t, socket)
	talk("after that")

	// The drain lets open calls go on, for its time.
	ended := make(chan error, 1)
	go func() { ended <- g.stop() }()
	g.until(false)
	for limit := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		nc, err := net.Dial("unix", socket)
		if err != nil {
			break
		}
		nc.Close()
		if time.Now().After(limit) {
			t.Fatal("it takes new connections in the drain")
		}
	}
	talk("in the drain")
	if _, err := chat.Recv(); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "gateway attic") {
		t.Errorf("at its end: %v", err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// reset opens and resets streams until the connection is ended.
func reset(t *testing.T, socket string) {
	t.Helper()
	nc, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(nc, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	framer := http2.NewFramer(nc, nc)
	framer.WriteSettings()
	var block strings.Builder
	enc := hpack.NewEncoder(&block)
	for _, f := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":path", "/" + echoName + "/Chat"}, {":authority", "x"}, {"content-type", "application/grpc"}, {"te", "trailers"}} {
		enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	gone := make(chan error, 1)
	go func() {
		reader := http2.NewFramer(nil, nc)
		for {
			frame, err := reader.ReadFrame()
			if g, ok := frame.(*http2.GoAwayFrame); ok && g.ErrCode == http2.ErrCodeEnhanceYourCalm {
				gone <- nil
				return
			}
			if err != nil {
				gone <- err
				return
			}
		}
	}()
	for id := uint32(1); ; id += 2 {
		err := framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: []byte(block.String()), EndHeaders: true})
		if err == nil {
			err = framer.WriteRSTStream(id, http2.ErrCodeCancel)
		}
		select {
		case err := <-gone:
			if err != nil {
				t.Errorf("rapid reset ended with %v", err)
			}
			return
		default:
		}
		if err != nil && id > 1<<20 {
			t.Fatal(errors.New("a million streams were opened and reset"))
		}
	}
}

// TestAppsOutliveCertificates: call links are replaced before the gateway's
// certificates of eleven seconds end. No call of an app is lost, and an open
// stream goes on.
func TestAppsOutliveCertificates(t *testing.T) {
	t.Parallel()
	core := newFakeCore(t)
	core.lifetime = 11 * time.Second
	_, socket, _ := entered(t, core)
	cc := appAt(t, "unix://"+socket)
	if err := say(t, cc); err != nil {
		t.Fatal(err)
	}
	client := demo.NewEchoClient(cc)
	chat, err := client.Chat(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	calls := 0
	for began := time.Now(); core.callLinks.Load() < 3 || time.Since(began) < 13*time.Second; calls++ {
		if time.Since(began) > 40*time.Second {
			t.Fatalf("%d call links in %s", core.callLinks.Load(), time.Since(began))
		}
		if _, err := client.Say(t.Context(), &demo.SayRequest{Text: "x"}); err != nil {
			t.Fatalf("call %d, after %d links: %v", calls, core.callLinks.Load(), err)
		}
		if calls%50 == 0 {
			if err := chat.Send(&demo.SayRequest{Text: "still here"}); err != nil {
				t.Fatal(err)
			}
			if _, err := chat.Recv(); err != nil {
				t.Fatalf("the open stream, after %d links: %v", core.callLinks.Load(), err)
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
}
