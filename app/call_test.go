package app

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"
	reflectionv1alpha "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"sallyport/acme/pki"
	"sallyport/roles/gateway/demo"
)

// echo is a server of our own for call: all four kinds, errors with details,
// and the headers it was sent.
type echo struct {
	demo.UnimplementedEchoServer
}

func (echo) Say(ctx context.Context, in *demo.SayRequest) (*demo.SayResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	switch in.GetText() {
	case "fail":
		grpc.SetTrailer(ctx, metadata.Pairs("sallyport-request-id", "id-1"))
		st, _ := status.New(codes.ResourceExhausted, "too\nmany").WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(time.Second)})
		return nil, st.Err()
	case "sleep":
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return &demo.SayResponse{Text: in.GetText(), Caller: strings.Join(append(md.Get("authorization"), md.Get("x-data-bin")...), ",")}, nil
}

func (echo) Count(in *demo.CountRequest, s grpc.ServerStreamingServer[demo.SayResponse]) error {
	for i := range in.GetTo() {
		if err := s.Send(&demo.SayResponse{Text: string('a' + rune(i))}); err != nil {
			return err
		}
	}
	return nil
}

func (echo) Gather(s grpc.ClientStreamingServer[demo.SayRequest, demo.GatherResponse]) error {
	out := &demo.GatherResponse{}
	for {
		in, err := s.Recv()
		if err != nil {
			return s.SendAndClose(out)
		}
		out.Count++
		out.Text += in.GetText()
	}
}

func (echo) Chat(s grpc.BidiStreamingServer[demo.SayRequest, demo.SayResponse]) error {
	for {
		in, err := s.Recv()
		if err != nil {
			return nil
		}
		if err := s.Send(&demo.SayResponse{Text: in.GetText() + "!"}); err != nil {
			return err
		}
	}
}

// testServer serves echo with a certificate for localhost.
func testServer(t *testing.T, with func(*grpc.Server)) (address, ca string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, _ := x509.ParseCertificate(der)
	ca = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pki.MarshalCertificatesPEM([]*x509.Certificate{cert}), 0o644); err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})))
	demo.RegisterEchoServer(server, echo{})
	with(server)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); server.Serve(l) }()
	t.Cleanup(func() { server.Stop(); <-done })
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return "localhost:" + port, ca
}

func both(s *grpc.Server) { reflection.Register(s) }

func onlyAlpha(s *grpc.Server) {
	reflectionv1alpha.RegisterServerReflectionServer(s, reflection.NewServer(reflection.ServerOptions{Services: s}))
}

func TestCallEveryKind(t *testing.T) {
	for name, register := range map[string]func(*grpc.Server){"v1": both, "v1alpha": onlyAlpha} {
		t.Run(name, func(t *testing.T) {
			address, ca := testServer(t, register)
			for _, c := range []struct{ method, body, stdin, want string }{
				{"sallyport.demo.v1.Echo/Say", `{"text":"hello"}`, "", `"text": "hello"`},
				{"/sallyport.demo.v1.Echo/Say", `-`, `{"text":"piped"}`, `"text": "piped"`},
				{"sallyport.demo.v1.Echo.Say", ``, "", `"text": ""`},
				{"sallyport.demo.v1.Echo/Count", `{"to":3}`, "", `"text": "c"`},
				{"sallyport.demo.v1.Echo/Gather", `{"text":"x"} {"text":"y"}`, "", `"text": "xy"`},
				{"sallyport.demo.v1.Echo/Gather", `-`, "{\"text\":\"x\"}\n{\"text\":\"z\"}", `"count": 2`},
				{"sallyport.demo.v1.Echo/Chat", `-`, `{"text":"x"}{"text":"z"}`, `"text": "z!"`},
			} {
				status, out, errs := run(t, nil, c.stdin, "call", c.method, c.body, "--address", address, "--ca", ca)
				if status != 0 || errs != "" || !strings.Contains(out, c.want) {
					t.Errorf("%s %s: exit status %d\n%s%s", c.method, c.body, status, out, errs)
				}
			}
			_, out, _ := run(t, nil, "", "call", "--list", "--address", address, "--ca", ca)
			if !strings.Contains(out, "sallyport.demo.v1.Echo\n") {
				t.Errorf("--list: %s", out)
			}
			_, out, _ = run(t, nil, "", "call", "--list", "sallyport.demo.v1.Echo", "--address", address, "--ca", ca)
			if !strings.Contains(out, "sallyport.demo.v1.Echo/Chat (stream sallyport.demo.v1.SayRequest) returns (stream sallyport.demo.v1.SayResponse)\n") {
				t.Errorf("--list of a service: %s", out)
			}
		})
	}
}

func TestCallJSONIsOneLineEach(t *testing.T) {
	address, ca := testServer(t, both)
	_, out, _ := run(t, nil, "", "call", "sallyport.demo.v1.Echo/Count", `{"to":3}`, "--json", "--address", address, "--ca", ca)
	if strings.Count(out, "\n") != 3 || !strings.HasPrefix(out, `{"text":"a"`) {
		t.Errorf("got %s", out)
	}
}

