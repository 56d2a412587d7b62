package builtin

import (
	"testing"

	testpb "google.golang.org/grpc/interop/grpc_testing"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"

	"sallyport/roles/gateway/demo"
)

// Descriptors come from upstreams, through gateways and core; questions from
// strangers. Neither may bring the proxy down, and what may not be called must
// stay hidden.
func FuzzCatalog(f *testing.F) {
	for _, file := range []proto.Message{protodesc.ToFileDescriptorProto(demo.File_roles_gateway_demo_echo_proto), protodesc.ToFileDescriptorProto(testpb.File_grpc_testing_test_proto)} {
		raw, err := proto.Marshal(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw, "grpc.testing.TestService")
	}
	f.Fuzz(func(t *testing.T, raw []byte, symbol string) {
		c := NewCatalog([][]byte{raw})
		all := c.excerpt(func(string) bool { return true })
		for _, name := range append(all.names(), symbol) {
			ask(all, map[string]bool{}, name)
			answer(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_FileByFilename{FileByFilename: symbol}}, all, map[string]bool{})
			answer(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_AllExtensionNumbersOfType{AllExtensionNumbersOfType: name}}, all, map[string]bool{})
		}
		nothing := c.excerpt(func(string) bool { return false })
		for name := range c.symbols {
			if r := ask(nothing, map[string]bool{}, name); r.GetErrorResponse() == nil {
				t.Fatalf("%q is shown to who may call nothing", name)
			}
		}
	})
}
