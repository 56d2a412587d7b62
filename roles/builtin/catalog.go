package builtin

import (
	"slices"
	"strings"

	"google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	alphapb "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	"sallyport/roles/link"
	"sallyport/roles/policy"
)

// Catalog is what is known of the services behind core and of those that we answer:
// the files that gateways announced, merged, and what they declare. Where two
// gateways announce different files under one name, core has chosen one; a
// file that cannot be read is left out, and the rest goes on.
type Catalog struct {
	files      map[string]*descriptorpb.FileDescriptorProto
	declares   map[string][]string         // services by file
	symbols    map[string]string           // file by full name
	services   map[string]*serviceEntry    // by full name
	extensions map[string]map[int32]string // file by extended message and number
}

type serviceEntry struct {
	methods []string
}

// NewCatalog reads the descriptors that gateways announced and adds our own.
func NewCatalog(descriptors [][]byte) *Catalog {
	c := &Catalog{
		files: make(map[string]*descriptorpb.FileDescriptorProto), declares: make(map[string][]string),
		symbols: make(map[string]string), services: make(map[string]*serviceEntry), extensions: make(map[string]map[int32]string),
	}
	for _, own := range []protoreflect.FileDescriptor{grpc_health_v1.File_grpc_health_v1_health_proto,
		reflectionpb.File_grpc_reflection_v1_reflection_proto, alphapb.File_grpc_reflection_v1alpha_reflection_proto} {
		c.add(protodesc.ToFileDescriptorProto(own))
	}
	parts := maxParts
	for _, raw := range descriptors {
		if file, err := link.ReadDescriptor(raw, &parts); err == nil {
			c.add(file)
		}
	}
	return c
}

const (
	maxParts  = 2 * link.MaxDescriptorParts // of all files together
	maxSymbol = 512                         // bytes of a full name; longer ones are not found by it
)

func (c *Catalog) add(file *descriptorpb.FileDescriptorProto) {
	if c.files[file.GetName()] != nil {
		return
	}
	file.SourceCodeInfo = nil // its paths would not fit a file with services left out
	c.files[file.GetName()] = file
	prefix := ""
	if p := file.GetPackage(); p != "" {
		prefix = p + "."
	}
	for _, s := range file.GetService() {
		name := prefix + s.GetName()
		if c.services[name] != nil || len(name) > maxSymbol {
			continue
		}
		entry := &serviceEntry{}
		for _, m := range s.GetMethod() {
			entry.methods = append(entry.methods, m.GetName())
			c.symbol(name+"."+m.GetName(), file)
		}
		c.services[name] = entry
		c.declares[file.GetName()] = append(c.declares[file.GetName()], name)
		c.symbol(name, file)
	}
	c.messages(prefix, file.GetMessageType(), file)
	c.enums(prefix, file.GetEnumType(), file)
	c.extend(prefix, file.GetExtension(), file)
}

func (c *Catalog) symbol(name string, file *descriptorpb.FileDescriptorProto) {
	if len(name) > maxSymbol {
		return
	}
	if _, taken := c.symbols[name]; !taken {
		c.symbols[name] = file.GetName()
	}
}

func (c *Catalog) messages(prefix string, messages []*descriptorpb.DescriptorProto, file *descriptorpb.FileDescriptorProto) {
	for _, m := range messages {
		name := prefix + m.GetName()
		if len(name) > maxSymbol {
			continue
		}
		c.symbol(name, file)
		for _, f := range m.GetField() {
			c.symbol(name+"."+f.GetName(), file)
		}
		for _, o := range m.GetOneofDecl() {
			c.symbol(name+"."+o.GetName(), file)
		}
		c.messages(name+".", m.GetNestedType(), file)
		c.enums(name+".", m.GetEnumType(), file)
		c.extend(name+".", m.GetExtension(), file)
	}
}

func (c *Catalog) enums(prefix string, enums []*descriptorpb.EnumDescriptorProto, file *descriptorpb.FileDescriptorProto) {
	for _, e := range enums {
		c.symbol(prefix+e.GetName(), file)
		for _, v := range e.GetValue() { // enum values live beside their enum
			c.symbol(prefix+v.GetName(), file)
		}
	}
}