func TestCallSaysWhatFailed(t *testing.T) {
	address, ca := testServer(t, both)
	_, strangerCA := testServer(t, both)
	none, noneCA := testServer(t, func(*grpc.Server) {})
	closed := freePort()
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	go func() {
		for {
			nc, err := plain.Accept()
			if err != nil {
				return
			}
			nc.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
			nc.Close()
		}
	}()
	at := []string{"--address", address, "--ca", ca}
	const say = "sallyport.demo.v1.Echo/Say"
	for _, c := range []struct {
		args   []string
		status int
		want   []string
	}{
		{append([]string{say, `{"text":"fail"}`}, at...), 1, []string{"ResourceExhausted: too many", "google.rpc.RetryInfo", `"retryDelay":"1s"`, "id-1"}},
		{append([]string{say, `{"text":"sleep"}`, "--timeout", "100ms"}, at...), 1, []string{"DeadlineExceeded", "--timeout was 100ms"}},
		{append([]string{say, `{"txt":1}`}, at...), 2, []string{"request 1", "its fields: text"}},
		{append([]string{say, `{`}, at...), 2, []string{"request 1 is not JSON"}},
		{append([]string{say, `{}{}`}, at...), 2, []string{"takes one request"}},
		{append([]string{say, "-"}, at...), 2, []string{"no JSON on stdin"}},
		{append([]string{"sallyport.demo.v1.Echo/Sy", `{}`}, at...), 1, []string{"no method Sy", "Say, Count, Gather, Chat"}},
		{append([]string{"sallyport.demo.v1.Ekko/Say", `{}`}, at...), 1, []string{"no service sallyport.demo.v1.Ekko", "sallyport.demo.v1.Echo"}},
		{append([]string{"nonsense", `{}`}, at...), 2, []string{"is not a method"}},
		{at, 2, []string{"no method was given", "--list"}},
		{[]string{say, "{}", "--address", address, "--ca", strangerCA}, 1, []string{"an authority that is not in", "ca export"}},
		{[]string{say, "{}", "--address", address}, 1, []string{"authority this machine does not know", "ca export"}},
		{[]string{say, "{}", "--address", strings.Replace(address, "localhost", "127.0.0.1", 1), "--ca", ca}, 1, []string{"127.0.0.1"}},
		{[]string{say, "{}", "--address", closed, "--ca", ca}, 1, []string{"nothing listens at " + closed}},
		{[]string{say, "{}", "--address", plain.Addr().String(), "--ca", ca}, 1, []string{"TLS"}},
		{[]string{say, "{}", "--address", none, "--ca", noneCA}, 1, []string{"no reflection service", ".proto"}},
		{[]string{say, "{}", "--address", "localhost", "--ca", ca}, 2, []string{"HOST:PORT"}},
		{append([]string{say, "{}", "--cert", ca}, at...), 2, []string{"--cert and --key belong together"}},
		{append([]string{say, "{}", "-H", "nonsense"}, at...), 2, []string{"has no name"}},
		{append([]string{say, "{}", "-H", "x-bin: ***"}, at...), 2, []string{"base64"}},
	} {
		status, out, errs := run(t, nil, "", append([]string{"call"}, c.args...)...)
		if status != c.status || out != "" {
			t.Errorf("%q: exit status %d, want %d; stdout %q", c.args, status, c.status, out)
		}
		for _, want := range c.want {
			if !strings.Contains(errs, want) {
				t.Errorf("%q: stderr lacks %q:\n%s", c.args, want, errs)
			}
		}
	}
}

func TestCallHeadersAndKey(t *testing.T) {
	address, ca := testServer(t, both)
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte("spk_from_file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	call := func(environ []string, args ...string) (string, string) {
		_, out, errs := run(t, environ, "", append([]string{"call", "sallyport.demo.v1.Echo/Say", "--address", address, "--ca", ca}, args...)...)
		return out, errs
	}
	for want, args := range map[string][][]string{
		"Bearer spk_from_file": {nil, {"--api-key-file", file}},
		"Bearer spk_env":       {{"SALLYPORT_API_KEY=spk_env"}, {}},
		"Basic x":              {nil, {"--header", "Authorization: Basic x"}},
		"abc":                  {nil, {"-H", "x-data-bin: YWJj"}},
	} {
		if out, errs := call(args[0], args[1]...); !strings.Contains(out, `"caller": "`+want) {
			t.Errorf("%s: %s%s", want, out, errs)
		}
	}
	if out, _ := call([]string{"SALLYPORT_API_KEY_FILE=" + file}); !strings.Contains(out, "spk_from_file") {
		t.Errorf("SALLYPORT_API_KEY_FILE: %s", out)
	}
	if _, errs := call([]string{"SALLYPORT_API_KEY=spk_env"}, "-H", "authorization: Basic x"); !strings.Contains(errs, "one authorization") {
		t.Errorf("two authorizations: %s", errs)
	}
}

func TestSplitMethod(t *testing.T) {
	for text, want := range map[string]string{"a.b.C/D": "a.b.C D", "/a.b.C/D": "a.b.C D", "a.b.C.D": "a.b.C D", "C/D": "C D"} {
		service, method, ok := splitMethod(text)
		if !ok || service+" "+method != want {
			t.Errorf("%s: %s %s %v", text, service, method, ok)
		}
	}
	for _, text := range []string{"", "/", "a/", "/a", "a", "a/b/c", "//a/b"} {
		if s, m, ok := splitMethod(text); ok {
			t.Errorf("%q is %s %s", text, s, m)
		}
	}
}
