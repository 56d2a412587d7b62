package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/proto"

	"sallyport/configs"
	"sallyport/roles/control"
	"sallyport/roles/gateway/demo"
	"sallyport/roles/relay"
)

// browser is a client of gRPC-Web in Go, of one version of HTTP.
type browser struct {
	t       *testing.T
	address string
	version int
	client  *http.Client
}

func (r *running) browser(version int) *browser {
	transport := &http.Transport{TLSClientConfig: r.tls(nil), ForceAttemptHTTP2: version == 2}
	r.t.Cleanup(transport.CloseIdleConnections)
	return &browser{t: r.t, address: r.info.PublicAddress, version: version, client: &http.Client{Transport: transport, Timeout: 20 * time.Second}}
}

// do sends a request as it is and reads the answer.
func (b *browser) do(method, path string, body []byte, header ...string) (*http.Response, string) {
	b.t.Helper()
	request, err := http.NewRequestWithContext(b.t.Context(), method, "https://"+b.address, bytes.NewReader(body))
	if err != nil {
		b.t.Fatal(err)
	}
	request.URL.Opaque = path
	if strings.HasPrefix(path, "//") {
		request.URL.Opaque = "//" + b.address + path // as net/http writes it, this is the path
	}
	for i := 0; i < len(header); i += 2 {
		request.Header.Add(header[i], header[i+1])
	}
	answer, err := b.client.Do(request)
	if err != nil {
		b.t.Fatalf("HTTP/%d %s %s: %v", b.version, method, path, err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil || answer.ProtoMajor != b.version {
		b.t.Fatalf("HTTP/%d %s %s: %s %v", b.version, method, path, answer.Proto, err)
	}
	return answer, string(text)
}

func frame(m proto.Message) []byte {
	b, _ := proto.Marshal(m)
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(b))), b...)
}

// call makes a call and returns its messages and its trailers.
func (b *browser) call(path string, in proto.Message, header ...string) (*http.Response, []string, string) {
	b.t.Helper()
	return b.callAs("application/grpc-web+proto", path, in, header...)
}

func (b *browser) callAs(kind, path string, in proto.Message, header ...string) (*http.Response, []string, string) {
	b.t.Helper()
	body := frame(in)
	text := strings.Contains(kind, "-text")
	if text {
		body = []byte(base64.StdEncoding.EncodeToString(body))
	}
	answer, got := b.do("POST", path, body, append(header, "content-type", kind)...)
	if answer.StatusCode != 200 || answer.Header.Get("content-type") != kind {
		b.t.Fatalf("HTTP/%d %s: %s, %s: %q", b.version, path, answer.Status, answer.Header.Get("content-type"), got)
	}
	if text {
		got = string(unpadded(b.t, got))
	}
	var messages []string
	for len(got) >= 5 {
		n := int(binary.BigEndian.Uint32([]byte(got[1:])))
		if len(got) < 5+n {
			b.t.Fatalf("HTTP/%d %s: cut: %q", b.version, path, got)
		}
		if got[0] == 0x80 {
			return answer, messages, got[5 : 5+n]
		}
		messages = append(messages, got[5:5+n])
		got = got[5+n:]
	}
	b.t.Fatalf("HTTP/%d %s: no trailers: %q", b.version, path, got)
	return nil, nil, ""
}

// unpadded takes base64 off that was put on piece by piece.
func unpadded(t *testing.T, text string) (plain []byte) {
	t.Helper()
	for ; len(text) >= 4; text = text[4:] {
		piece, err := base64.StdEncoding.DecodeString(text[:4])
		if err != nil {
			t.Fatal(err)
		}
		plain = append(plain, piece...)
	}
	return plain
}

// webProxy is a joined proxy with origins that may call.
func webProxy(t *testing.T, core *fakeCore, more ...func(*configs.Proxy)) *running {
	t.Helper()
	s := configs.Proxy{Join: core.token.String()}
	for _, text := range []string{"https://app.example.org", "https://*.apps.example.org:8443", "http://localhost:3000"} {
		o, problem, _ := configs.ParseOrigin(text)
		if problem != "" {
			t.Fatal(problem)
		}
		s.CORSOrigins = append(s.CORSOrigins, o)
	}
	for _, f := range more {
		f(&s)
	}
	r := runProxy(t, core, s)
	core.join(r.info.GRPCAddress)
	core.connect(r.info.GRPCAddress)
	r.until(true)
	return r
}

