package e2e

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

const smuggleMethod = "/smuggle.v1.Target/Public"

const smugglePolicy = `
[methods]
"/smuggle.v1.Target/Public" = ["public"]
"/smuggle.v1.Target/Secret" = ["admin"]
`

// recorder is an upstream that answers every request with OK and keeps what it
// saw, as text, byte for byte.
type recorder struct {
	mu   sync.Mutex
	seen []string
}

func (r *recorder) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if strings.HasPrefix(req.RequestURI, "/grpc.health.") || strings.HasPrefix(req.RequestURI, "/grpc.reflection.") {
		w.Header().Set("content-type", "application/grpc") // the gateway's own questions
		w.Header().Set("grpc-status", "12")
		return
	}
	var body bytes.Buffer
	body.ReadFrom(req.Body)
	r.mu.Lock()
	r.seen = append(r.seen, fmt.Sprintf("%s %s host=%s header=%v trailer=%v", req.Method, req.RequestURI, req.Host, req.Header, req.Trailer))
	r.mu.Unlock()
	w.Header().Set("content-type", "application/grpc")
	w.Header().Set("sallyport-caller", "upstream-says-so")
	w.Header().Set("trailer", "grpc-status, sallyport-permissions")
	w.Write([]byte{0, 0, 0, 0, 0})
	w.Header().Set("grpc-status", "0")
	w.Header().Set("sallyport-permissions", "upstream-says-so")
}

func (r *recorder) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.seen
	r.seen = nil
	return s
}

func startRecorder(t *testing.T) (*recorder, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &recorder{}
	s := &http.Server{Handler: r, Protocols: new(http.Protocols)}
	s.Protocols.SetUnencryptedHTTP2(true)
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return r, l.Addr().String()
}

// rawCall writes one request as it stands and returns everything that came
// back about it, as text.
func rawCall(t *testing.T, d *deployment, fields, trailers [][2]string) string {
	t.Helper()
	pool := x509.NewCertPool()
	pem, err := os.ReadFile(d.caFile)
	if err != nil {
		t.Fatal(err)
	}
	pool.AppendCertsFromPEM(pem)
	c, err := tls.Dial("tcp", d.public, &tls.Config{RootCAs: pool, ServerName: "localhost", NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	c.Write([]byte(http2.ClientPreface))
	fr := http2.NewFramer(c, c)
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	fr.WriteSettings()
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, f := range fields {
		enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true})
	fr.WriteData(1, len(trailers) == 0, []byte{0, 0, 0, 0, 0})
	if len(trailers) > 0 {
		block.Reset()
		for _, f := range trailers {
			enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
		}
		fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: true})
	}
	var got strings.Builder
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			fmt.Fprintf(&got, "[end %v]", err)
			return got.String()
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			for _, h := range f.Fields {
				fmt.Fprintf(&got, "%s=%s ", h.Name, h.Value)
			}
			if f.StreamEnded() {
				return got.String()
			}
		case *http2.RSTStreamFrame:
			fmt.Fprintf(&got, "[reset %v]", f.ErrCode)
			return got.String()
		case *http2.GoAwayFrame:
			fmt.Fprintf(&got, "[goaway %v %s]", f.ErrCode, f.DebugData())
		case *http2.DataFrame:
			if f.StreamEnded() {
				return got.String()
			}
		}
	}
}

func request(path string, extra ...[2]string) [][2]string {
	return append([][2]string{{":method", "POST"}, {":scheme", "https"}, {":path", path}, {":authority", "localhost"},
		{"content-type", "application/grpc"}, {"te", "trailers"}}, extra...)
}

