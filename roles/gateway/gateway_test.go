package gateway

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	"sallyport/configs"
	"sallyport/roles/control"
	"sallyport/roles/gateway/demo"
	"sallyport/roles/relay"
)

// demoPart is what core says when everything of Echo is allowed.
func demoPart() *control.GatewayPart {
	return &control.GatewayPart{
		Services: []*control.ServiceVerdict{{Service: echoName, Routed: true}},
		Methods:  []*control.MethodRule{{Match: "/" + echoName + "/*", Allow: true}},
	}
}

func serves(service string) func(*control.Announcement) bool {
	return func(a *control.Announcement) bool {
		for _, s := range a.Services {
			if s.Name == service && s.Serving {
				return true
			}
		}
		return false
	}
}

func TestFromTokenToCall(t *testing.T) {
	core := newFakeCore(t)
	core.part = demoPart()
	core.write(relay.Field{Name: relay.HeaderCaller, Value: "apikey:ci"}, relay.Field{Name: relay.HeaderRequestID, Value: "0123456789abcdef"})
	g := runGateway(t, configs.Gateway{Join: core.token(), Demo: true})
	g.until(true)
	a := core.announcement("the demo", serves(echoName))
	if len(a.Services) != 1 || len(a.Descriptors) == 0 || a.Upstreams[0].Name != "demo" || !a.Upstreams[0].Up {
		t.Errorf("announced %v", a)
	}

	client := demo.NewEchoClient(core.client())
	out, err := client.Say(t.Context(), &demo.SayRequest{Text: "hello"})
	if err != nil {
		t.Fatal(err)
	}
	if out.Text != "hello" || out.Caller != "apikey:ci" || out.Gateway != "attic" || out.RequestId != "0123456789abcdef" {
		t.Errorf("got %v", out)
	}
	chat, err := client.Chat(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"a", "b"} {
		if err := chat.Send(&demo.SayRequest{Text: text}); err != nil {
			t.Fatal(err)
		}
		if out, err := chat.Recv(); err != nil || out.Text != text {
			t.Fatalf("chat: %v, %v", out, err)
		}
	}
	if err := chat.CloseSend(); err != nil {
		t.Fatal(err)
	}
}

// recorder is an upstream that remembers the header of its last call.
type recorder struct {
	demo.UnimplementedEchoServer
	seen chan metadata.MD
}

func (r *recorder) Say(ctx context.Context, in *demo.SayRequest) (*demo.SayResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	r.seen <- md
	_ = grpc.SetHeader(ctx, metadata.Pairs("sallyport-caller", "forged", "x-answer", "1"))
	_ = grpc.SetTrailer(ctx, metadata.Pairs("sallyport-request-id", "forged", "x-trailer", "2"))
	return &demo.SayResponse{Text: in.Text}, nil
}

func TestHeadersAreWrittenAnew(t *testing.T) {
	up := &recorder{seen: make(chan metadata.MD, 1)}
	s := grpc.NewServer()
	demo.RegisterEchoServer(s, up)
	reflection.Register(s)
	address, _ := serveOn(t, s, "127.0.0.1:0")
	core := newFakeCore(t)
	part := demoPart()
	core.part = part
	sent := []relay.Field{
		{Name: "sallyport-caller", Value: "spiffe://test.internal/client/billing"}, {Name: "sallyport-permissions", Value: "user:read"},
		{Name: "sallyport-request-id", Value: "r1"}, {Name: "sallyport-client-cert", Value: "secret of the link"}, {Name: "sallyport-source", Value: "192.0.2.1"},
		{Name: "sallyport-new", Value: "unheard of"}, {Name: "authorization", Value: "Bearer token"}, {Name: "traceparent", Value: "00-a-b-01"}, {Name: "x-mine", Value: "kept"},
	}
	core.write(sent...)
	g := runGateway(t, configs.Gateway{Join: core.token(), Upstreams: []configs.Upstream{plain("orders", address)}})
	g.until(true)
	core.announcement("the upstream", serves(echoName))
	client := demo.NewEchoClient(core.client())

	var header, trailer metadata.MD
	say := func() metadata.MD {
		t.Helper()
		if _, err := client.Say(t.Context(), &demo.SayRequest{Text: "x"}, grpc.Header(&header), grpc.Trailer(&trailer)); err != nil {
			t.Fatal(err)
		}
		return <-up.seen
	}
	md := say()
	for name, want := range map[string]string{"sallyport-caller": "spiffe://test.internal/client/billing", "sallyport-permissions": "user:read", "sallyport-request-id": "r1",
		"traceparent": "00-a-b-01", "x-mine": "kept", ":authority": address, "sallyport-client-cert": "", "sallyport-source": "", "sallyport-new": "", "authorization": ""} {
		if got := strings.Join(md.Get(name), ","); got != want {
			t.Errorf("%s: %q reached the upstream, want %q", name, got, want)
		}
	}
	for name := range header {
		if strings.HasPrefix(name, "sallyport-") {
			t.Errorf("%s of the upstream came back", name)
		}
	}
	if header.Get("x-answer") == nil || trailer.Get("x-trailer") == nil || trailer.Get("sallyport-request-id") != nil {
		t.Errorf("header %v, trailer %v", header, trailer)
	}

	part = demoPart()
	part.Methods[0].ForwardAuthorization = true
	core.rule(part)
	if got := say().Get("authorization"); len(got) != 1 || got[0] != "Bearer token" {
		t.Errorf("authorization %q, want it where the method's rule passes it on", got)
	}
}

