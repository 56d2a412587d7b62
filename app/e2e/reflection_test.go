package e2e

import (
	"context"
	"net"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/reflection"

	"sallyport/roles/gateway/demo"
)

const reflectionPolicy = `
[methods]
"/grpc.testing.TestService/EmptyCall" = ["public"]
"/grpc.testing.TestService/UnaryCall" = ["echo"]
"/sallyport.demo.v1.Echo/*"           = ["echo"]

[[grant]]
apikey = "ci"
permissions = ["echo"]
`

// TestReflectionAndHealth: grpcurl lists exactly the allowed services with a
// token and only public ones without; health is open and everything else is
// closed.
func TestReflectionAndHealth(t *testing.T) {
	grpcurl := tool(t, "grpcurl")
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	upstream := grpc.NewServer()
	demo.RegisterEchoServer(upstream, webEcho{})
	testgrpc.RegisterTestServiceServer(upstream, testgrpc.UnimplementedTestServiceServer{})
	testgrpc.RegisterLoadBalancerStatsServiceServer(upstream, testgrpc.UnimplementedLoadBalancerStatsServiceServer{}) // without a row
	reflection.Register(upstream)
	go upstream.Serve(listener)
	t.Cleanup(upstream.Stop)

	d := deploy(t, reflectionPolicy)
	key := strings.TrimSpace(run(t, d.coreEnv, "apikey", "create", "ci"))
	d.addGateway("office", nil, "SALLYPORT_UPSTREAM=test="+listener.Addr().String())
	d.waitRouted("sallyport.demo.v1.Echo", "office")
	d.waitRouted("grpc.testing.TestService", "office")
	curl := func(args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		out, err := exec.CommandContext(ctx, grpcurl, append([]string{"-cacert", d.caFile, "-servername", "localhost"}, args...)...).CombinedOutput()
		return string(out), err
	}
	token := []string{"-H", "authorization: Bearer " + key}
	own := []string{"grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"}
	list := func(args ...string) []string {
		t.Helper()
		out, err := curl(append(args, d.public, "list")...)
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return strings.Fields(out)
	}
	eventually(t, 10*time.Second, "the proxy knows the services", func() error {
		if len(list()) < 4 {
			return context.DeadlineExceeded
		}
		return nil
	})
	if got, want := list(), append(slices.Clone(own), "grpc.testing.TestService"); !slices.Equal(got, want) {
		t.Errorf("without a token: %q, want %q", got, want)
	}
	if got, want := list(token...), append(slices.Clone(own), "grpc.testing.TestService", "sallyport.demo.v1.Echo"); !slices.Equal(got, want) {
		t.Errorf("with a token: %q, want %q", got, want)
	}
	// Down to the methods, and usable: grpcurl calls by what reflection told.
	if out, err := curl(d.public, "list", "grpc.testing.TestService"); err != nil || strings.TrimSpace(out) != "grpc.testing.TestService.EmptyCall" {
		t.Errorf("methods without a token: %v %s", err, out)
	}
	if out, err := curl(append(slices.Clone(token), "-d", `{"text":"hello"}`, d.public, "sallyport.demo.v1.Echo/Say")...); err != nil || !strings.Contains(out, `"text": "hello"`) {
		t.Errorf("a call by reflection: %v %s", err, out)
	}
	if out, err := curl("-d", `{"text":"hello"}`, d.public, "sallyport.demo.v1.Echo/Say"); err == nil {
		t.Errorf("a call without a token: %s", out)
	}
	if out, err := curl("-H", "authorization: Bearer spk_wrong", d.public, "list"); err == nil || !strings.Contains(out, "Unauthenticated") {
		t.Errorf("with a bad token: %v %s", err, out)
	}
	if out, err := curl("-d", `{"service":"sallyport.demo.v1.Echo"}`, d.public, "grpc.health.v1.Health/Check"); err != nil || !strings.Contains(out, "SERVING") {
		t.Errorf("health: %v %s", err, out)
	}

	// Watch hears that the service has gone, and List follows.
	client := healthpb.NewHealthClient(d.dial())
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	watch, err := client.Watch(ctx, &healthpb.HealthCheckRequest{Service: "grpc.testing.TestService"})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []healthpb.HealthCheckResponse_ServingStatus{healthpb.HealthCheckResponse_SERVING, healthpb.HealthCheckResponse_NOT_SERVING} {
		out, err := watch.Recv()
		if err != nil || out.GetStatus() != want {
			t.Fatalf("watch: %v, %v, want %v", out, err, want)
		}
		upstream.Stop()
	}
	all, err := client.List(ctx, &healthpb.HealthListRequest{})
	if err != nil || all.GetStatuses()["grpc.testing.TestService"].GetStatus() != healthpb.HealthCheckResponse_NOT_SERVING || all.GetStatuses()["sallyport.demo.v1.Echo"] != nil ||
		all.GetStatuses()[""].GetStatus() != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("list: %v, %v", all, err)
	}
}