const sayMethod, chatMethod, healthCheck = "/" + echoName + "/Say", "/" + echoName + "/Chat", "/grpc.health.v1.Health/Check"

// TestWebIsGuarded: by gRPC-Web, in either version of HTTP and either mode, the
// same is open and the same closed as natively, and what is asked for under
// other spellings is nothing.
func TestWebIsGuarded(t *testing.T) {
	core := newFakeCore(t)
	key := core.apiKey("ci", time.Time{})
	r := webProxy(t, core)
	for _, version := range []int{1, 2} {
		b := r.browser(version)
		for _, kind := range []string{"application/grpc-web", "application/grpc-web+proto", "application/grpc-web-text", "application/grpc-web-text+proto"} {
			for _, c := range []struct {
				path, auth, want string
			}{
				{healthCheck, "", "grpc-status: 0"},
				{sayMethod, "", "grpc-status: 16"},
				{sayMethod, "Bearer " + key, "grpc-status: 0"},
				{sayMethod, "Bearer spk_wrong", "grpc-status: 16"},
				{"/" + echoName + "/Count", "", "grpc-status: 16"}, // a stream, without a row
				{"/" + echoName + "/Count", "Bearer " + key, "grpc-status: 7"},
				{"/acme.v1.Nothing/Here", "Bearer " + key, "grpc-status: 7"},
				{chatMethod, "", "grpc-status: 0"},
				{chatMethod, "Bearer spk_wrong", "grpc-status: 16"},
			} {
				header := []string{"cookie", "authorization=Bearer " + key, "x-grpc-web", "1", "x-user-agent", "grpc-web-javascript/0.1"}
				if c.auth != "" {
					header = append(header, "authorization", c.auth)
				}
				var in proto.Message = &demo.SayRequest{Text: "hello"}
				if c.path == healthCheck {
					in = &healthpb.HealthCheckRequest{}
				}
				_, messages, trailers := b.callAs(kind, c.path, in, header...)
				if !strings.HasPrefix(trailers, c.want+"\r\n") || (len(messages) == 1) != (c.want == "grpc-status: 0") {
					t.Errorf("HTTP/%d %s %s with %q: %q, %d messages; want %s", version, kind, c.path, c.auth, trailers, len(messages), c.want)
				}
				if !strings.Contains(c.want, " 0") && !strings.Contains(trailers, relay.HeaderRequestID+": ") {
					t.Errorf("HTTP/%d %s: a denial without a request id: %q", version, c.path, trailers)
				}
			}
		}
		for len(core.calls) > 0 {
			got := <-core.calls
			if c := get(got, "cookie") + get(got, "x-grpc-web") + get(got, "accept-encoding") + get(got, "content-length"); c != "" || !strings.HasPrefix(get(got, "content-type"), "application/grpc") ||
				strings.Contains(get(got, "content-type"), "web") || get(got, "x-user-agent") == "" || get(got, relay.HeaderSource) != "127.0.0.1" {
				t.Errorf("core got %v", got)
			}
		}
		for _, path := range []string{"/" + echoName + "//Say", "/" + echoName + "/Say/", "/" + echoName + "/Say?x", "/" + echoName + "/%53ay", "/" + echoName + "%2FSay",
			"/x/../" + echoName + "/Say", "/./" + echoName + "/Say", "/" + echoName + "/Say%00", "/" + echoName + "/Say;x", "/" + echoName + "\\Say", "/" + echoName + "./Say", "/" + echoName + "/Say%20"} {
			if _, _, trailers := b.call(path, &demo.SayRequest{}, "authorization", "Bearer "+key); !strings.HasPrefix(trailers, "grpc-status: 12\r\n") {
				t.Errorf("HTTP/%d %s: %q", version, path, trailers)
			}
		}
		for _, path := range []string{"/" + echoName + "/say", "/" + strings.ToUpper(echoName) + "/Say", "/" + echoName + "/SAY", "/grpc.health.v1.health/Check", "/grpc.health.v1.Health/check_"} {
			if _, _, trailers := b.call(path, &demo.SayRequest{}, "authorization", "Bearer "+key); !strings.HasPrefix(trailers, "grpc-status: 7\r\n") {
				if !strings.HasPrefix(path, "/grpc.health.v1.Health/") || !strings.HasPrefix(trailers, "grpc-status: 12\r\n") { // of the proxy itself, and not there
					t.Errorf("HTTP/%d %s: %q", version, path, trailers)
				}
			}
		}
		if n := len(core.calls); n != 0 {
			t.Errorf("HTTP/%d: %d tricked calls reached core", version, n)
		}
		if _, _, trailers := b.call(sayMethod, &demo.SayRequest{}, "authorization", "Bearer "+key, "authorization", "Bearer "+key); !strings.HasPrefix(trailers, "grpc-status: 16\r\n") {
			t.Errorf("HTTP/%d, two keys: %q", version, trailers)
		}
	}
}

