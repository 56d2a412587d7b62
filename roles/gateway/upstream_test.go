package gateway

import (
	"net"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"

	"sallyport/configs"
	"sallyport/roles/gateway/demo"
)

func isUp(s upstreamState) bool { return s.up }

func downBecause(text string) func(upstreamState) bool {
	return func(s upstreamState) bool { return !s.up && strings.Contains(s.problem, text) }
}

// echoServer is an upstream with reflection and, if h is not nil, health.
func echoServer(h *health.Server) *grpc.Server {
	s := grpc.NewServer()
	demo.RegisterEchoServer(s, demo.UnimplementedEchoServer{})
	if h != nil {
		healthpb.RegisterHealthServer(s, h)
	}
	reflection.Register(s)
	return s
}

const echoName = "sallyport.demo.v1.Echo"

func TestUpstreamGoesDownAndComesBackByItself(t *testing.T) {
	address := freeAddress(t)
	w := watchUpstream(t, plain("orders", address))
	w.until(t, "down", downBecause("refused"))
	_, stop := serveOn(t, echoServer(nil), address)
	s := w.until(t, "up", isUp)
	if s.offer == nil || offerNames(s.offer)[0] != echoName || !s.serving(echoName) {
		t.Errorf("state %+v", s)
	}
	stop()
	s = w.until(t, "down again", downBecause("refused"))
	if s.offer == nil {
		t.Error("what it offered is forgotten while it is down")
	}
	serveOn(t, echoServer(nil), address)
	w.until(t, "up again", isUp)
}

func TestNotServingIsFollowed(t *testing.T) {
	h := health.NewServer()
	h.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
	address, _ := serveOn(t, echoServer(h), "127.0.0.1:0")
	w := watchUpstream(t, plain("orders", address))
	w.until(t, "up, not serving", func(s upstreamState) bool { return s.up && !s.serving(echoName) })
	h.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
	w.until(t, "serving", func(s upstreamState) bool { return s.serving(echoName) })
	h.SetServingStatus(echoName, healthpb.HealthCheckResponse_NOT_SERVING)
	w.until(t, "the one service not serving", func(s upstreamState) bool { return s.up && !s.serving(echoName) && s.serving("other") })
	h.SetServingStatus(echoName, healthpb.HealthCheckResponse_SERVING)
	w.until(t, "serving again", func(s upstreamState) bool { return s.serving(echoName) })
}

func TestNeitherReflectionNorList(t *testing.T) {
	s := grpc.NewServer()
	demo.RegisterEchoServer(s, demo.UnimplementedEchoServer{})
	address, _ := serveOn(t, s, "127.0.0.1:0")
	w := watchUpstream(t, plain("orders", address))
	w.until(t, "an error with the remedy", downBecause("--upstream 'orders="+address+"="))

	listed := watchUpstream(t, plain("orders", address, "acme.stock.v1.*", echoName))
	st := listed.until(t, "up by its list", isUp)
	if got := strings.Join(offerNames(st.offer), " "); got != "acme.stock.v1.* "+echoName {
		t.Errorf("offers %q", got)
	}
}

func TestWhatIsNoGRPCServer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = nc.Write([]byte("220 mail.example.org ESMTP\r\n"))
			nc.Close()
		}
	}()
	defer func() { l.Close(); <-done }()
	w := watchUpstream(t, plain("mail", l.Addr().String()))
	w.until(t, "a clear error", downBecause("does not answer as a gRPC server"))
}

func TestAnnouncement(t *testing.T) {
	address, _ := serveOn(t, echoServer(nil), "127.0.0.1:0")
	up := watchUpstream(t, plain("first", address))
	up.until(t, "up", isUp)
	twin := watchUpstream(t, plain("second", address))
	twin.until(t, "up", isUp)
	away := watchUpstream(t, plain("third", freeAddress(t), "acme.stock.v1.*", "acme.stock.v1.Bin"))
	away.until(t, "down", downBecause("refused"))

	a, r := announce([]*upstream{up.upstream, twin.upstream, away.upstream})
	var told []string
	for _, s := range a.Services {
		text := s.Name + "@" + s.Upstream
		if s.Serving {
			text += "+"
		}
		told = append(told, text)
	}
	if got, want := strings.Join(told, " "), "sallyport.demo.v1.Echo@first+ acme.stock.v1.*@third acme.stock.v1.Bin@third"; got != want {
		t.Errorf("announced %s, want %s", got, want)
	}
	if len(a.Descriptors) == 0 || len(a.Services[0].Methods) != 4 {
		t.Errorf("%d descriptors, methods %q", len(a.Descriptors), a.Services[0].Methods)
	}
	if len(a.Upstreams) != 3 || !a.Upstreams[0].Up || a.Upstreams[2].Up || a.Upstreams[2].Error == "" || a.Upstreams[2].Address != away.address {
		t.Errorf("upstreams %v", a.Upstreams)
	}
	for service, want := range map[string]*upstream{echoName: up.upstream, "acme.stock.v1.Shelf": away.upstream, "acme.stock.v1.Bin": away.upstream, "acme.orders.v1.Orders": nil} {
		if got := r.find(service); got != want {
			t.Errorf("%s is served by %v", service, got)
		}
	}
}

func TestAuthorityIsTheUpstreams(t *testing.T) {
	for _, c := range []struct {
		u    configs.Upstream
		want string
	}{
		{plain("a", "127.0.0.1:9000"), "127.0.0.1:9000"},
		{configs.Upstream{Address: configs.UpstreamAddress{Scheme: configs.SchemeUnix, Target: "/run/x.sock"}}, "localhost"},
		{configs.Upstream{Address: configs.UpstreamAddress{Scheme: configs.SchemeTLS, Target: "10.0.0.7:9443"}, ServerName: "orders.example.org"}, "orders.example.org:9443"},
		{configs.Upstream{Address: configs.UpstreamAddress{Scheme: configs.SchemeTLS, Target: "orders.example.org:443"}}, "orders.example.org:443"},
	} {
		if got := authority(c.u); got != c.want {
			t.Errorf("%s: %s, want %s", c.u.Address, got, c.want)
		}
	}
}
