package proxy

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"sallyport/roles/control"
)

func TestHealth(t *testing.T) {
	core := newFakeCore(t)
	r := joined(t, core)
	cc := r.dial(nil)
	for service, want := range map[string]healthpb.HealthCheckResponse_ServingStatus{"": serving, echoName: serving, "grpc.health.v1.Health": serving} {
		if s, err := healthOf(t.Context(), cc, service); err != nil || s != want {
			t.Errorf("%q: %v, %v", service, s, err)
		}
	}
	if _, err := healthOf(t.Context(), cc, "nobody.Has"); status.Code(err) != codes.NotFound {
		t.Errorf("unknown service: %v", err)
	}
	watch, err := healthpb.NewHealthClient(cc).Watch(t.Context(), &healthpb.HealthCheckRequest{Service: echoName})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []healthpb.HealthCheckResponse_ServingStatus{serving, notServing, serviceUnknown} {
		if out, err := watch.Recv(); err != nil || out.Status != want {
			t.Fatalf("watch %d: %v, %v, want %v", i, out, err, want)
		}
		switch i {
		case 0:
			core.change(func(p *control.ProxyPart) { p.Services[0].Available = false })
		case 1:
			core.change(func(p *control.ProxyPart) { p.Services = nil })
		}
	}
	core.change(func(p *control.ProxyPart) {
		p.Services = []*control.Service{{Name: echoName}, {Name: "secret.Service"}}
	})
	list, err := healthpb.NewHealthClient(cc).List(t.Context(), &healthpb.HealthListRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if list.Statuses[""].GetStatus() != serving || list.Statuses[echoName].GetStatus() != notServing || list.Statuses["secret.Service"] != nil {
		t.Errorf("list %v", list.Statuses)
	}
}

func TestReflectionIsFilteredByCaller(t *testing.T) {
	core := newFakeCore(t)
	key := core.apiKey("ci", time.Time{})
	r := joined(t, core)
	var out *reflectionpb.ServerReflectionResponse
	reflect := func(ctx context.Context) error {
		t.Helper()
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		stream, err := reflectionpb.NewServerReflectionClient(r.dial(nil)).ServerReflectionInfo(ctx)
		if err != nil {
			return err
		}
		_ = stream.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: echoName}})
		_ = stream.CloseSend()
		out, err = stream.Recv()
		return err
	}
	methods := func(ctx context.Context) (names string) {
		t.Helper()
		if err := reflect(ctx); err != nil {
			t.Fatal(err)
		}
		for _, f := range filesIn(t, out) {
			for _, s := range f.GetService() {
				for _, m := range s.GetMethod() {
					names += m.GetName() + " "
				}
			}
		}
		return names
	}
	if got := methods(t.Context()); got != "Chat " {
		t.Errorf("nobody sees %q, want what is public", got)
	}
	if got := methods(withKey(t.Context(), key)); got != "Say Chat " {
		t.Errorf("the key's owner sees %q", got)
	}
	// What is changed shows at once.
	core.change(func(p *control.ProxyPart) { p.Policy = []byte("[methods]\n\"/" + echoName + "/Say\" = [\"public\"]\n") })
	if got := methods(t.Context()); got != "Say " {
		t.Errorf("after the change nobody sees %q", got)
	}
	// Credentials that are sent have to be good here too.
	if c := status.Code(reflect(withKey(t.Context(), "spk_wrong"))); c != codes.Unauthenticated {
		t.Errorf("reflection with a bad key: %v", c)
	}
}

// TestReflectionListsWhatIsServed: with and without a file, and not what a file
// declares beside; by either version of reflection, and of HTTP.
func TestReflectionListsWhatIsServed(t *testing.T) {
	core := newFakeCore(t)
	key := core.apiKey("ci", time.Time{})
	core.part.Policy = []byte(testPolicy[:strings.Index(testPolicy, "[[grant]]")] + `
"/grpc.testing.*" = ["public"]
"/bare.v1.Open/Get" = ["public"]
"/bare.v1.Guarded/*" = ["echo"]
"/bare.v1.Gone/*" = ["public"]
` + testPolicy[strings.Index(testPolicy, "[[grant]]"):])
	core.part.Descriptors = append(core.part.Descriptors, descriptorsOf(t, testpb.File_grpc_testing_test_proto)...)
	for _, name := range []string{"grpc.testing.TestService", "bare.v1.Open", "bare.v1.Guarded", "bare.v1.Closed"} {
		core.part.Services = append(core.part.Services, &control.Service{Name: name, Available: true})
	}
	r := joined(t, core)
	const own, alpha = "grpc.health.v1.Health grpc.reflection.v1.ServerReflection", " grpc.reflection.v1alpha.ServerReflection"
	for _, c := range []struct {
		ctx  context.Context
		want string
	}{
		{t.Context(), "bare.v1.Open " + own + alpha + " grpc.testing.TestService " + echoName},
		{withKey(t.Context(), key), "bare.v1.Guarded bare.v1.Open " + own + alpha + " grpc.testing.TestService " + echoName},
	} {
		ctx, cancel := context.WithTimeout(c.ctx, 10*time.Second)
		defer cancel()
		var names []string
		for _, version := range []string{"v1", "v1alpha"} { // whose messages are the same on the wire
			stream, err := r.dial(nil).NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/grpc.reflection."+version+".ServerReflection/ServerReflectionInfo")
			if err != nil {
				t.Fatal(err)
			}
			_ = stream.SendMsg(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}})
			out := new(reflectionpb.ServerReflectionResponse)
			if err := stream.RecvMsg(out); err != nil {
				t.Fatal(err)
			}
			names = nil
			for _, s := range out.GetListServicesResponse().GetService() {
				names = append(names, s.GetName())
			}
			if got := strings.Join(names, " "); got != c.want {
				t.Errorf("%s lists %s\nwant %s", version, got, c.want)
			}
		}
		list, err := healthpb.NewHealthClient(r.dial(nil)).List(ctx, &healthpb.HealthListRequest{})
		if err != nil {
			t.Fatal(err)
		}
		names = nil
		for name, s := range list.Statuses {
			if s.GetStatus() != serving {
				t.Errorf("health of %q: %v", name, s)
			}
			if name != "" {
				names = append(names, name)
			}
		}
		slices.Sort(names)
		if got := strings.Join(names, " "); got != c.want || list.Statuses[""] == nil {
			t.Errorf("health lists %s\nwant %s", got, c.want)
		}
	}
	// And by gRPC-Web, to a browser.
	for _, version := range []int{1, 2} {
		_, messages, trailers := r.browser(version).call("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", &reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}})
		if len(messages) != 1 || !strings.Contains(messages[0], "bare.v1.Open") || strings.Contains(messages[0], "Guarded") || !strings.HasPrefix(trailers, "grpc-status: 0\r\n") {
			t.Errorf("HTTP/%d: %q %q", version, messages, trailers)
		}
	}
}