// TestTargetsThatAreNoPath: what HTTP/1.1 can ask for beside a path.
func TestTargetsThatAreNoPath(t *testing.T) {
	core := newFakeCore(t)
	key := core.apiKey("ci", time.Time{})
	r := webProxy(t, core)
	body := string(frame(&demo.SayRequest{Text: "x"}))
	for line, want := range map[string]string{
		"POST //" + echoName + "/Say HTTP/1.1":          "200",
		"POST https://x/" + echoName + "/Say HTTP/1.1":  "200",
		"POST " + echoName + "/Say HTTP/1.1":            "400",
		"POST * HTTP/1.1":                               "200",
		"CONNECT x:443 HTTP/1.1":                        "405",
		"OPTIONS * HTTP/1.1":                            "204",
		"POST /" + echoName + "/Say HTTP/1.0":           "200",
		"POST /" + echoName + "/Say HTTP/2.0":           "505",
		"POST /" + echoName + "/Say\tHTTP/1.1":          "400",
		"POST /" + echoName + "/Say HTTP/1.1\r\nbad":    "400",
		"POST /" + echoName + "/Say HTTP/1.1\r\nHost:y": "400",
	} {
		nc, err := tls.Dial("tcp", r.info.PublicAddress, r.tls(nil))
		if err != nil {
			t.Fatal(err)
		}
		_ = nc.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprintf(nc, "%s\r\nHost: x\r\nConnection: close\r\nContent-Type: application/grpc-web\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s", line, key, len(body), body)
		got, _ := io.ReadAll(nc)
		nc.Close()
		if _, rest, _ := strings.Cut(string(got), " "); !strings.HasPrefix(rest, want) {
			t.Errorf("%q: %q, want %s", line, got, want)
		}
		if strings.HasPrefix(line, "POST /"+echoName+"/Say HTTP/1.0") {
			if n := len(core.calls); n != 1 {
				t.Errorf("HTTP/1.0: %d calls", n)
			} else {
				<-core.calls
			}
			continue
		}
		if len(core.calls) != 0 || want == "200" && !strings.Contains(string(got), "grpc-status: 12") {
			t.Errorf("%q: %q", line, got)
		}
	}
}

