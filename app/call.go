package app

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	_ "google.golang.org/genproto/googleapis/rpc/errdetails" // details of errors that others send
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
)

// callVerb is a small gRPC client: it asks the server for its descriptors by
// reflection, so it needs no .proto files.
type callVerb struct {
	Method string `arg:"" optional:"" help:"package.Service/Method."`
	Body   string `arg:"" optional:"" name:"json" help:"The request as JSON; - reads it from stdin, several documents for client streaming. Default: {}."`

	Address    string        `placeholder:"HOST:PORT" default:"localhost:8443" from:"env" help:"The public port of a proxy, or unix:///PATH, a gateway's entrance (default localhost:8443; SALLYPORT_ADDRESS)."`
	CA         string        `name:"ca" placeholder:"FILE" type:"path" help:"Roots to verify it with. Default: ca.crt in the local data directory, else the system's."`
	Cert       string        `placeholder:"FILE" type:"path" help:"Client certificate chain, PEM."`
	Key        string        `placeholder:"FILE" type:"path" help:"Key of --cert, PEM."`
	ServerName string        `placeholder:"NAME" help:"Name to expect in the certificate, where it is not the host of --address."`
	APIKeyFile string        `name:"api-key-file" placeholder:"FILE" type:"path" from:"env" help:"File with an API key or a token (also SALLYPORT_API_KEY, SALLYPORT_API_KEY_FILE)."`
	Header     []string      `short:"H" sep:"none" placeholder:"NAME: VALUE" help:"Send a header; base64 for names in -bin. Repeatable."`
	Timeout    time.Duration `default:"30s" placeholder:"30s" help:"How long the call may take (default 30s)."`
	Verbose    bool          `short:"v" help:"Show headers and trailers, on stderr."`
	List       bool          `help:"List the services this caller may call, or the methods of METHOD where that is a service."`
	coreDir
	jsonFlag
}

// coreDir is --data-dir where a verb only looks for files in it.
type coreDir struct {
	DataDir string `name:"data-dir" placeholder:"DIR" help:"Local data directory (SALLYPORT_DATA_DIR)."`
}

func (callVerb) Help() string {
	return `When you want to see a call go through, with nothing else installed. Responses go to stdout, one JSON document each. A failed call says its code and message on stderr and makes the exit status 1.

Examples:

    sallyport call sallyport.demo.v1.Echo/Say '{"text":"hello"}'
    sallyport call --list
    sallyport call acme.orders.v1.Orders/Get '{"id":7}' --address api.example.org:443 --cert billing.crt --key billing.key`
}

func (v *callVerb) Run(c *cli) error {
	if v.Method == "" && !v.List {
		return wrong("call: no method was given", "name one, such as sallyport.demo.v1.Echo/Say, or look which there are with: sallyport call --list")
	}
	headers, err := v.headers(c)
	if err != nil {
		return err
	}
	conn, secure, err := v.dial(c)
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(metadata.NewOutgoingContext(c.ctx, headers), v.Timeout)
	defer cancel()
	server := &reflected{conn: conn}
	defer server.close()
	if v.List {
		return v.explain(c, secure, v.list(ctx, c, server))
	}
	service, name, ok := splitMethod(v.Method)
	if !ok {
		return wrong(fmt.Sprintf("call: %q is not a method", v.Method), "write package.Service/Method, such as sallyport.demo.v1.Echo/Say")
	}
	method, err := server.method(ctx, service, name)
	server.close()
	if err != nil {
		return v.explain(c, secure, err)
	}
	return v.explain(c, secure, v.invoke(ctx, c, server, method))
}

// splitMethod reads package.Service/Method, also with a leading slash or, as
// some people write it, with a dot before the method.
func splitMethod(s string) (service, method string, ok bool) {
	s = strings.TrimPrefix(s, "/")
	at := strings.LastIndexByte(s, '/')
	if at < 0 {
		at = strings.LastIndexByte(s, '.')
	}
	if at <= 0 || at == len(s)-1 || strings.Contains(s[:at], "/") {
		return "", "", false
	}
	return s[:at], s[at+1:], true
}

