package gateway

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	alphapb "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	"sallyport/roles/link"
)

// What one upstream may make the gateway hold.
const (
	maxDescriptorBytes = 4 << 20
	maxFiles           = 2000
	maxServices        = 1000
	maxMethods         = 10000
)

// errNoReflection is returned by discover when the upstream has neither
// version of server reflection.
var errNoReflection = errors.New("no server reflection")

// offer is what an upstream has to offer: its services and what describes them.
type offer struct {
	services []offered
	files    []*descriptorpb.FileDescriptorProto // each once, dependencies included
}

// offered is one service. Methods is nil where only its name is known.
type offered struct {
	name    string // full name; or a pattern ending in .* that reflection could not expand
	methods []string
}

// listedOffer is the offer of an upstream that cannot be asked: the services
// that the settings list.
func listedOffer(listed []string) *offer {
	o := &offer{}
	for _, name := range listed {
		o.services = append(o.services, offered{name: name})
	}
	return o
}

// discover asks an upstream what it serves, by server reflection v1 and where
// it has none by v1alpha. With a list, only services on the list count; those
// that reflection does not know are kept by name alone. The reflection and
// health services of the upstream itself are never part of it.
func discover(ctx context.Context, cc grpc.ClientConnInterface, listed []string) (*offer, error) {
	o, err := discoverBy(ctx, v1Stream, cc, listed)
	if status.Code(err) == codes.Unimplemented {
		o, err = discoverBy(ctx, v1alphaStream, cc, listed)
	}
	if status.Code(err) == codes.Unimplemented {
		return nil, errNoReflection
	}
	return o, err
}

// exchange sends one reflection request and returns its answer.
type exchange func(*reflectionpb.ServerReflectionRequest) (*reflectionpb.ServerReflectionResponse, error)

func discoverBy(ctx context.Context, open func(context.Context, grpc.ClientConnInterface) (exchange, error), cc grpc.ClientConnInterface, listed []string) (*offer, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ask, err := open(ctx, cc)
	if err != nil {
		return nil, err
	}
	answer, err := ask(&reflectionpb.ServerReflectionRequest{
		MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{ListServices: "*"}})
	if err != nil {
		return nil, err
	}
	if e := answer.GetErrorResponse(); e != nil {
		return nil, status.Error(codes.Code(e.GetErrorCode()), e.GetErrorMessage())
	}
	var names []string
	for _, s := range answer.GetListServicesResponse().GetService() {
		name := s.GetName()
		if protoreflect.FullName(name).IsValid() && !infrastructure(name) && (len(listed) == 0 || listedBy(listed, name)) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	names = slices.Compact(names)
	if len(names) > maxServices {
		return nil, fmt.Errorf("reflection names %d services, more than the %d a gateway announces for one upstream: list the ones that are meant", len(names), maxServices)
	}
	files := fileSet{ask: ask, parts: link.MaxDescriptorParts, byName: make(map[string]*descriptorpb.FileDescriptorProto), methods: make(map[string][]string)}
	o := &offer{}
	for _, name := range names {
		if err := files.add(name); err != nil {
			return nil, err
		}
		o.services = append(o.services, offered{name: name, methods: files.methods[name]})
	}
	for _, l := range listed {
		if !slices.ContainsFunc(names, func(n string) bool { return listedBy([]string{l}, n) }) {
			o.services = append(o.services, offered{name: l})
		}
	}
	o.files = files.order
	return o, nil
}

// infrastructure reports whether a service belongs to the upstream's server
// itself; callers reach the ones of the edge under these names.
func infrastructure(service string) bool {
	return strings.HasPrefix(service, "grpc.reflection.") || service == "grpc.health.v1.Health"
}

// listedBy reports whether name is on the list, by itself or by a pattern
// such as acme.stock.v1.*, which covers the packages below it too.
func listedBy(listed []string, name string) bool {
	return slices.ContainsFunc(listed, func(l string) bool {
		if prefix, ok := strings.CutSuffix(l, "*"); ok {
			return strings.HasPrefix(name, prefix)
		}
		return l == name
	})
}

// fileSet collects descriptors until a limit is reached.
type fileSet struct {
	ask     exchange
	byName  map[string]*descriptorpb.FileDescriptorProto
	order   []*descriptorpb.FileDescriptorProto
	methods map[string][]string // by service
	bytes   int
	parts   int // that may still come
	count   int // methods
}

// add reads the file that declares service, and all it depends on. A server
// that lists a service and has no descriptor for it is taken at its word.
func (f *fileSet) add(service string) error {
	if _, ok := f.methods[service]; ok {
		return nil
	}
	err := f.fetch(&reflectionpb.ServerReflectionRequest{
		MessageRequest: &reflectionpb.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: service}})
	if err != nil && status.Code(err) != codes.NotFound {
		return fmt.Errorf("descriptor of %s: %w", service, err)
	}
	for i := 0; i < len(f.order); i++ {
		for _, dependency := range f.order[i].GetDependency() {
			if f.byName[dependency] != nil {
				continue
			}
			err := f.fetch(&reflectionpb.ServerReflectionRequest{
				MessageRequest: &reflectionpb.ServerReflectionRequest_FileByFilename{FileByFilename: dependency}})
			if err != nil && status.Code(err) != codes.NotFound {
				return fmt.Errorf("descriptor file %s: %w", dependency, err)
			}
			if f.byName[dependency] == nil {
				f.wellKnown(dependency)
			}
		}
	}
	return nil
}

