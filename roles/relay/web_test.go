package relay

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/protobuf/proto"
)

// webOptions are those of an edge that takes gRPC-Web from one origin.
func webOptions() *Options {
	return &Options{Hop: "edge", Edge: true, Limits: Limits{DeadlineGrace: time.Millisecond, HeaderList: 8 << 10}, Web: func(c *Call) ([]Field, *Violation) {
		switch c.Get("origin") {
		case "":
			return nil, nil
		case "https://a.example":
			return []Field{{Name: "access-control-allow-origin", Value: "https://a.example"}}, nil
		}
		return nil, &Violation{Code: codes.PermissionDenied, Reason: "origin", Message: "not from there"}
	}}
}

// webBetween is between for a caller of gRPC-Web.
func webBetween(t *testing.T, linkLim Limits, settings ...http2.Setting) (r, up *raw) {
	up, out, _ := rawFrom(t, &Options{Hop: "edge", Remote: "upstream raw", Limits: linkLim, Metrics: new(Metrics)})
	r, _, _ = rawTo(t, webOptions(), HandlerFunc(func(c *Call) {
		if err := c.Forward(out, c.Header(), ForwardOptions{}); err != nil {
			t.Error(err)
		}
	}), settings...)
	return r, up
}

func (r *raw) webRequest(id uint32, kind string, end bool, more ...string) {
	r.headers(id, end, append([]string{":method", "POST", ":scheme", "https", ":path", "/p.S/M", ":authority", "x", "content-type", kind}, more...)...)
}

// response reads frames up to the end of a stream: its header, the bytes of its
// DATA, and how it ended.
func (r *raw) response(id uint32) (header, body, end string) {
	r.t.Helper()
	var data []byte
	for {
		switch f := r.next().(type) {
		case *http2.HeadersFrame:
			if f.StreamID != id {
				continue
			}
			header += r.fields(f.HeaderBlockFragment())
			if f.StreamEnded() {
				return header, string(data), "HEADERS"
			}
		case *http2.DataFrame:
			if f.StreamID != id {
				continue
			}
			data = append(data, f.Data()...)
			if f.StreamEnded() {
				return header, string(data), "DATA"
			}
		case *http2.RSTStreamFrame:
			if f.StreamID == id && f.ErrCode != http2.ErrCodeNo {
				return header, string(data), f.ErrCode.String()
			}
		case nil:
			return header, string(data), "gone"
		}
	}
}

func message(body string) string {
	return string(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(body)))) + body
}

func trailerFrame(lines ...string) string {
	block := ""
	for _, l := range lines {
		block += l + "\r\n"
	}
	return string(binary.BigEndian.AppendUint32([]byte{0x80}, uint32(len(block)))) + block
}