// headers are the call's metadata.
func (v *callVerb) headers(c *cli) (metadata.MD, error) {
	md := metadata.MD{}
	for _, h := range v.Header {
		name, value, ok := strings.Cut(h, ":")
		if !ok {
			name, value, ok = strings.Cut(h, "=")
		}
		name, value = strings.ToLower(strings.TrimSpace(name)), strings.TrimSpace(value)
		if !ok || name == "" {
			return nil, wrong(fmt.Sprintf("call: --header %q has no name", h), "write --header 'name: value'")
		}
		if strings.HasSuffix(name, "-bin") {
			raw, err := base64.StdEncoding.DecodeString(value)
			if err != nil {
				return nil, wrong(fmt.Sprintf("call: --header %s: its value is not base64", name), "names that end in -bin carry bytes, written as base64")
			}
			value = string(raw)
		}
		md.Append(name, value)
	}
	key := c.env("SALLYPORT_API_KEY")
	if v.APIKeyFile != "" {
		text, err := os.ReadFile(v.APIKeyFile)
		if err != nil {
			return nil, failed("call: the API key cannot be read: "+err.Error(), "")
		}
		key = string(text)
	}
	if key = strings.TrimSpace(key); key != "" {
		if len(md.Get("authorization")) > 0 {
			return nil, wrong("call: both an API key and an authorization header were given", "a call carries one authorization: leave one out")
		}
		md.Set("authorization", "Bearer "+key)
	}
	return md, nil
}

// invoke makes the call: requests are sent while responses are printed, so all
// four kinds of call work alike.
func (v *callVerb) invoke(ctx context.Context, c *cli, server *reflected, method protoreflect.MethodDescriptor) error {
	next, err := v.requests(c, server, method)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	stream, err := server.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true},
		"/"+string(method.Parent().FullName())+"/"+string(method.Name()))
	if err != nil {
		cancel()
		return err
	}
	var sent sync.WaitGroup
	var badRequest error
	sent.Go(func() {
		for {
			m, err := next()
			if errors.Is(err, io.EOF) {
				stream.CloseSend()
				return
			}
			if err != nil {
				badRequest = err
				cancel()
				return
			}
			if stream.SendMsg(m) != nil {
				return // what became of the call is said by RecvMsg
			}
		}
	})
	err = v.responses(c, stream, server, method)
	cancel()
	if v.Body != "-" {
		sent.Wait()
	}
	if badRequest != nil {
		return badRequest
	}
	return err
}

// requests reads the request documents one by one. What stands on the command
// line is read whole first, so that a mistake in it is found before anything
// is sent.
func (v *callVerb) requests(c *cli, server *reflected, method protoreflect.MethodDescriptor) (func() (proto.Message, error), error) {
	var from io.Reader = strings.NewReader(v.Body)
	switch v.Body {
	case "":
		from = strings.NewReader("{}")
	case "-":
		from = c.in
	}
	documents := json.NewDecoder(from)
	count := 0
	read := func() (proto.Message, error) {
		var raw json.RawMessage
		if err := documents.Decode(&raw); err != nil {
			if errors.Is(err, io.EOF) {
				if count == 0 && v.Body == "-" && !method.IsStreamingClient() {
					return nil, wrong("call: there was no JSON on stdin", "pipe the request in, or give it as an argument")
				}
				return nil, io.EOF
			}
			return nil, wrongf("call: request %d is not JSON: %v", count+1, err)
		}
		count++
		if count > 1 && !method.IsStreamingClient() {
			return nil, wrong("call: "+string(method.FullName())+" takes one request and there are several", "give one JSON document")
		}
		m := dynamicpb.NewMessage(method.Input())
		if err := (protojson.UnmarshalOptions{Resolver: server}).Unmarshal(raw, m); err != nil {
			return nil, wrong(fmt.Sprintf("call: request %d is not a %s: %s", count, method.Input().FullName(), protoText(err)),
				"its fields: "+fieldsOf(method.Input()))
		}
		return m, nil
	}
	if v.Body == "-" {
		return read, nil
	}
	var all []proto.Message
	for {
		m, err := read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		all = append(all, m)
	}
	return func() (proto.Message, error) {
		if len(all) == 0 {
			return nil, io.EOF
		}
		m := all[0]
		all = all[1:]
		return m, nil
	}, nil
}

// responses prints what comes back, one JSON document per response.
func (v *callVerb) responses(c *cli, stream grpc.ClientStream, server *reflected, method protoreflect.MethodDescriptor) error {
	if v.Verbose {
		if md, err := stream.Header(); err == nil {
			c.metadata("<", md)
		}
	}
	for {
		m := dynamicpb.NewMessage(method.Output())
		err := stream.RecvMsg(m)
		if err != nil {
			if v.Verbose {
				c.metadata("<< trailer", stream.Trailer())
			}
			if errors.Is(err, io.EOF) {
				return nil
			}
			return &callFailed{err: err, id: requestID(stream)}
		}
		text, err := printMessage(m, server, v.JSON)
		if err != nil {
			return err
		}
		if _, err := c.out.Write(text); err != nil {
			return err
		}
	}
}