// TestCORS: who may, may; nobody else learns anything, and nobody ever may with
// what his browser adds by itself.
func TestCORS(t *testing.T) {
	core := newFakeCore(t)
	r := webProxy(t, core)
	same := "https://" + r.info.PublicAddress
	allowed := []string{"https://app.example.org", "https://a.apps.example.org:8443", "https://a.b.apps.example.org:8443", "http://localhost:3000"}
	refused := []string{"https://evil.example", "null", "http://app.example.org", "https://app.example.org:444", "https://apps.example.org:8443", "https://a.apps.example.org", "https://xapp.example.org",
		"https://app.example.org.evil.example", "https://APP.example.org", "https://a.apps.example.org:8443.evil.example", "https://evil.example/.apps.example.org:8443", "*", "file://", "https://127.0.0.1"}
	for _, version := range []int{1, 2} {
		b := r.browser(version)
		preflight := func(origin string, headers string) *http.Response {
			answer, _ := b.do("OPTIONS", chatMethod, nil, "origin", origin, "access-control-request-method", "POST", "access-control-request-headers", headers, "cookie", "a=b")
			return answer
		}
		harmless := func(what string, h http.Header) {
			t.Helper()
			if h.Get("access-control-allow-origin") == "*" || h.Get("access-control-allow-credentials") != "" || !strings.Contains(strings.ToLower(h.Get("vary")), "origin") {
				t.Errorf("HTTP/%d %s: %v", version, what, h)
			}
		}
		for _, origin := range allowed {
			answer := preflight(origin, "authorization,content-type, x-grpc-web,x-user-agent,X-Mine, sallyport-caller,sallyport_caller,x-forwarded-for,bad name")
			h := answer.Header
			harmless("preflight from "+origin, h)
			if answer.StatusCode != 204 || h.Get("access-control-allow-origin") != origin || h.Get("access-control-allow-methods") != "POST" || h.Get("access-control-max-age") != "7200" ||
				h.Get("access-control-allow-headers") != "authorization, content-type, x-grpc-web, x-user-agent, x-mine" {
				t.Errorf("HTTP/%d preflight from %s: %s %v", version, origin, answer.Status, h)
			}
			answer, _, trailers := b.call(chatMethod, &demo.SayRequest{}, "origin", origin)
			h = answer.Header
			harmless("call from "+origin, h)
			exposed := h.Get("access-control-expose-headers")
			for _, name := range []string{"grpc-status", "grpc-message", "grpc-status-details-bin", relay.HeaderRequestID} {
				if !strings.Contains(exposed, name) {
					t.Errorf("HTTP/%d: %s is not exposed: %s", version, name, exposed)
				}
			}
			if h.Get("access-control-allow-origin") != origin || !strings.HasPrefix(trailers, "grpc-status: 0\r\n") || h.Get(relay.HeaderRequestID) == "" {
				t.Errorf("HTTP/%d call from %s: %v %q", version, origin, h, trailers)
			}
			answer, _, trailers = b.call(sayMethod, &demo.SayRequest{}, "origin", origin)
			if answer.Header.Get("access-control-allow-origin") != origin || !strings.HasPrefix(trailers, "grpc-status: 16\r\n") {
				t.Errorf("HTTP/%d: a denial that %s cannot read: %v %q", version, origin, answer.Header, trailers)
			}
		}
		for len(core.calls) > 0 {
			<-core.calls
		}
		for _, origin := range refused {
			answer := preflight(origin, "authorization")
			harmless("preflight from "+origin, answer.Header)
			if answer.StatusCode != 403 {
				t.Errorf("HTTP/%d preflight from %s: %s", version, origin, answer.Status)
			}
			call, _, trailers := b.call(chatMethod, &demo.SayRequest{}, "origin", origin)
			harmless("call from "+origin, call.Header)
			if !strings.HasPrefix(trailers, "grpc-status: 7\r\n") {
				t.Errorf("HTTP/%d call from %s: %q", version, origin, trailers)
			}
			for _, h := range []http.Header{answer.Header, call.Header} {
				for name := range h {
					if strings.HasPrefix(name, "Access-Control-") {
						t.Errorf("HTTP/%d: %s is told %s: %s", version, origin, name, h.Get(name))
					}
				}
			}
		}
		if _, _, trailers := b.call(chatMethod, &demo.SayRequest{}, "origin", allowed[0], "origin", allowed[0]); !strings.HasPrefix(trailers, "grpc-status: 7\r\n") {
			t.Errorf("HTTP/%d, two origins: %q", version, trailers)
		}
		if n := len(core.calls); n != 0 {
			t.Errorf("HTTP/%d: %d calls from origins that may not reached core", version, n)
		}
		// A page of this very name and port needs no leave, and one without is no page.
		if answer, _, trailers := b.call(chatMethod, &demo.SayRequest{}, "origin", same); !strings.HasPrefix(trailers, "grpc-status: 0\r\n") || answer.Header.Get("access-control-allow-origin") != "" {
			t.Errorf("HTTP/%d from the same origin: %v %q", version, answer.Header, trailers)
		}
	}
}