// TestWebResponses: what a service answers, and what a browser gets of it.
func TestWebResponses(t *testing.T) {
	native := []string{":status", "200", "content-type", "application/grpc+proto"}
	data := func(u *raw, s string) { u.must(u.fr.WriteData(1, false, []byte(s))) }
	internal := func(message string) string { return trailerFrame("grpc-status: 13", "grpc-message: "+message) }
	for _, c := range []struct {
		name      string
		do        func(*raw)
		body, end string
	}{
		{"messages and trailers", func(u *raw) {
			u.headers(1, false, append(native, "x-a", "b", "content-length", "13")...)
			data(u, message("abc"))
			data(u, message(""))
			u.headers(1, true, "grpc-status", "0", "x-t", "u", "sallyport-caller", "forged", "grpc-status-details-bin", "CAM")
		}, message("abc") + message("") + trailerFrame("grpc-status: 0", "x-t: u", "grpc-status-details-bin: CAM"), "DATA"},
		{"trailers only", func(u *raw) {
			u.headers(1, true, append(native, "grpc-status", "5", "grpc-message", "not%20here", "x-t", "u")...)
		}, trailerFrame("grpc-status: 5", "grpc-message: not%20here", "x-t: u"), "DATA"},
		{"trailers only without a content-type", func(u *raw) { u.headers(1, true, ":status", "200", "grpc-status", "5") }, trailerFrame("grpc-status: 5"), "DATA"},
		{"a message in many pieces", func(u *raw) {
			u.headers(1, false, native...)
			for _, b := range []byte(message("hello")) {
				data(u, string(b))
			}
			u.headers(1, true, "grpc-status", "0")
		}, message("hello") + trailerFrame("grpc-status: 0"), "DATA"},
		{"the end within a message", func(u *raw) {
			u.headers(1, false, native...)
			data(u, message("hello")[:7])
			u.headers(1, true, "grpc-status", "0")
		}, message("hello")[:7], "INTERNAL_ERROR"},
		{"a reset within a message", func(u *raw) {
			u.headers(1, false, native...)
			data(u, message("hello")[:7])
			u.must(u.fr.WriteRSTStream(1, http2.ErrCodeInternal))
		}, message("hello")[:7], "INTERNAL_ERROR"},
		{"a reset between messages", func(u *raw) {
			u.headers(1, false, native...)
			data(u, message("hello"))
			u.must(u.fr.WriteRSTStream(1, http2.ErrCodeInternal))
		}, message("hello") + internal("edge: upstream raw reset the call: INTERNAL_ERROR"), "DATA"},
		{"no trailers", func(u *raw) {
			u.headers(1, false, native...)
			u.must(u.fr.WriteData(1, true, []byte(message("hello"))))
		}, message("hello") + internal("edge: upstream raw sent what is no message, or no trailers"), "DATA"},
		{"trailers that the service forges", func(u *raw) {
			u.headers(1, false, native...)
			data(u, trailerFrame("grpc-status: 0"))
		}, internal("edge: upstream raw sent what is no message, or no trailers"), "DATA"},
		{"not gRPC", func(u *raw) {
			u.headers(1, false, ":status", "200", "content-type", "text/html")
			data(u, "<script>")
		}, trailerFrame("grpc-status: 2", "grpc-message: the service's answer is not gRPC"), "DATA"},
		{"a status of HTTP", func(u *raw) { u.headers(1, true, ":status", "503", "content-type", "text/html") },
			trailerFrame("grpc-status: 14", "grpc-message: HTTP status 503"), "DATA"},
		{"1xx", func(u *raw) {
			u.headers(1, false, ":status", "103", "link", "x")
			u.headers(1, true, append(native, "grpc-status", "0")...)
		}, trailerFrame("grpc-status: 0"), "DATA"},
	} {
		for _, text := range []bool{false, true} {
			t.Run(fmt.Sprint(c.name, " text=", text), func(t *testing.T) {
				t.Parallel()
				r, up := webBetween(t, Limits{})
				kind, request := "application/grpc-web+proto", []byte(message("q"))
				if text {
					kind, request = "application/grpc-web-text+proto", []byte(base64.StdEncoding.EncodeToString(request))
				}
				r.webRequest(1, kind, false, "x-grpc-web", "1", "cookie", "a=b", "content-length", fmt.Sprint(len(request)), "sec-fetch-mode", "cors", "origin", "https://a.example", "x-mine", "kept")
				r.must(r.fr.WriteData(1, true, request))
				up.expect("HEADERS 1 :method=POST :scheme=http :path=/p.S/M :authority=x te=trailers content-type=application/grpc+proto origin=https://a.example x-mine=kept", "WINDOW", "SETTINGS")
				up.expect("DATA 1 6 END", "WINDOW", "SETTINGS")
				c.do(up)
				header, body, end := r.response(1)
				if text {
					var d decoder
					plain, ok := d.append(nil, []byte(body))
					if !ok || !d.whole() {
						t.Errorf("the body is not base64: %q", body)
					}
					body = string(plain)
				}
				if body != c.body || end != c.end {
					t.Errorf("got %q, ended by %s\nwant %q, %s", body, end, c.body, c.end)
				}
				if !strings.HasPrefix(header, ":status=200 content-type="+kind) || !strings.Contains(header, "access-control-allow-origin=https://a.example") ||
					!strings.Contains(header, "access-control-expose-headers=grpc-status, grpc-message, grpc-status-details-bin") || strings.Contains(header, "content-length") {
					t.Errorf("header %s", header)
				}
				if strings.Contains(header, "x-a=b") != strings.Contains(header, "details-bin, x-a, sallyport-request-id") {
					t.Errorf("a field that no script can read: %s", header)
				}
			})
		}
	}
}