// callFailed is a call that was made and answered with an error.
type callFailed struct {
	err error
	id  string // sallyport-request-id, if the edge gave one
}

func (f *callFailed) Error() string              { return f.err.Error() }
func (f *callFailed) Unwrap() error              { return f.err }
func (f *callFailed) GRPCStatus() *status.Status { return status.Convert(f.err) }

func requestID(stream grpc.ClientStream) string {
	for _, md := range []func() metadata.MD{stream.Trailer, func() metadata.MD { md, _ := stream.Header(); return md }} {
		if id := md().Get("sallyport-request-id"); len(id) > 0 {
			return id[0]
		}
	}
	return ""
}

// explain turns a failure into what a person reads: the cause below gRPC if
// there was no connection, else code, message, details and request id.
func (v *callVerb) explain(c *cli, secure *handshakes, err error) error {
	if err == nil {
		return nil
	}
	var p *problem
	if errors.As(err, &p) {
		return err
	}
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	if st.Code() == codes.Unavailable {
		if below := secure.explain(v.Address); below != nil {
			return below
		}
	}
	c.say("%s", c.warning(st.Code().String()+": "+oneLine(st.Message())))
	for _, d := range st.Details() {
		if m, ok := d.(proto.Message); ok {
			text, _ := printMessage(m, nil, true)
			c.say("%s %s", m.ProtoReflect().Descriptor().FullName(), strings.TrimSpace(string(text)))
		} else {
			c.say("detail: %v", d)
		}
	}
	var f *callFailed
	if errors.As(err, &f) && f.id != "" {
		c.say("request id %s: the proxy's and core's logs name it", oneLine(f.id))
	}
	if st.Code() == codes.DeadlineExceeded && c.ctx.Err() == nil {
		c.say("  → --timeout was %s", v.Timeout)
	}
	if st.Code() == codes.Unauthenticated {
		c.say("  → say who calls: --cert and --key, or --api-key-file with an API key or a token")
	}
	return quietly(1)
}

// list prints services, or the methods of one.
func (v *callVerb) list(ctx context.Context, c *cli, server *reflected) error {
	if v.Method == "" {
		services, err := server.services(ctx)
		if err != nil {
			return err
		}
		if v.JSON {
			return c.printJSON(services)
		}
		for _, s := range services {
			fmt.Fprintln(c.out, s)
		}
		return nil
	}
	service, err := server.service(ctx, strings.Trim(v.Method, "/"))
	if err != nil {
		return err
	}
	names := []string{}
	for i := range service.Methods().Len() {
		m := service.Methods().Get(i)
		names = append(names, string(service.FullName())+"/"+string(m.Name()))
	}
	if v.JSON {
		return c.printJSON(names)
	}
	for i, n := range names {
		m := service.Methods().Get(i)
		fmt.Fprintf(c.out, "%s (%s%s) returns (%s%s)\n", n, streaming(m.IsStreamingClient()), m.Input().FullName(), streaming(m.IsStreamingServer()), m.Output().FullName())
	}
	return nil
}

func streaming(yes bool) string {
	if yes {
		return "stream "
	}
	return ""
}

// metadata shows headers or trailers, never what authenticates.
func (c *cli) metadata(mark string, md metadata.MD) {
	for name, values := range md {
		for _, value := range values {
			if strings.HasSuffix(name, "-bin") {
				value = base64.StdEncoding.EncodeToString([]byte(value))
			}
			c.say("%s %s: %s", mark, oneLine(name), oneLine(value))
		}
	}
}

// printMessage is a message as JSON and a newline, on one line or indented.
// (protojson varies its white space on purpose, so it is laid out again.)
func printMessage(m proto.Message, types resolver, oneLine bool) ([]byte, error) {
	o := protojson.MarshalOptions{EmitDefaultValues: true}
	if types != nil {
		o.Resolver = types
	}
	raw, err := o.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("the answer cannot be shown as JSON: %s", protoText(err))
	}
	return layOut(raw, oneLine)
}

// protoText is an error of the protobuf library without its prefix, which
// contains a space that is sometimes wide.
func protoText(err error) string {
	_, text, found := strings.Cut(strings.ReplaceAll(err.Error(), "\u00a0", " "), "proto: ")
	if !found {
		return err.Error()
	}
	return text
}

// fieldsOf lists the fields of a message by their JSON names.
func fieldsOf(m protoreflect.MessageDescriptor) string {
	if m.Fields().Len() == 0 {
		return "none"
	}
	var names []string
	for i := range m.Fields().Len() {
		names = append(names, m.Fields().Get(i).JSONName())
	}
	return strings.Join(names, ", ")
}