// fetch asks for files and keeps those it has not got.
func (f *fileSet) fetch(r *reflectionpb.ServerReflectionRequest) error {
	answer, err := f.ask(r)
	if err != nil {
		return err
	}
	if e := answer.GetErrorResponse(); e != nil {
		return status.Error(codes.Code(e.GetErrorCode()), e.GetErrorMessage())
	}
	for _, raw := range answer.GetFileDescriptorResponse().GetFileDescriptorProto() {
		file, err := link.ReadDescriptor(raw, &f.parts)
		if err != nil {
			return fmt.Errorf("unreadable: %w", err)
		}
		if err := f.keep(file, len(raw)); err != nil {
			return err
		}
	}
	return nil
}

func (f *fileSet) keep(file *descriptorpb.FileDescriptorProto, size int) error {
	if f.byName[file.GetName()] != nil {
		return nil
	}
	f.bytes += size
	if f.bytes > maxDescriptorBytes || len(f.order) >= maxFiles {
		return fmt.Errorf("its descriptors exceed %d MiB or %d files: list the services that are meant", maxDescriptorBytes>>20, maxFiles)
	}
	f.byName[file.GetName()] = file
	f.order = append(f.order, file)
	prefix := ""
	if p := file.GetPackage(); p != "" {
		prefix = p + "."
	}
	for _, s := range file.GetService() {
		methods := make([]string, 0, len(s.GetMethod()))
		for _, m := range s.GetMethod() {
			methods = append(methods, m.GetName())
		}
		f.count += len(methods)
		f.methods[prefix+s.GetName()] = methods
	}
	if f.count > maxMethods {
		return fmt.Errorf("its descriptors declare more than %d methods: list the services that are meant", maxMethods)
	}
	return nil
}

// wellKnown adds a file that many servers leave out, because every client is
// built with it.
func (f *fileSet) wellKnown(name string) {
	if known, err := protoregistry.GlobalFiles.FindFileByPath(name); err == nil {
		file := protodesc.ToFileDescriptorProto(known)
		_ = f.keep(file, proto.Size(file))
	}
}

func v1Stream(ctx context.Context, cc grpc.ClientConnInterface) (exchange, error) {
	stream, err := reflectionpb.NewServerReflectionClient(cc).ServerReflectionInfo(ctx, grpc.MaxCallRecvMsgSize(maxDescriptorBytes))
	if err != nil {
		return nil, err
	}
	return func(r *reflectionpb.ServerReflectionRequest) (*reflectionpb.ServerReflectionResponse, error) {
		if err := stream.Send(r); err != nil {
			_, err = stream.Recv() // says why
			return nil, err
		}
		return stream.Recv()
	}, nil
}

// v1alphaStream speaks the older version, whose messages are the same on the wire.
func v1alphaStream(ctx context.Context, cc grpc.ClientConnInterface) (exchange, error) {
	stream, err := alphapb.NewServerReflectionClient(cc).ServerReflectionInfo(ctx, grpc.MaxCallRecvMsgSize(maxDescriptorBytes))
	if err != nil {
		return nil, err
	}
	return func(r *reflectionpb.ServerReflectionRequest) (*reflectionpb.ServerReflectionResponse, error) {
		//lint:ignore SA1019 servers that have nothing newer are many
		older, newer := new(alphapb.ServerReflectionRequest), new(reflectionpb.ServerReflectionResponse)
		if err := transcode(r, older); err != nil {
			return nil, err
		}
		_ = stream.Send(older) // Recv says why it failed
		answer, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		return newer, transcode(answer, newer)
	}, nil
}

// transcode copies a message into another type with the same wire form.
func transcode(from, to proto.Message) error {
	raw, err := proto.Marshal(from)
	if err != nil {
		return err
	}
	return proto.Unmarshal(raw, to)
}

// equal reports whether two offers would be announced alike.
func (o *offer) equal(other *offer) bool {
	return slices.EqualFunc(o.services, other.services, func(a, b offered) bool {
		return a.name == b.name && slices.Equal(a.methods, b.methods)
	}) && slices.EqualFunc(o.files, other.files, func(a, b *descriptorpb.FileDescriptorProto) bool { return proto.Equal(a, b) })
}
