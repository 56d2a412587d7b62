package builtin

import (
	"context"
	"errors"
	"io"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	alphapb "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/protobuf/proto"
)

// reflector answers server reflection from the descriptors that all gateways
// announced, for each caller with what he may call and nothing else: a service
// of which he may call no method does not exist for him.
type reflector struct {
	reflectionpb.UnimplementedServerReflectionServer
	// look returns what tells, at any time, what the caller of ctx may see.
	look func(ctx context.Context) func() *Excerpt
}

// ServerReflectionInfo is grpc.reflection.v1.
func (r *reflector) ServerReflectionInfo(stream grpc.BidiStreamingServer[reflectionpb.ServerReflectionRequest, reflectionpb.ServerReflectionResponse]) error {
	sent, see := make(map[string]bool), r.look(stream.Context())
	for {
		in, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := stream.Send(answer(in, see(), sent)); err != nil {
			return err
		}
	}
}

// alphaReflector is grpc.reflection.v1alpha, whose messages are the same on
// the wire.
type alphaReflector struct {
	alphapb.UnimplementedServerReflectionServer
	*reflector
}

// ServerReflectionInfo is grpc.reflection.v1alpha.
//
//lint:ignore SA1019 clients that know nothing newer are many
func (r *alphaReflector) ServerReflectionInfo(stream grpc.BidiStreamingServer[alphapb.ServerReflectionRequest, alphapb.ServerReflectionResponse]) error {
	sent, see := make(map[string]bool), r.look(stream.Context())
	for {
		older, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		//lint:ignore SA1019 as above
		in, out := new(reflectionpb.ServerReflectionRequest), new(alphapb.ServerReflectionResponse)
		if err := transcode(older, in); err != nil {
			return err
		}
		if err := transcode(answer(in, see(), sent), out); err != nil {
			return err
		}
		if err := stream.Send(out); err != nil {
			return err
		}
	}
}

// transcode copies a message into another type with the same wire form.
func transcode(from, to proto.Message) error {
	raw, err := proto.Marshal(from)
	if err != nil {
		return err
	}
	return proto.Unmarshal(raw, to)
}

// answer answers one question from what the caller may see. sent holds the
// files that this stream has been sent already, which a client keeps.
func answer(in *reflectionpb.ServerReflectionRequest, e *Excerpt, sent map[string]bool) *reflectionpb.ServerReflectionResponse {
	out := &reflectionpb.ServerReflectionResponse{ValidHost: in.GetHost(), OriginalRequest: in}
	switch q := in.GetMessageRequest().(type) {
	case *reflectionpb.ServerReflectionRequest_ListServices:
		list := &reflectionpb.ListServiceResponse{}
		for _, name := range e.names() {
			list.Service = append(list.Service, &reflectionpb.ServiceResponse{Name: name})
		}
		out.MessageResponse = &reflectionpb.ServerReflectionResponse_ListServicesResponse{ListServicesResponse: list}
	case *reflectionpb.ServerReflectionRequest_FileByFilename:
		name := q.FileByFilename
		if !e.visible[name] {
			name = ""
		}
		e.files(out, name, "file", sent)
	case *reflectionpb.ServerReflectionRequest_FileContainingSymbol:
		e.files(out, e.fileOf(q.FileContainingSymbol), "symbol", sent)
	case *reflectionpb.ServerReflectionRequest_FileContainingExtension:
		name := e.catalog.extensions[q.FileContainingExtension.GetContainingType()][q.FileContainingExtension.GetExtensionNumber()]
		if !e.visible[name] {
			name = ""
		}
		e.files(out, name, "extension", sent)
	case *reflectionpb.ServerReflectionRequest_AllExtensionNumbersOfType:
		e.numbers(out, q.AllExtensionNumbersOfType)
	default:
		notFound(out, codes.InvalidArgument, "the request asks for nothing")
	}
	return out
}

// files answers with the file called name and the files it needs.
func (e *Excerpt) files(out *reflectionpb.ServerReflectionResponse, name, what string, sent map[string]bool) {
	if name == "" {
		notFound(out, codes.NotFound, "there is no such "+what+", or nothing in it that you may call")
		return
	}
	answer := &reflectionpb.FileDescriptorResponse{}
	seen := map[string]bool{name: true}
	for todo := []string{name}; len(todo) > 0; todo = todo[1:] {
		file := e.catalog.files[todo[0]]
		if file == nil {
			continue
		}
		if !sent[todo[0]] || todo[0] == name { // what is asked for by name is sent again
			raw, err := proto.Marshal(e.file(todo[0]))
			if err != nil {
				notFound(out, codes.Internal, "the descriptor cannot be encoded")
				return
			}
			sent[todo[0]] = true
			answer.FileDescriptorProto = append(answer.FileDescriptorProto, raw)
		}
		for _, d := range file.GetDependency() {
			if !seen[d] {
				seen[d] = true
				todo = append(todo, d)
			}
		}
	}
	out.MessageResponse = &reflectionpb.ServerReflectionResponse_FileDescriptorResponse{FileDescriptorResponse: answer}
}

// numbers answers with the extension numbers of a message type.
func (e *Excerpt) numbers(out *reflectionpb.ServerReflectionResponse, message string) {
	if e.fileOf(message) == "" {
		notFound(out, codes.NotFound, "there is no such message, or nothing with it that you may call")
		return
	}
	answer := &reflectionpb.ExtensionNumberResponse{BaseTypeName: message}
	for number, file := range e.catalog.extensions[message] {
		if e.visible[file] {
			answer.ExtensionNumber = append(answer.ExtensionNumber, number)
		}
	}
	slices.Sort(answer.ExtensionNumber)
	out.MessageResponse = &reflectionpb.ServerReflectionResponse_AllExtensionNumbersResponse{AllExtensionNumbersResponse: answer}
}

func notFound(out *reflectionpb.ServerReflectionResponse, code codes.Code, message string) {
	out.MessageResponse = &reflectionpb.ServerReflectionResponse_ErrorResponse{
		ErrorResponse: &reflectionpb.ErrorResponse{ErrorCode: int32(code), ErrorMessage: message}}
}
