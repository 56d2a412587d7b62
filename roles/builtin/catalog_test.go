package builtin

import (
	"bytes"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"

	"sallyport/roles/gateway/demo"
)

// descriptorsOf are files and what they depend on, as a snapshot has them.
func descriptorsOf(t *testing.T, files ...protoreflect.FileDescriptor) (raws [][]byte) {
	t.Helper()
	seen := make(map[string]bool)
	var add func(f protoreflect.FileDescriptor)
	add = func(f protoreflect.FileDescriptor) {
		if seen[f.Path()] {
			return
		}
		seen[f.Path()] = true
		raw, err := proto.Marshal(protodesc.ToFileDescriptorProto(f))
		if err != nil {
			t.Fatal(err)
		}
		raws = append(raws, raw)
		for i := range f.Imports().Len() {
			add(f.Imports().Get(i))
		}
	}
	for _, f := range files {
		add(f)
	}
	return raws
}

func ask(e *Excerpt, sent map[string]bool, symbol string) *reflectionpb.ServerReflectionResponse {
	return answer(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: symbol}}, e, sent)
}

func filesIn(t *testing.T, r *reflectionpb.ServerReflectionResponse) (files []*descriptorpb.FileDescriptorProto) {
	t.Helper()
	for _, raw := range r.GetFileDescriptorResponse().GetFileDescriptorProto() {
		f := new(descriptorpb.FileDescriptorProto)
		if err := proto.Unmarshal(raw, f); err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	return files
}

func TestReflectionShowsWhatMayBeCalled(t *testing.T) {
	c := NewCatalog(append(descriptorsOf(t, demo.File_roles_gateway_demo_echo_proto, testpb.File_grpc_testing_test_proto), []byte("\xff\xffnot a descriptor")))
	allowed := []string{"/grpc.testing.TestService/UnaryCall", "/grpc.health.v1.Health/Check"}
	e := c.excerpt(func(path string) bool { return slices.Contains(allowed, path) })
	if got, want := e.names(), []string{"grpc.health.v1.Health", "grpc.testing.TestService"}; !slices.Equal(got, want) {
		t.Errorf("services %q, want %q", got, want)
	}

	files := filesIn(t, ask(e, map[string]bool{}, "grpc.testing.TestService"))
	if len(files) != 3 { // test.proto, empty.proto, messages.proto
		t.Fatalf("%d files", len(files))
	}
	for _, f := range files {
		for _, s := range f.GetService() {
			if s.GetName() != "TestService" || len(s.GetMethod()) != 1 || s.GetMethod()[0].GetName() != "UnaryCall" {
				t.Errorf("%s shows %v", f.GetName(), s)
			}
		}
	}
	if _, err := protodesc.NewFiles(&descriptorpb.FileDescriptorSet{File: files}); err != nil {
		t.Errorf("a client cannot use the files: %v", err)
	}

	// What he may not call does not exist for him, by whatever name he asks.
	for _, symbol := range []string{"sallyport.demo.v1.Echo", "sallyport.demo.v1.Echo.Say", "sallyport.demo.v1.SayRequest",
		"grpc.testing.UnimplementedService", "grpc.testing.TestService.EmptyCall", "nothing.at.all", ""} {
		r := ask(e, map[string]bool{}, symbol)
		if r.GetErrorResponse().GetErrorCode() != int32(codes.NotFound) {
			t.Errorf("%q: %v, want NotFound", symbol, r)
		}
	}
	for _, symbol := range []string{"grpc.testing.TestService.UnaryCall", "grpc.testing.SimpleRequest", "grpc.testing.SimpleRequest.payload", "grpc.testing.PayloadType", "grpc.testing.COMPRESSABLE"} {
		if r := ask(e, map[string]bool{}, symbol); len(filesIn(t, r)) == 0 {
			t.Errorf("%q: %v, want its file", symbol, r)
		}
	}
	byName := func(name string) *reflectionpb.ServerReflectionResponse {
		return answer(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_FileByFilename{FileByFilename: name}}, e, map[string]bool{})
	}
	if r := byName("roles/gateway/demo/echo.proto"); r.GetErrorResponse() == nil {
		t.Errorf("file of a hidden service: %v", r)
	}
	if r := byName("grpc/testing/messages.proto"); len(filesIn(t, r)) == 0 {
		t.Errorf("file that a visible service needs: %v", r)
	}
}

func TestNothingIsVisibleToWhoMayCallNothing(t *testing.T) {
	e := NewCatalog(descriptorsOf(t, demo.File_roles_gateway_demo_echo_proto)).excerpt(func(string) bool { return false })
	if len(e.names()) != 0 || len(e.visible) != 0 {
		t.Errorf("names %q, files %v", e.names(), e.visible)
	}
}