func TestTheThirdCheck(t *testing.T) {
	core := newFakeCore(t)
	part := demoPart()
	part.Methods = []*control.MethodRule{{Match: "/" + echoName + "/Say", Allow: true}, {Match: "/" + echoName + "/Count", Allow: false}, {Match: "/" + echoName + "/Chat", Allow: true}}
	core.part = part
	dir := t.TempDir()
	g := runGateway(t, configs.Gateway{DataDir: dir, Join: core.token(), Demo: true, Allow: []string{"/" + echoName + "/Say", "/" + echoName + "/Count", "/acme.orders.v1.Orders/*"}})
	g.until(true)
	core.announcement("the demo", serves(echoName))
	cc := core.client()
	call := func(method string) error {
		return cc.Invoke(t.Context(), method, &demo.SayRequest{}, &demo.SayResponse{})
	}

	if err := call("/" + echoName + "/Say"); err != nil {
		t.Errorf("Say: %v", err)
	}
	for method, want := range map[string]string{
		"/" + echoName + "/Count":      "does not allow this method", // a row that nobody's permission opens
		"/" + echoName + "/Gather":     "--allow",                    // not under the ceiling
		"/" + echoName + "/Chat":       "--allow",                    // core allows it, the gateway's owner does not
		"/acme.orders.v1.Orders/Get":   "may not serve this service", // under the ceiling, not ours
		"/grpc.health.v1.Health/Check": "--allow",                    // the upstream's own services are not reachable
	} {
		err := call(method)
		if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want PermissionDenied about %q", method, err, want)
		}
	}
	// Core takes the service away.
	core.rule(&control.GatewayPart{Services: []*control.ServiceVerdict{{Service: echoName, Reason: "another gateway has it"}}, Methods: part.Methods})
	if err := call("/" + echoName + "/Say"); status.Code(err) != codes.PermissionDenied {
		t.Errorf("withdrawn service: %v, want PermissionDenied", err)
	}
}

func TestDeadUpstreamHandsTheCallBack(t *testing.T) {
	s := echoServer(nil)
	address, stop := serveOn(t, s, "127.0.0.1:0")
	core := newFakeCore(t)
	core.part = demoPart()
	g := runGateway(t, configs.Gateway{Join: core.token(), Upstreams: []configs.Upstream{plain("orders", address)}})
	g.until(true)
	core.announcement("the upstream", serves(echoName))
	client := demo.NewEchoClient(core.client())
	if _, err := client.Say(t.Context(), &demo.SayRequest{}); status.Code(err) != codes.Unimplemented { // it answers
		t.Fatal(err)
	}
	stop()
	core.announcement("the upstream as down", func(a *control.Announcement) bool {
		return !a.Upstreams[0].Up && a.Upstreams[0].Error != "" && len(a.Services) == 1 && !a.Services[0].Serving
	})
	if _, err := client.Say(t.Context(), &demo.SayRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("%v, want Unavailable", err)
	}
	select {
	case <-core.retries:
	default:
		t.Error("core could not try elsewhere")
	}
	serveOn(t, echoServer(nil), address)
	core.announcement("the upstream as up again", serves(echoName))
	if _, err := client.Say(t.Context(), &demo.SayRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("%v: it is back and answers", err)
	}
}