// TestWebRefusals: what reaches no service is answered so that a browser's
// library can read it.
func TestWebRefusals(t *testing.T) {
	for _, c := range []struct {
		name, kind, path string
		more             []string
		body             string
		want             string
	}{
		{"path", "application/grpc-web", "/p.S//M", nil, "", "grpc-status: 12"},
		{"encoded path", "application/grpc-web", "/p.S%2FM", nil, "", "grpc-status: 12"},
		{"origin", "application/grpc-web", "/p.S/M", []string{"origin", "https://b.example"}, "", "grpc-message: not from there"},
		{"two authorizations", "application/grpc-web", "/p.S/M", []string{"authorization", "a", "authorization", "b"}, "", "grpc-status: 16"},
		{"large header", "application/grpc-web+proto", "/p.S/M", []string{"x-large", strings.Repeat("x", 9<<10)}, "", "grpc-status: 8"},
		{"timeout", "application/grpc-web+proto", "/p.S/M", []string{"grpc-timeout", "soon"}, "", "grpc-status: 3"},
		{"text that is none", "application/grpc-web-text", "/p.S/M", nil, "AAAA!", "grpc-status: 3"},
		{"text that ends too soon", "application/grpc-web-text", "/p.S/M", nil, "AAAAA", "grpc-status: 3"},
		{"deadline", "application/grpc-web", "/p.S/M", []string{"grpc-timeout", "1m"}, "", "grpc-status: 4"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r, _ := webBetween(t, Limits{})
			r.headers(1, false, append([]string{":method", "POST", ":scheme", "https", ":path", c.path, "content-type", c.kind}, c.more...)...)
			r.must(r.fr.WriteData(1, true, []byte(c.body)))
			header, body, end := r.response(1)
			if strings.Contains(c.kind, "text") {
				plain, err := base64.StdEncoding.DecodeString(body)
				if err != nil {
					t.Error(err)
				}
				body = string(plain)
			}
			if !strings.HasPrefix(header, ":status=200 content-type="+c.kind) || !strings.HasPrefix(body, "\x80") || !strings.Contains(body, c.want) || end != "DATA" {
				t.Errorf("%s, %q, %s", header, body, end)
			}
			if strings.Contains(header, "access-control") {
				t.Errorf("who named no origin that may is told of one: %s", header)
			}
		})
	}
	r, _ := webBetween(t, Limits{})
	for i, kind := range []string{"application/grpc-webx", "application/grpc-web+", "application/grpc-web+proto,text/html", "application/grpc-web-text+a b"} {
		id := uint32(2*i + 1)
		r.webRequest(id, kind, true)
		if header, _, _ := r.response(id); !strings.HasPrefix(header, ":status=415") {
			t.Errorf("another content-type: %s", header)
		}
	}
	// Between our own hops nobody speaks it.
	r, _, _ = rawTo(t, &Options{Hop: "core"}, HandlerFunc(func(c *Call) { t.Error("a call came through") }))
	r.webRequest(1, "application/grpc-web", true)
	if header, _, _ := r.response(1); !strings.HasPrefix(header, ":status=415") {
		t.Errorf("on a link: %s", header)
	}
}

// TestWebCredit: a service gets credit for what it has sent, and not for what
// gRPC-Web makes of it.
func TestWebCredit(t *testing.T) {
	for _, kind := range []string{"application/grpc-web", "application/grpc-web-text"} {
		r, up := webBetween(t, Limits{}, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30})
		r.must(r.fr.WriteWindowUpdate(0, 1<<30))
		r.webRequest(1, kind, true)
		up.expect("HEADERS 1 END :method=POST :scheme=http :path=/p.S/M :authority=x te=trailers content-type=application/grpc", "WINDOW", "SETTINGS")
		up.headers(1, false, ":status", "200", "content-type", "application/grpc")
		const window = 256 << 10
		sent := message(string(make([]byte, window)))
		go func() {
			for i := 0; i < window; i++ { // the worst: each byte by itself is four of base64
				_ = up.fr.WriteData(1, false, []byte(sent[i:i+1]))
			}
		}()
		credit := uint32(0)
		for credit < window*3/4-16 { // as much as has to come back; more would be left over
			if f, ok := up.next().(*http2.WindowUpdateFrame); ok && f.StreamID == 1 {
				credit += f.Increment
			}
			if credit > window {
				t.Fatalf("%s: credit for %d bytes of %d", kind, credit, window)
			}
		}
		_ = r.nc.Close()
		_ = up.nc.Close()
	}
}

// TestWebRequestCredit: a caller gets credit for what it has sent in base64.
func TestWebRequestCredit(t *testing.T) {
	r, up := webBetween(t, Limits{}, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30})
	r.webRequest(1, "application/grpc-web-text", false)
	var got []byte
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			switch f := up.next().(type) {
			case *http2.DataFrame:
				got = append(got, f.Data()...)
				_ = up.fr.WriteWindowUpdate(0, max(1, uint32(len(f.Data()))))
				_ = up.fr.WriteWindowUpdate(1, max(1, uint32(len(f.Data()))))
				if f.StreamEnded() {
					up.headers(1, true, ":status", "200", "content-type", "application/grpc", "grpc-status", "0")
					return
				}
			case nil:
				return
			}
		}
	}()
	want := message(strings.Repeat("0123456789", 200<<10))
	text := base64.StdEncoding.EncodeToString([]byte(want))
	window, room := int64(256<<10), int64(1<<30)
	for rest := text; rest != ""; {
		n := min(len(rest), 1000+len(rest)%7, int(window))
		if n > 0 {
			r.must(r.fr.WriteData(1, n == len(rest), []byte(rest[:n])))
			rest, window, room = rest[n:], window-int64(n), room-int64(n)
			continue
		}
		switch f := r.next().(type) {
		case *http2.WindowUpdateFrame:
			if f.StreamID == 1 {
				window += int64(f.Increment)
			}
		case nil:
			t.Fatal("the connection is gone")
		}
		if window > 256<<10 {
			t.Fatalf("the window grew to %d", window)
		}
	}
	if _, body, _ := r.response(1); !strings.Contains(body, "gAAA") {
		t.Errorf("%q", body)
	}
	<-done
	if string(got) != want {
		t.Errorf("%d bytes came, %d were sent", len(got), len(want))
	}
}

