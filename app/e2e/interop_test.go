package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"os/exec"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/interop"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/reflection"
)

const interopPolicy = `
[methods]
"/grpc.testing.TestService/*" = ["public"]
"/grpc.testing.UnimplementedService/*" = ["public"]
`

// interopCases are the official cases that do not depend on Google's clouds.
var interopCases = map[string]func(context.Context, testgrpc.TestServiceClient, *grpc.ClientConn){
	"empty_unary": func(ctx context.Context, c testgrpc.TestServiceClient, _ *grpc.ClientConn) {
		interop.DoEmptyUnaryCall(ctx, c)
	},
	"large_unary": func(ctx context.Context, c testgrpc.TestServiceClient, _ *grpc.ClientConn) {
		interop.DoLargeUnaryCall(ctx, c)
	},
	"client_streaming": func(ctx context.Context, c testgrpc.TestServiceClient, _ *grpc.ClientConn) {
		interop.DoClientStreaming(ctx, c)
	},
	"server_streaming": func(ctx context.Context, c testgrpc.TestServiceClient, _ *grpc.ClientConn) {
		interop.DoServerStreaming(ctx, c)
	},
	"ping_pong": func(ctx context.Context, c testgrpc.TestServiceClient, _ *grpc.ClientConn) {
		interop.DoPingPong(ctx, c)
	},
	"empty_stream": func(ctx context.Context, c testgrpc.TestServiceClient, _ *grpc.ClientConn) {
		interop.DoEmptyStream(ctx, c)
	},
	"timeout_on_sleeping_server": func(ctx context.Context, c testgrpc.TestServiceClient, _ *grpc.ClientConn) {
		interop.DoTimeoutOnSleepingServer(ctx, c)
	},
	"cancel_after_begin": func(ctx context.Context, c testgrpc.TestServiceClient, _ *grpc.ClientConn) {
		interop.DoCancelAfterBegin(ctx, c)
	},
	"cancel_after_first_response": func(ctx context.Context, c testgrpc.TestServiceClient, _ *grpc.ClientConn) {
		interop.DoCancelAfterFirstResponse(ctx, c)
	},
	"status_code_and_message": func(ctx context.Context, c testgrpc.TestServiceClient, _ *grpc.ClientConn) {
		interop.DoStatusCodeAndMessage(ctx, c)
	},
	"special_status_message": func(ctx context.Context, c testgrpc.TestServiceClient, _ *grpc.ClientConn) {
		interop.DoSpecialStatusMessage(ctx, c)
	},
	"custom_metadata": func(ctx context.Context, c testgrpc.TestServiceClient, _ *grpc.ClientConn) {
		interop.DoCustomMetadata(ctx, c)
	},
	"unimplemented_method": func(ctx context.Context, _ testgrpc.TestServiceClient, cc *grpc.ClientConn) {
		interop.DoUnimplementedMethod(ctx, cc)
	},
	"unimplemented_service": func(ctx context.Context, _ testgrpc.TestServiceClient, cc *grpc.ClientConn) {
		interop.DoUnimplementedService(ctx, testgrpc.NewUnimplementedServiceClient(cc))
	},
}

// helperMain is this test binary run as something else: the interop cases end
// their process when they fail, so each has one of its own.
func helperMain(role string) int {
	if role != "interop" || len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: interop CASE ADDRESS CAFILE")
		return 2
	}
	do, ok := interopCases[os.Args[1]]
	if !ok {
		fmt.Fprintln(os.Stderr, "no such case:", os.Args[1])
		return 2
	}
	pool := x509.NewCertPool()
	pem, err := os.ReadFile(os.Args[3])
	if err != nil || !pool.AppendCertsFromPEM(pem) {
		fmt.Fprintln(os.Stderr, "CA file:", err)
		return 2
	}
	cc, err := grpc.NewClient(os.Args[2], grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: pool, ServerName: "localhost"})))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer cc.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	do(ctx, testgrpc.NewTestServiceClient(cc), cc)
	return 0
}

// startInteropServer runs the official test service with reflection on loopback.
func startInteropServer(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	testgrpc.RegisterTestServiceServer(s, interop.NewTestServer())
	reflection.Register(s)
	go s.Serve(l)
	t.Cleanup(s.Stop)
	return l.Addr().String()
}

func TestInterop(t *testing.T) {
	d := deploy(t, interopPolicy)
	d.addGateway("office", nil, "SALLYPORT_UPSTREAM=interop="+startInteropServer(t))
	d.waitRouted("grpc.testing.TestService", "office")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if len(interopCases) != 14 {
		t.Fatalf("%d cases", len(interopCases))
	}
	for name := range interopCases {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
			defer cancel()
			cmd := exec.CommandContext(ctx, self, name, d.public, d.caFile)
			cmd.Env = append(os.Environ(), "SALLYPORT_E2E_HELPER=interop")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}