func (c *Catalog) extend(prefix string, extensions []*descriptorpb.FieldDescriptorProto, file *descriptorpb.FileDescriptorProto) {
	for _, e := range extensions {
		c.symbol(prefix+e.GetName(), file)
		extendee := e.GetExtendee()
		if len(extendee) > 0 && extendee[0] == '.' {
			extendee = extendee[1:]
		}
		if c.extensions[extendee] == nil {
			c.extensions[extendee] = make(map[int32]string)
		}
		if _, taken := c.extensions[extendee][e.GetNumber()]; !taken {
			c.extensions[extendee][e.GetNumber()] = file.GetName()
		}
	}
}

// Excerpt is the part of a catalog that one caller may see: the services of
// which he may call a method, the methods he may call, and the files they need.
type Excerpt struct {
	catalog *Catalog
	methods map[string]map[string]bool // by service
	visible map[string]bool            // files
	bare    []string                   // services without a file
}

// Nothing is what nobody is shown anything by.
func Nothing() *Excerpt { return &Excerpt{catalog: &Catalog{}} }

// Shown is what a caller sees: what he may call of what is served. A file may
// declare more than its gateway serves, and a service may have no file. served are
// the services, or package patterns, that gateways serve.
func (c *Catalog) Shown(served map[string]bool, p *policy.Policy, caller policy.Caller) *Excerpt {
	e := c.excerpt(func(path string) bool {
		service, _, _ := strings.Cut(path[1:], "/")
		_, known := served[service]
		return (known || Own(path)) && p.Decide(path, caller).Allowed
	})
	for service := range served {
		if c.services[service] == nil && p.Opens(service, caller) {
			e.bare = append(e.bare, service)
		}
	}
	return e
}

// excerpt asks allowed about every method.
func (c *Catalog) excerpt(allowed func(path string) bool) *Excerpt {
	e := &Excerpt{catalog: c, methods: make(map[string]map[string]bool), visible: make(map[string]bool)}
	for name, service := range c.services {
		for _, m := range service.methods {
			if allowed("/" + name + "/" + m) {
				if e.methods[name] == nil {
					e.methods[name] = make(map[string]bool)
				}
				e.methods[name][m] = true
			}
		}
		if e.methods[name] != nil {
			e.see(c.symbols[name])
		}
	}
	return e
}

// see makes a file and what it depends on visible.
func (e *Excerpt) see(name string) {
	todo := []string{name}
	for len(todo) > 0 {
		name, todo = todo[len(todo)-1], todo[:len(todo)-1]
		file := e.catalog.files[name]
		if file == nil || e.visible[name] {
			continue
		}
		e.visible[name] = true
		todo = append(todo, file.GetDependency()...)
	}
}

// names lists the services the caller may call something of.
func (e *Excerpt) names() []string {
	names := slices.Clone(e.bare)
	for name := range e.methods {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// fileOf is the file that declares symbol, or "" if there is none for this caller.
func (e *Excerpt) fileOf(symbol string) string {
	name := e.catalog.symbols[symbol]
	if !e.visible[name] {
		return ""
	}
	for _, service := range e.catalog.declares[name] {
		if symbol == service && e.methods[service] == nil {
			return ""
		}
		if method, ok := cutService(symbol, service); ok && !e.methods[service][method] {
			return ""
		}
	}
	return name
}

// cutService reports whether symbol is a method of service, and which.
func cutService(symbol, service string) (string, bool) {
	if len(symbol) > len(service)+1 && symbol[:len(service)] == service && symbol[len(service)] == '.' {
		return symbol[len(service)+1:], true
	}
	return "", false
}

// file is a file as this caller may see it: without the services and methods
// he may not call.
func (e *Excerpt) file(name string) *descriptorpb.FileDescriptorProto {
	whole := e.catalog.files[name]
	if len(whole.GetService()) == 0 {
		return whole
	}
	part := proto.CloneOf(whole)
	prefix := ""
	if p := part.GetPackage(); p != "" {
		prefix = p + "."
	}
	part.Service = slices.DeleteFunc(part.Service, func(s *descriptorpb.ServiceDescriptorProto) bool {
		callable := e.methods[prefix+s.GetName()]
		s.Method = slices.DeleteFunc(s.Method, func(m *descriptorpb.MethodDescriptorProto) bool { return !callable[m.GetName()] })
		return callable == nil
	})
	return part
}