// TestOtherRequests get a short answer with the status of HTTP that says it.
func TestOtherRequests(t *testing.T) {
	core := newFakeCore(t)
	r := webProxy(t, core)
	for _, version := range []int{1, 2} {
		b := r.browser(version)
		for _, c := range []struct {
			method, path, kind string
			status             int
			says, allow        string
		}{
			{"GET", "/", "", 404, "gRPC server", ""},
			{"GET", "/favicon.ico", "", 404, "gRPC server", ""},
			{"HEAD", "/", "", 404, "", ""},
			{"GET", sayMethod, "", 405, "POST", "POST, OPTIONS"},
			{"PUT", sayMethod, "application/grpc-web", 405, "POST", "POST, OPTIONS"},
			{"DELETE", "/x", "", 405, "POST", "POST, OPTIONS"},
			{"OPTIONS", "/", "", 204, "", "POST, OPTIONS"},
			{"POST", sayMethod, "application/json", 415, "application/grpc-web", ""},
			{"POST", sayMethod, "application/x-www-form-urlencoded", 415, "application/grpc-web", ""},
			{"POST", sayMethod, "text/plain", 415, "application/grpc-web", ""},
			{"POST", sayMethod, "application/grpc-web-txt", 415, "application/grpc-web", ""},
			{"POST", sayMethod, "application/grpc-webtext", 415, "application/grpc-web", ""},
			{"POST", sayMethod, "", 415, "application/grpc-web", ""},
		} {
			answer, body := b.do(c.method, c.path, []byte("body"), "content-type", c.kind)
			if answer.StatusCode != c.status || !strings.Contains(body, c.says) || len(body) > 200 || answer.Header.Get("allow") != c.allow {
				t.Errorf("HTTP/%d %s %s (%s): %s %v %q", version, c.method, c.path, c.kind, answer.Status, answer.Header, body)
			}
			if c.status >= 400 && (answer.Header.Get(relay.HeaderRequestID) == "" || !strings.HasPrefix(answer.Header.Get("content-type"), "text/plain")) {
				t.Errorf("HTTP/%d %s %s: %v", version, c.method, c.path, answer.Header)
			}
		}
	}
	for origin, want := range map[string]string{"http://localhost:3000": "http://localhost:3000", "https://evil.example": ""} {
		if answer, _ := r.browser(2).do("POST", sayMethod, []byte("{}"), "content-type", "application/json", "origin", origin); answer.Header.Get("access-control-allow-origin") != want {
			t.Errorf("another content-type from %s: %v", origin, answer.Header)
		}
	}
	if answer, body := r.browser(1).do("POST", sayMethod, []byte("body"), "content-type", "application/grpc+proto"); answer.StatusCode != 505 || !strings.Contains(body, "HTTP/2") {
		t.Errorf("native gRPC over HTTP/1.1: %s %q", answer.Status, body)
	}
}

// TestWhoIsAskedForACertificate: clients of gRPC are, browsers are not, unless
// settings say otherwise.
func TestWhoIsAskedForACertificate(t *testing.T) {
	for setting, want := range map[string]string{"auto": "true false false true", "always": "true true true true", "never": "false false false false"} {
		core := newFakeCore(t)
		r := webProxy(t, core, func(s *configs.Proxy) { s.AskClientCert = setting })
		var got []string
		for _, protocols := range [][]string{{"h2"}, {"h2", "http/1.1"}, {"http/1.1"}, nil} {
			asked := false
			config := r.tls(nil)
			config.NextProtos = protocols
			config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				asked = true
				return &tls.Certificate{}, nil
			}
			nc, err := tls.Dial("tcp", r.info.PublicAddress, config)
			if err != nil {
				t.Fatal(err)
			}
			nc.Close()
			got = append(got, fmt.Sprint(asked))
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: asked %v, want %s", setting, got, want)
		}
		core.disconnect()
	}
}

// endless is a request of one message and no end.
type endless struct {
	first []byte
	ctx   context.Context
}

func (e *endless) Read(p []byte) (int, error) {
	if len(e.first) > 0 {
		n := copy(p, e.first)
		e.first = e.first[n:]
		return n, nil
	}
	<-e.ctx.Done()
	return 0, e.ctx.Err()
}

func wait(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("waited in vain for " + what)
		}
	}
}

// TestWebHoldsForTheWholeCall: a stream whose key is withdrawn ends, and the
// browser reads why.
func TestWebHoldsForTheWholeCall(t *testing.T) {
	core := newFakeCore(t)
	key := core.apiKey("ci", time.Time{})
	r := webProxy(t, core)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var open []io.Reader
	for _, version := range []int{1, 2} {
		for _, kind := range []string{"application/grpc-web", "application/grpc-web-text"} {
			first := frame(&demo.SayRequest{Text: "x"})
			if strings.Contains(kind, "text") {
				first = []byte(base64.StdEncoding.EncodeToString(first))
			}
			request, err := http.NewRequestWithContext(ctx, "POST", "https://"+r.info.PublicAddress+chatMethod, &endless{first: first, ctx: ctx})
			if err != nil {
				t.Fatal(err)
			}
			request.Header.Set("content-type", kind)
			request.Header.Set("authorization", "Bearer "+key)
			answer, err := r.browser(version).client.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			defer answer.Body.Close()
			open = append(open, answer.Body)
		}
	}
	core.change(func(p *control.ProxyPart) { p.ApiKeys = nil })
	for i, body := range open {
		got, err := io.ReadAll(body)
		if i%2 == 1 {
			got = unpadded(t, string(got))
		}
		if err != nil || !strings.Contains(string(got), "\x80\x00\x00") || !strings.Contains(string(got), "grpc-status: 16") {
			t.Errorf("stream %d: %v %q", i, err, got)
		}
	}
	cancel() // the requests, which closing their answers would wait for
}