func TestItComesBackByItself(t *testing.T) {
	core := newFakeCore(t)
	core.part = demoPart()
	dir := t.TempDir()
	g := runGateway(t, configs.Gateway{DataDir: dir, Join: core.token(), Demo: true})
	g.until(true)
	core.announcement("the demo", serves(echoName))

	// Core is restarted.
	core.stop()
	g.until(false)
	core.start()
	g.until(true)
	core.announcement("the demo", serves(echoName))
	if _, err := demo.NewEchoClient(core.client()).Say(t.Context(), &demo.SayRequest{}); err != nil {
		t.Error(err)
	}

	// The gateway is restarted, without a token, while core is away: it knows
	// who it is, where core is, and what it may serve.
	core.stop()
	if err := g.stop(); err != nil {
		t.Fatal(err)
	}
	core.announced = nil
	g = runGateway(t, configs.Gateway{DataDir: dir, Demo: true})
	core.start()
	g.until(true)
	core.announcement("the demo", serves(echoName))
	if _, err := demo.NewEchoClient(core.client()).Say(t.Context(), &demo.SayRequest{}); err != nil {
		t.Error(err)
	}
}

func TestDrain(t *testing.T) {
	core := newFakeCore(t)
	core.part = demoPart()
	g := runGateway(t, configs.Gateway{Join: core.token(), Demo: true, DrainTimeout: 10 * time.Second})
	g.until(true)
	core.announcement("the demo", serves(echoName))
	chat, err := demo.NewEchoClient(core.client()).Chat(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	exchange := func() {
		t.Helper()
		if err := chat.Send(&demo.SayRequest{Text: "still there"}); err != nil {
			t.Fatal(err)
		}
		if _, err := chat.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	exchange()
	stopped := make(chan error, 1)
	go func() { stopped <- g.stop() }()
	g.until(false)
	exchange() // a call in flight goes on
	select {
	case err := <-stopped:
		t.Fatalf("stopped with a call open: %v", err)
	default:
	}
	if err := chat.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

func TestDrainTimeEnds(t *testing.T) {
	core := newFakeCore(t)
	core.part = demoPart()
	g := runGateway(t, configs.Gateway{Join: core.token(), Demo: true, DrainTimeout: 50 * time.Millisecond})
	g.until(true)
	core.announcement("the demo", serves(echoName))
	chat, err := demo.NewEchoClient(core.client()).Chat(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := chat.Send(&demo.SayRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, err := chat.Recv(); err != nil {
		t.Fatal(err)
	}
	if err := g.stop(); err != nil {
		t.Error(err)
	}
	if _, err := chat.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("%v, want Unavailable", err)
	}
}

// TestKilledRightAfterJoining: the identity is on disk and nothing has happened
// since. A gateway that had another identity in this directory before, of
// another core, starts with the new one as it stands.
func TestKilledRightAfterJoining(t *testing.T) {
	former := newFakeCore(t)
	former.part = demoPart()
	dir, killed := t.TempDir(), filepath.Join(t.TempDir(), "killed")
	g := runGateway(t, configs.Gateway{DataDir: dir, Join: former.token(), Demo: true})
	g.until(true)
	if err := g.stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "gateway")); err != nil {
		t.Fatal(err)
	}

	core := newFakeCore(t)
	core.part = demoPart()
	core.stored = func() {
		if err := os.CopyFS(killed, os.DirFS(dir)); err != nil {
			t.Error(err)
		}
	}
	g = runGateway(t, configs.Gateway{DataDir: dir, Join: core.token(), Demo: true})
	g.until(true)
	if err := g.stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(killed, "gateway", "identity.pem"), 0o600); err != nil {
		t.Fatal(err)
	}
	again := runGateway(t, configs.Gateway{DataDir: killed, Demo: true})
	again.until(true)
}

func TestWrongTokens(t *testing.T) {
	core := newFakeCore(t)
	other := newFakeCore(t)
	dir := t.TempDir()
	core.part = demoPart()
	g := runGateway(t, configs.Gateway{DataDir: dir, Join: core.token(), Demo: true})
	g.until(true)
	if err := g.stop(); err != nil {
		t.Fatal(err)
	}
	run := func(s configs.Gateway) error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		return Run(ctx, s, Deps{Log: logTo(t)})
	}
	for _, c := range []struct {
		what string
		s    configs.Gateway
		want string
	}{
		{"no token at all", configs.Gateway{DataDir: t.TempDir()}, "gateway add"},
		{"a token of another core", configs.Gateway{DataDir: dir, Join: other.token()}, "another core"},
		{"rubbish", configs.Gateway{DataDir: dir, Join: "sp1.rubbish"}, "token"},
	} {
		if err := run(c.s); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want an error about %q", c.what, err, c.want)
		}
	}
	again := runGateway(t, configs.Gateway{DataDir: dir, Join: core.token(), Demo: true}) // spent, ignored
	again.until(true)
}
