package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	reflectionv1alpha "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
)

// resolver finds message and extension types, for Any and extensions in JSON.
type resolver interface {
	protoregistry.MessageTypeResolver
	protoregistry.ExtensionTypeResolver
}

// reflected is a server as its reflection service describes it. The v1
// service is asked; a server that knows only v1alpha is asked by that. The two
// are the same on the wire.
type reflected struct {
	conn   *grpc.ClientConn
	stream grpc.ClientStream
	cancel context.CancelFunc
	files  protoregistry.Files
	types  *dynamicpb.Types
}

// close ends the conversation as it should end, so that nobody's log counts it
// as cancelled.
func (r *reflected) close() {
	if r.stream == nil {
		return
	}
	r.stream.CloseSend()
	for r.stream.RecvMsg(new(reflectionv1.ServerReflectionResponse)) == nil {
	}
	r.cancel()
	r.stream = nil
}

// ask sends one request and reads its answer.
func (r *reflected) ask(ctx context.Context, req *reflectionv1.ServerReflectionRequest) (*reflectionv1.ServerReflectionResponse, error) {
	if r.stream != nil {
		return r.exchange(req)
	}
	ctx, r.cancel = context.WithCancel(ctx)
	var res *reflectionv1.ServerReflectionResponse
	var err error
	for _, method := range []string{
		reflectionv1.ServerReflection_ServerReflectionInfo_FullMethodName,
		reflectionv1alpha.ServerReflection_ServerReflectionInfo_FullMethodName,
	} {
		r.stream, err = r.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
		if err == nil {
			res, err = r.exchange(req)
		}
		if status.Code(err) != codes.Unimplemented {
			break
		}
		r.stream = nil
	}
	if r.stream == nil {
		r.cancel()
	}
	if status.Code(err) == codes.Unimplemented {
		return nil, failed("the server has no reflection service, so what it takes is not known", "use a client that has the .proto files")
	}
	return res, err
}

func (r *reflected) exchange(req *reflectionv1.ServerReflectionRequest) (*reflectionv1.ServerReflectionResponse, error) {
	if err := r.stream.SendMsg(req); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	res := new(reflectionv1.ServerReflectionResponse)
	if err := r.stream.RecvMsg(res); err != nil {
		if errors.Is(err, io.EOF) {
			err = status.Error(codes.Unavailable, "the reflection service ended the conversation")
		}
		return nil, err
	}
	if e := res.GetErrorResponse(); e != nil {
		return nil, status.Error(codes.Code(e.GetErrorCode()), e.GetErrorMessage())
	}
	return res, nil
}

// services lists what this caller is shown.
func (r *reflected) services(ctx context.Context) ([]string, error) {
	res, err := r.ask(ctx, &reflectionv1.ServerReflectionRequest{
		MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{ListServices: "*"},
	})
	if err != nil {
		return nil, err
	}
	names := []string{}
	for _, s := range res.GetListServicesResponse().GetService() {
		names = append(names, s.GetName())
	}
	return names, nil
}

// service is the descriptor of a service.
func (r *reflected) service(ctx context.Context, name string) (protoreflect.ServiceDescriptor, error) {
	res, err := r.ask(ctx, &reflectionv1.ServerReflectionRequest{
		MessageRequest: &reflectionv1.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: name},
	})
	if status.Code(err) == codes.NotFound {
		return nil, r.unknown(ctx, name)
	}
	if err != nil {
		return nil, err
	}
	have := map[string]*descriptorpb.FileDescriptorProto{}
	var order []string
	if order, err = collect(have, res); err != nil {
		return nil, err
	}
	for _, file := range order {
		if err := r.register(ctx, file, have, 0); err != nil {
			return nil, err
		}
	}
	r.types = dynamicpb.NewTypes(&r.files)
	d, err := r.files.FindDescriptorByName(protoreflect.FullName(name))
	if err != nil {
		return nil, r.unknown(ctx, name)
	}
	service, ok := d.(protoreflect.ServiceDescriptor)
	if !ok {
		return nil, wrong("call: "+name+" is not a service", "write package.Service/Method")
	}
	return service, nil
}

// method is the descriptor of a method.
func (r *reflected) method(ctx context.Context, service, name string) (protoreflect.MethodDescriptor, error) {
	s, err := r.service(ctx, service)
	if err != nil {
		return nil, err
	}
	if m := s.Methods().ByName(protoreflect.Name(name)); m != nil {
		return m, nil
	}
	var names []string
	for i := range s.Methods().Len() {
		names = append(names, string(s.Methods().Get(i).Name()))
	}
	return nil, failed(fmt.Sprintf("call: %s has no method %s", service, name), "it has: "+strings.Join(names, ", "))
}