func TestFilesAreSentOncePerStream(t *testing.T) {
	e := NewCatalog(descriptorsOf(t, testpb.File_grpc_testing_test_proto)).excerpt(func(path string) bool { return strings.HasPrefix(path, "/grpc.testing.") })
	sent := map[string]bool{}
	if n := len(filesIn(t, ask(e, sent, "grpc.testing.TestService"))); n != 3 {
		t.Errorf("first answer has %d files", n)
	}
	if n := len(filesIn(t, ask(e, sent, "grpc.testing.TestService"))); n != 1 {
		t.Errorf("second answer has %d files: only what was asked for is sent again", n)
	}
}

func TestExtensions(t *testing.T) {
	// A file with an extension that a visible service's file imports.
	extending := &descriptorpb.FileDescriptorProto{Name: proto.String("acme/options.proto"), Package: proto.String("acme"), Syntax: proto.String("proto2"),
		Dependency: []string{"google/protobuf/descriptor.proto"},
		Extension: []*descriptorpb.FieldDescriptorProto{{Name: proto.String("audit"), Number: proto.Int32(50001), Extendee: proto.String(".google.protobuf.MethodOptions"),
			Type: descriptorpb.FieldDescriptorProto_TYPE_BOOL.Enum(), Label: descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum()}}}
	using := &descriptorpb.FileDescriptorProto{Name: proto.String("acme/a.proto"), Package: proto.String("acme"), Dependency: []string{"acme/options.proto"},
		MessageType: []*descriptorpb.DescriptorProto{{Name: proto.String("M")}},
		Service:     []*descriptorpb.ServiceDescriptorProto{{Name: proto.String("A"), Method: []*descriptorpb.MethodDescriptorProto{{Name: proto.String("Get"), InputType: proto.String(".acme.M"), OutputType: proto.String(".acme.M")}}}}}
	raws := descriptorsOf(t, pluginpb.File_google_protobuf_compiler_plugin_proto) // brings descriptor.proto
	for _, f := range []*descriptorpb.FileDescriptorProto{extending, using} {
		raw, err := proto.Marshal(f)
		if err != nil {
			t.Fatal(err)
		}
		raws = append(raws, raw)
	}
	c := NewCatalog(raws)
	question := &reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_FileContainingExtension{
		FileContainingExtension: &reflectionpb.ExtensionRequest{ContainingType: "google.protobuf.MethodOptions", ExtensionNumber: 50001}}}
	numbers := &reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_AllExtensionNumbersOfType{AllExtensionNumbersOfType: "google.protobuf.MethodOptions"}}

	may := c.excerpt(func(path string) bool { return path == "/acme.A/Get" })
	if files := filesIn(t, answer(question, may, map[string]bool{})); len(files) != 2 || files[0].GetName() != "acme/options.proto" {
		t.Errorf("files %v", files)
	}
	if got := answer(numbers, may, nil).GetAllExtensionNumbersResponse().GetExtensionNumber(); !slices.Equal(got, []int32{50001}) {
		t.Errorf("numbers %v", got)
	}
	mayNot := c.excerpt(func(path string) bool { return path == "/grpc.health.v1.Health/Check" })
	if r := answer(question, mayNot, map[string]bool{}); r.GetErrorResponse() == nil {
		t.Errorf("hidden extension: %v", r)
	}
	if r := answer(numbers, mayNot, map[string]bool{}); r.GetErrorResponse() == nil {
		t.Errorf("numbers of a hidden type: %v", r)
	}
}

// TestCatalogIsBounded: what a hostile gateway announced costs little memory,
// and hides nobody else's services.
func TestCatalogIsBounded(t *testing.T) {
	marshal := func(f *descriptorpb.FileDescriptorProto) []byte {
		raw, err := proto.Marshal(f)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	parts := append(marshal(&descriptorpb.FileDescriptorProto{Name: proto.String("parts.proto")}), bytes.Repeat([]byte{0x22, 0}, 2<<20)...)
	// One long name, repeated in the full name of every field.
	names := &descriptorpb.DescriptorProto{Name: proto.String(strings.Repeat("n", 1<<20))}
	for i := range 10_000 {
		names.Field = append(names.Field, &descriptorpb.FieldDescriptorProto{Name: proto.String(strconv.Itoa(i))})
	}
	long := marshal(&descriptorpb.FileDescriptorProto{Name: proto.String("long.proto"), MessageType: []*descriptorpb.DescriptorProto{names}})
	before, after := new(runtime.MemStats), new(runtime.MemStats)
	runtime.ReadMemStats(before)
	c := NewCatalog(append([][]byte{long}, append(descriptorsOf(t, demo.File_roles_gateway_demo_echo_proto), parts)...))
	runtime.ReadMemStats(after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 64<<20 {
		t.Errorf("the catalog took %d MiB", n>>20)
	}
	if c.services["sallyport.demo.v1.Echo"] == nil {
		t.Error("a service of another gateway is gone")
	}
}
