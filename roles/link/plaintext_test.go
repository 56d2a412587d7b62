package link

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"

	"sallyport/acme/pki"
)

func TestPlaintext(t *testing.T) {
	c := newCA(t)
	var log logged
	addr := listen(t, corePort(c, &log))
	dial := func(t *testing.T, first string) net.Conn {
		nc, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { nc.Close() })
		nc.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.WriteString(nc, first); err != nil {
			t.Fatal(err)
		}
		return nc
	}

	t.Run("HTTP/1.1", func(t *testing.T) {
		resp, err := http.Get("http://" + addr + "/healthz")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != 400 || !strings.Contains(string(text), "TLS") || !strings.Contains(string(text), "--health-address") || len(text) > 400 {
			t.Fatalf("%s: %s", resp.Status, text)
		}
		log.awaits(t, "refused a connection", "code="+pki.CodePlaintext, "HTTP/1", "remedy=")
		http.DefaultClient.CloseIdleConnections()
	})
	t.Run("HTTP/1.1 with a body", func(t *testing.T) {
		nc := dial(t, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 30000\r\n\r\n"+strings.Repeat("x", 30000))
		resp, err := http.ReadResponse(bufio.NewReader(nc), nil)
		if err != nil || resp.StatusCode != 400 {
			t.Fatalf("%v, %v: unread bytes must not reset the answer away", resp, err)
		}
		resp.Body.Close()
	})
	t.Run("HTTP/2", func(t *testing.T) {
		nc := dial(t, http2.ClientPreface)
		f := http2.NewFramer(nc, nc)
		if first, err := f.ReadFrame(); err != nil || first.Header().Type != http2.FrameSettings {
			t.Fatal(first, err)
		}
		last, err := f.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		g, ok := last.(*http2.GoAwayFrame)
		if !ok || g.ErrCode != http2.ErrCodeInadequateSecurity || !strings.Contains(string(g.DebugData()), "TLS") {
			t.Fatalf("%v", last)
		}
		log.awaits(t, "refused a connection", "gRPC without TLS", "remedy=")
	})
	t.Run("grpc-go without TLS", func(t *testing.T) {
		cc, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		defer cc.Close()
		ctx, cancel := context.WithTimeout(testContext(t), 5*time.Second)
		defer cancel()
		_, err = grpc_health_v1.NewHealthClient(cc).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
		if err == nil {
			t.Fatal("answered")
		}
		if !strings.Contains(err.Error(), "speaks TLS only") {
			t.Fatalf("the client's user reads only: %v", err)
		}
	})
	for name, first := range map[string]string{
		"PROXY protocol v1": "PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n", "PROXY protocol v2": "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c",
		"SSH": "SSH-2.0-x\r\n", "something else": "\x00\x01\x02hello",
	} {
		t.Run(name, func(t *testing.T) {
			nc := dial(t, first)
			if n, err := nc.Read(make([]byte, 1)); n != 0 || err == nil {
				t.Fatal("answered")
			}
		})
	}
	log.awaits(t, "PROXY protocol header", "load balancer")
	log.awaits(t, "an SSH client")
	log.awaits(t, "something that is not TLS")
}

func TestHealth(t *testing.T) {
	c := newCA(t)
	var log logged
	addr := listen(t, corePort(c, &log))
	cc, err := grpc.NewClient(addr, grpc.WithTransportCredentials(testTLS(c)))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	r, err := grpc_health_v1.NewHealthClient(cc).Check(testContext(t), &grpc_health_v1.HealthCheckRequest{})
	if err != nil || r.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Fatal(r, err)
	}
	for _, method := range []string{"/sallyport.control.v1.Control/Session", "/sallyport.control.v1.Join/Join", "/sallyport.control.v1.Renew/Why", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"} {
		err := cc.Invoke(testContext(t), method, &grpc_health_v1.HealthCheckRequest{}, &grpc_health_v1.HealthCheckResponse{})
		if err == nil || !strings.Contains(err.Error(), "Unimplemented") {
			t.Errorf("%s on h2: %v", method, err)
		}
	}
}

func FuzzClassify(f *testing.F) {
	for _, s := range []string{"", "\x16\x03\x01", "GET / HTTP/1.1\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "PROXY ", "\r\n\r\n\x00\r\nQUIT\n", "SSH-2.0", "PR", "P"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		kind, sure := classify(b)
		if len(b) >= 16 && !sure {
			t.Fatalf("%q: 16 bytes must be enough", b)
		}
		// More bytes do not change a sure answer.
		if sure {
			if again, ok := classify(append(b[:len(b):len(b)], "xyz"...)); again != kind || !ok {
				t.Fatalf("%q: %v, with more bytes %v", b, kind, again)
			}
		}
		if kind != TLS {
			if r := kind.Refusal("the port"); r.Cause == "" || r.Remedy == "" || r.Code == "" {
				t.Fatalf("%v: %+v", kind, r)
			}
		}
	})
}