// unknown says which services there are.
func (r *reflected) unknown(ctx context.Context, name string) error {
	remedy := "none is shown to this caller: perhaps it has to say who it is (--cert, --api-key-file)"
	if names, err := r.services(ctx); err == nil && len(names) > 0 {
		remedy = "this caller is shown: " + strings.Join(names, ", ")
	}
	return failed("call: there is no service "+oneLine(name)+", or this caller may not know of it", remedy)
}

// collect takes the files out of an answer; the first holds the symbol.
func collect(into map[string]*descriptorpb.FileDescriptorProto, res *reflectionv1.ServerReflectionResponse) ([]string, error) {
	var order []string
	for _, raw := range res.GetFileDescriptorResponse().GetFileDescriptorProto() {
		file := new(descriptorpb.FileDescriptorProto)
		if err := proto.Unmarshal(raw, file); err != nil {
			return nil, fmt.Errorf("the server's reflection answered with a file that is none: %s", protoText(err))
		}
		if _, twice := into[file.GetName()]; !twice {
			into[file.GetName()] = file
			order = append(order, file.GetName())
		}
	}
	return order, nil
}

// register adds a file after those it imports, asking for what is missing.
// A server may describe itself in circles; depth ends that.
func (r *reflected) register(ctx context.Context, name string, have map[string]*descriptorpb.FileDescriptorProto, depth int) error {
	if _, err := r.files.FindFileByPath(name); err == nil {
		return nil
	}
	if depth > 100 {
		return failed("the server's reflection describes files that import each other without end", "")
	}
	file, ok := have[name]
	if !ok {
		if known, err := protoregistry.GlobalFiles.FindFileByPath(name); err == nil {
			return r.adopt(known)
		}
		res, err := r.ask(ctx, &reflectionv1.ServerReflectionRequest{
			MessageRequest: &reflectionv1.ServerReflectionRequest_FileByFilename{FileByFilename: name},
		})
		if err != nil {
			return fmt.Errorf("the server's reflection does not have %s, which it needs itself: %w", name, err)
		}
		if _, err := collect(have, res); err != nil {
			return err
		}
		if file, ok = have[name]; !ok {
			return failed("the server's reflection was asked for "+oneLine(name)+" and sent other files", "")
		}
	}
	for _, dependency := range file.GetDependency() {
		if err := r.register(ctx, dependency, have, depth+1); err != nil {
			return err
		}
	}
	d, err := protodesc.NewFile(file, &r.files)
	if err != nil {
		return fmt.Errorf("the server's description of %s does not hold together: %s", name, protoText(err))
	}
	return r.files.RegisterFile(d)
}

// adopt registers a file this binary knows, and those it imports.
func (r *reflected) adopt(file protoreflect.FileDescriptor) error {
	if _, err := r.files.FindFileByPath(file.Path()); err == nil {
		return nil
	}
	for i := range file.Imports().Len() {
		if err := r.adopt(file.Imports().Get(i).FileDescriptor); err != nil {
			return err
		}
	}
	return r.files.RegisterFile(file)
}

// The four finders make reflected a resolver: the server's types first, then
// those this binary has.

func (r *reflected) FindMessageByName(name protoreflect.FullName) (protoreflect.MessageType, error) {
	if t, err := r.types.FindMessageByName(name); err == nil {
		return t, nil
	}
	return protoregistry.GlobalTypes.FindMessageByName(name)
}

func (r *reflected) FindMessageByURL(url string) (protoreflect.MessageType, error) {
	if t, err := r.types.FindMessageByURL(url); err == nil {
		return t, nil
	}
	return protoregistry.GlobalTypes.FindMessageByURL(url)
}

func (r *reflected) FindExtensionByName(name protoreflect.FullName) (protoreflect.ExtensionType, error) {
	if t, err := r.types.FindExtensionByName(name); err == nil {
		return t, nil
	}
	return protoregistry.GlobalTypes.FindExtensionByName(name)
}

func (r *reflected) FindExtensionByNumber(message protoreflect.FullName, n protoreflect.FieldNumber) (protoreflect.ExtensionType, error) {
	if t, err := r.types.FindExtensionByNumber(message, n); err == nil {
		return t, nil
	}
	return protoregistry.GlobalTypes.FindExtensionByNumber(message, n)
}
