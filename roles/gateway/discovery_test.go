package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/interop"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/reflection"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	alphapb "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/types/descriptorpb"

	"sallyport/roles/gateway/demo"
)

func dialTo(t *testing.T, address string) *grpc.ClientConn {
	t.Helper()
	cc, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	return cc
}

func offerNames(o *offer) (names []string) {
	for _, s := range o.services {
		names = append(names, s.name)
	}
	return names
}

func fileNames(o *offer) (names []string) {
	for _, f := range o.files {
		names = append(names, f.GetName())
	}
	return names
}

func TestDiscoveryByEitherVersion(t *testing.T) {
	for _, version := range []string{"v1", "v1alpha", "both"} {
		t.Run(version, func(t *testing.T) {
			s := grpc.NewServer()
			demo.RegisterEchoServer(s, demo.UnimplementedEchoServer{})
			testpb.RegisterTestServiceServer(s, interop.NewTestServer())
			healthpb.RegisterHealthServer(s, healthpb.UnimplementedHealthServer{})
			switch version {
			case "v1":
				reflectionpb.RegisterServerReflectionServer(s, reflection.NewServerV1(reflection.ServerOptions{Services: s}))
			case "v1alpha":
				alphapb.RegisterServerReflectionServer(s, reflection.NewServer(reflection.ServerOptions{Services: s})) //nolint:staticcheck
			default:
				reflection.Register(s)
			}
			address, _ := serveOn(t, s, "127.0.0.1:0")
			o, err := discover(t.Context(), dialTo(t, address), nil)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := offerNames(o), []string{"grpc.testing.TestService", "sallyport.demo.v1.Echo"}; !slices.Equal(got, want) {
				t.Errorf("services %q, want %q: the upstream's own reflection and health do not count", got, want)
			}
			if !slices.Contains(o.services[1].methods, "Chat") {
				t.Errorf("methods of Echo: %q", o.services[1].methods)
			}
			// Dependencies are there too: whoever gets the files can use them.
			for _, file := range []string{"grpc/testing/test.proto", "grpc/testing/empty.proto", "grpc/testing/messages.proto"} {
				if !slices.Contains(fileNames(o), file) {
					t.Errorf("file %s is missing in %q", file, fileNames(o))
				}
			}
			if _, err := protodesc.NewFiles(&descriptorpb.FileDescriptorSet{File: o.files}); err != nil {
				t.Errorf("the files are not complete: %v", err)
			}
		})
	}
}

func TestDiscoveryWithAList(t *testing.T) {
	s := grpc.NewServer()
	demo.RegisterEchoServer(s, demo.UnimplementedEchoServer{})
	testpb.RegisterTestServiceServer(s, interop.NewTestServer())
	reflection.Register(s)
	address, _ := serveOn(t, s, "127.0.0.1:0")
	cc := dialTo(t, address)
	o, err := discover(t.Context(), cc, []string{"sallyport.demo.v1.*", "acme.orders.v1.Orders", "acme.stock.v1.*"})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := offerNames(o), []string{"sallyport.demo.v1.Echo", "acme.orders.v1.Orders", "acme.stock.v1.*"}; !slices.Equal(got, want) {
		t.Errorf("services %q, want %q", got, want)
	}
	if o.services[0].methods == nil || o.services[1].methods != nil {
		t.Errorf("methods: %+v", o.services)
	}
}

func TestNoReflection(t *testing.T) {
	s := grpc.NewServer()
	demo.RegisterEchoServer(s, demo.UnimplementedEchoServer{})
	address, _ := serveOn(t, s, "127.0.0.1:0")
	if _, err := discover(t.Context(), dialTo(t, address), nil); !errors.Is(err, errNoReflection) {
		t.Errorf("%v, want errNoReflection", err)
	}
}

// hugeReflection lists services without end, each with a large file.
type hugeReflection struct {
	reflectionpb.UnimplementedServerReflectionServer
	services int
}

func (h hugeReflection) ServerReflectionInfo(stream grpc.BidiStreamingServer[reflectionpb.ServerReflectionRequest, reflectionpb.ServerReflectionResponse]) error {
	for {
		in, err := stream.Recv()
		if err != nil {
			return nil
		}
		out := &reflectionpb.ServerReflectionResponse{}
		if symbol := in.GetFileContainingSymbol(); symbol != "" {
			name := symbol[strings.LastIndexByte(symbol, '.')+1:]
			raw, _ := proto.Marshal(&descriptorpb.FileDescriptorProto{
				Name: proto.String(symbol + ".proto"), Package: proto.String("huge"),
				Service:     []*descriptorpb.ServiceDescriptorProto{{Name: proto.String(name), Method: []*descriptorpb.MethodDescriptorProto{{Name: proto.String("Get")}}}},
				MessageType: []*descriptorpb.DescriptorProto{{Name: proto.String(strings.Repeat("x", 100<<10))}},
			})
			out.MessageResponse = &reflectionpb.ServerReflectionResponse_FileDescriptorResponse{FileDescriptorResponse: &reflectionpb.FileDescriptorResponse{FileDescriptorProto: [][]byte{raw}}}
		} else {
			list := &reflectionpb.ListServiceResponse{}
			for i := range h.services {
				list.Service = append(list.Service, &reflectionpb.ServiceResponse{Name: fmt.Sprintf("huge.S%d", i)})
			}
			list.Service = append(list.Service, &reflectionpb.ServiceResponse{Name: "not a name"}, &reflectionpb.ServiceResponse{Name: ""})
			out.MessageResponse = &reflectionpb.ServerReflectionResponse_ListServicesResponse{ListServicesResponse: list}
		}
		if err := stream.Send(out); err != nil {
			return err
		}
	}
}

func TestDiscoveryIsBounded(t *testing.T) {
	for _, c := range []struct {
		services int
		want     string
	}{{3, ""}, {60, "4 MiB"}, {1001, "1000"}} {
		s := grpc.NewServer()
		reflectionpb.RegisterServerReflectionServer(s, hugeReflection{services: c.services})
		address, _ := serveOn(t, s, "127.0.0.1:0")
		o, err := discover(t.Context(), dialTo(t, address), nil)
		switch {
		case c.want == "" && (err != nil || len(o.services) != c.services):
			t.Errorf("%d services: %v, %v", c.services, o, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%d services: %v, want an error about %s", c.services, err, c.want)
		}
	}
}

func TestOneConnectionIsNotDialledAgain(t *testing.T) {
	s := grpc.NewServer()
	healthpb.RegisterHealthServer(s, healthpb.UnimplementedHealthServer{})
	address, stop := serveOn(t, s, "127.0.0.1:0")
	nc, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	cc, err := overOne(nc, "somewhere")
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	if has, serving, err := checkHealth(t.Context(), cc); has || !serving || err != nil {
		t.Errorf("has %v, serving %v, %v", has, serving, err)
	}
	stop()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if _, _, err := checkHealth(ctx, cc); err == nil || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("%v, want that it does not answer", err)
	}
}