// TestWebThroughChain: large messages both ways through three hops to grpc-go,
// with a client of net/http.
func TestWebThroughChain(t *testing.T) {
	upstream, _ := backend(t, func(g *grpc.Server) { testgrpc.RegisterTestServiceServer(g, &service{}) })
	address, all := chain(t, 3, upstream, hopConfig{web: true})
	transport := &http.Transport{Protocols: new(http.Protocols), DialContext: (&net.Dialer{}).DialContext}
	transport.Protocols.SetUnencryptedHTTP2(true)
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: 30 * time.Second}
	for _, size := range []int{0, 1, 2, 3, 16384, 1 << 20, 3 << 20} {
		request, err := proto.Marshal(&testgrpc.SimpleRequest{Payload: payload(size)})
		if err != nil {
			t.Fatal(err)
		}
		want, _ := proto.Marshal(&testgrpc.SimpleResponse{Payload: payload(size)})
		for _, text := range []bool{false, true} {
			kind, body := "application/grpc-web", []byte(message(string(request)))
			if text {
				kind, body = "application/grpc-web-text", []byte(base64.StdEncoding.EncodeToString(body))
			}
			answer, err := client.Post("http://"+address+"/grpc.testing.TestService/UnaryCall", kind, bytes.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(answer.Body)
			answer.Body.Close()
			if text && err == nil {
				var d decoder
				got, _ = d.append(nil, got)
			}
			if err != nil || !strings.HasPrefix(string(got), message(string(want))) || !strings.Contains(string(got[5+len(want):]), "grpc-status: 0\r\n") {
				t.Errorf("%d bytes, %s: %d bytes came, %v", size, kind, len(got), err)
			}
		}
	}
	settled(t, all)
}

// FuzzBase64: the decoder takes exactly what is base64 in whole pieces, however
// it is cut.
func FuzzBase64(f *testing.F) {
	for _, s := range []string{"", "AAAA", "AA==", "AAA=AAAA", "AB==", "A", "AA\nAA", "////++++", "=AAA", "A===", "AA=A", "-_-_"} {
		f.Add([]byte(s), 1)
	}
	f.Fuzz(func(t *testing.T, p []byte, cut int) {
		var whole, pieces decoder
		got, ok := whole.append(nil, p)
		ok = ok && whole.whole()
		cut = min(max(cut, 0), len(p))
		again, ok2 := pieces.append(nil, p[:cut])
		if ok2 {
			again, ok2 = pieces.append(again, p[cut:])
		}
		if ok2 = ok2 && pieces.whole(); ok2 != ok || ok && !bytes.Equal(got, again) {
			t.Fatalf("cut at %d: %v %v", cut, ok, ok2)
		}
		var want []byte
		good := len(p)%4 == 0
		for i := 0; good && i < len(p); i += 4 {
			b, err := base64.StdEncoding.Strict().DecodeString(string(p[i : i+4]))
			good = err == nil && !bytes.ContainsAny(p[i:i+4], "\r\n")
			want = append(want, b...)
		}
		if good != ok || ok && !bytes.Equal(got, want) {
			t.Fatalf("%q: %v %q, want %v %q", p, ok, got, good, want)
		}
	})
}

// FuzzWebMessages: where messages end does not depend on how they are cut, and a
// frame that is none is noticed.
func FuzzWebMessages(f *testing.F) {
	f.Add([]byte(message("abc")+message("")), 3)
	f.Add([]byte(trailerFrame("grpc-status: 0")), 1)
	f.Fuzz(func(t *testing.T, p []byte, cut int) {
		var a, b messages
		ok := a.add(p)
		cut = min(max(cut, 0), len(p))
		if ok2 := b.add(p[:cut]) && b.add(p[cut:]); ok2 != ok || ok && a != b {
			t.Fatalf("cut at %d: %v %+v, %v %+v", cut, ok, a, ok2, b)
		}
		for rest := p; ; {
			switch {
			case len(rest) == 0:
				if !ok || !a.between() {
					t.Fatalf("whole messages: %v %+v", ok, a)
				}
				return
			case rest[0] > 1:
				if ok {
					t.Fatal("taken as a message")
				}
				return
			case len(rest) < 5 || uint64(len(rest)-5) < uint64(binary.BigEndian.Uint32(rest[1:])):
				if !ok || a.between() {
					t.Fatalf("part of a message: %v %+v", ok, a)
				}
				return
			}
			rest = rest[5+binary.BigEndian.Uint32(rest[1:]):]
		}
	})
}