func TestSmuggling(t *testing.T) {
	rec, addr := startRecorder(t)
	d := deploy(t, smugglePolicy)
	d.addGateway("office", nil, "SALLYPORT_UPSTREAM=target="+addr+"=smuggle.v1.Target")
	d.waitRouted("smuggle.v1.Target", "office")

	// What passes is what was meant to pass.
	got := rawCall(t, d, request(smuggleMethod, [2]string{"x-own", "kept"}), nil)
	seen := rec.take()
	if !strings.Contains(got, "grpc-status=0") || len(seen) != 1 || !strings.Contains(seen[0], "X-Own:[kept]") {
		t.Fatalf("the honest call: %s\nupstream saw %q", got, seen)
	}
	if strings.Contains(got, "upstream-says-so") {
		t.Errorf("sallyport- fields of the upstream reached the client: %s", got)
	}
	if !strings.Contains(got, "sallyport-request-id=") {
		t.Errorf("no request id in %s", got)
	}

	// Fields that may be dropped or refused, but never arrive.
	for name, c := range map[string]struct{ fields, trailers [][2]string }{
		"header":             {fields: request(smuggleMethod, [2]string{"sallyport-caller", "evil"})},
		"header twice":       {fields: request(smuggleMethod, [2]string{"sallyport-caller", "evil"}, [2]string{"sallyport-caller", "evil2"})},
		"upper case":         {fields: request(smuggleMethod, [2]string{"Sallyport-Caller", "evil"})},
		"underscore":         {fields: request(smuggleMethod, [2]string{"sallyport_caller", "evil"})},
		"mixed underscore":   {fields: request(smuggleMethod, [2]string{"sallyport_client-cert", "evil"})},
		"trailer":            {fields: request(smuggleMethod), trailers: [][2]string{{"sallyport-caller", "evil"}}},
		"other trailer":      {fields: request(smuggleMethod), trailers: [][2]string{{"x-evil", "evil"}}},
		"client certificate": {fields: request(smuggleMethod, [2]string{"sallyport-client-cert", "evil"})},
		"permissions":        {fields: request(smuggleMethod, [2]string{"sallyport-permissions", "evil"})},
		"request id":         {fields: request(smuggleMethod, [2]string{"sallyport-request-id", "evil"})},
		"forwarded":          {fields: request(smuggleMethod, [2]string{"forwarded", "for=evil"})},
		"x-forwarded-for":    {fields: request(smuggleMethod, [2]string{"x-forwarded-for", "evil"})},
		"x-real-ip":          {fields: request(smuggleMethod, [2]string{"x-real-ip", "evil"})},
		"connection":         {fields: request(smuggleMethod, [2]string{"connection", "evil"})},
		"transfer-encoding":  {fields: request(smuggleMethod, [2]string{"transfer-encoding", "evil"})},
		"te":                 {fields: request(smuggleMethod, [2]string{"te", "evil"})},
		"control character":  {fields: request(smuggleMethod, [2]string{"x-a", "b\r\nsallyport-caller: evil"})},
		"authority":          {fields: [][2]string{{":method", "POST"}, {":scheme", "https"}, {":path", smuggleMethod}, {":authority", "evil"}, {"content-type", "application/grpc"}, {"te", "trailers"}}},
		"host":               {fields: request(smuggleMethod, [2]string{"host", "evil"})},
	} {
		t.Run("field/"+name, func(t *testing.T) {
			got := rawCall(t, d, c.fields, c.trailers)
			for _, s := range rec.take() {
				if strings.Contains(strings.ToLower(s), "evil") {
					t.Errorf("reached the upstream: %s", s)
				}
			}
			if strings.Contains(got, "grpc-status=0") && strings.Contains(got, "evil") {
				t.Errorf("came back: %s", got)
			}
		})
	}

	// Requests that must be refused whole.
	refused := map[string][][2]string{
		"double slash":           request("//smuggle.v1.Target/Public"),
		"inner double slash":     request("/smuggle.v1.Target//Public"),
		"percent":                request("/smuggle.v1.Target/%50ublic"),
		"percent slash":          request("/smuggle.v1.Target%2FPublic"),
		"missing service":        request("/Public"),
		"empty service":          request("//Public"),
		"trailing slash":         request("/smuggle.v1.Target/Public/"),
		"query":                  request("/smuggle.v1.Target/Public?x=1"),
		"fragment":               request("/smuggle.v1.Target/Public#x"),
		"dot segments":           request("/smuggle.v1.Target/../smuggle.v1.Target/Public"),
		"case":                   request("/smuggle.v1.target/public"),
		"absolute":               request("https://localhost/smuggle.v1.Target/Public"),
		"empty":                  request(""),
		"asterisk":               request("*"),
		"secret":                 request("/smuggle.v1.Target/Secret"),
		"path twice":             append([][2]string{{":path", "/smuggle.v1.Target/Secret"}}, request(smuggleMethod)...),
		"get":                    {{":method", "GET"}, {":scheme", "https"}, {":path", smuggleMethod}, {":authority", "localhost"}, {"content-type", "application/grpc"}, {"te", "trailers"}},
		"two authorizations":     request(smuggleMethod, [2]string{"authorization", "Bearer a"}, [2]string{"authorization", "Bearer b"}),
		"bad credentials":        request(smuggleMethod, [2]string{"authorization", "Bearer nonsense"}),
		"pseudo after regular":   append(request(smuggleMethod), [2]string{":path", "/smuggle.v1.Target/Secret"}),
		"unknown pseudo":         append([][2]string{{":evil", "x"}}, request(smuggleMethod)...),
		"content type of others": {{":method", "POST"}, {":scheme", "https"}, {":path", smuggleMethod}, {":authority", "localhost"}, {"content-type", "text/plain"}, {"te", "trailers"}},
	}
	for name, fields := range refused {
		t.Run("refused/"+name, func(t *testing.T) {
			got := rawCall(t, d, fields, nil)
			if seen := rec.take(); len(seen) != 0 {
				t.Errorf("reached the upstream: %q", seen)
			}
			if strings.Contains(got, "grpc-status=0") || got == "" {
				t.Errorf("not refused: %q", got)
			}
		})
	}
}
