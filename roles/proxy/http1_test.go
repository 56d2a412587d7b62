package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"sallyport/configs"
	"sallyport/roles/gateway/demo"
)

// TestHTTP1Connections: one connection carries requests one after the other; who
// goes away ends his call; who is slow, or sends too much, is turned away.
func TestHTTP1Connections(t *testing.T) {
	core := newFakeCore(t)
	limits := configs.DefaultLimits()
	limits.HeaderTime = 300 * time.Millisecond
	limits.Stall = time.Second
	r := webProxy(t, core, func(s *configs.Proxy) { s.Limits = limits })
	dial := func() (net.Conn, *bufio.Reader) {
		t.Helper()
		nc, err := tls.Dial("tcp", r.info.PublicAddress, r.tls(nil))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { nc.Close() })
		_ = nc.SetDeadline(time.Now().Add(20 * time.Second))
		return nc, bufio.NewReader(nc)
	}
	open := func() int64 {
		r.crowd.mu.Lock()
		defer r.crowd.mu.Unlock()
		return r.crowd.calls.Load()
	}
	in := string(frame(&demo.SayRequest{Text: "x"}))
	header := "POST " + chatMethod + " HTTP/1.1\r\nHost: x\r\nContent-Type: application/grpc-web\r\n"

	nc, br := dial()
	for range 2 { // both at once: they are answered in turn
		fmt.Fprintf(nc, "%sContent-Length: %d\r\n\r\n%s", header, len(in), in)
	}
	for i := range 2 {
		answer, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
		body, err := io.ReadAll(answer.Body)
		if err != nil || !strings.Contains(string(body), "grpc-status: 0") {
			t.Errorf("request %d: %v %q", i, err, body)
		}
	}

	// The client goes in the middle of its request.
	nc, _ = dial()
	fmt.Fprintf(nc, "%sTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n", header, len(in), in)
	wait(t, "the call to begin", func() bool { return open() == 1 })
	nc.Close()
	wait(t, "the call to end with its client", func() bool { return open() == 0 })

	// A health watch goes on for ever, and ends with its client too.
	nc, br = dial()
	watch := string(frame(&healthpb.HealthCheckRequest{}))
	fmt.Fprintf(nc, "POST /grpc.health.v1.Health/Watch HTTP/1.1\r\nHost: x\r\nContent-Type: application/grpc-web\r\nContent-Length: %d\r\n\r\n%s", len(watch), watch)
	if answer, err := http.ReadResponse(br, nil); err != nil {
		t.Fatal(err)
	} else if _, err := io.ReadFull(answer.Body, make([]byte, 7)); err != nil {
		t.Errorf("the first message of a watch: %v", err)
	}
	wait(t, "the watch to be open", func() bool { return open() == 1 })
	nc.Close()
	wait(t, "the watch to end with its client", func() bool { return open() == 0 })

	// Half a header, and half a body, that go no further.
	nc, _ = dial()
	fmt.Fprint(nc, "POST / HTTP/1.1\r\nHost: x\r\nX-Slow: ")
	if _, err := io.Copy(io.Discard, nc); err != nil {
		t.Errorf("a header that does not end: %v", err)
	}
	nc, br = dial()
	fmt.Fprintf(nc, "%sContent-Length: 100\r\n\r\n%s", header, in)
	if answer, err := http.ReadResponse(br, nil); err == nil && answer.StatusCode == 200 {
		if body, err := io.ReadAll(answer.Body); err == nil && strings.Contains(string(body), "grpc-status: 0") {
			t.Errorf("a body that does not end was taken: %q", body)
		}
	}
	wait(t, "the call without an end to end", func() bool { return open() == 0 })

	// A client that asks for much and reads nothing.
	nc, _ = dial()
	large := string(frame(&demo.SayRequest{Text: strings.Repeat("x", 3<<20)}))
	const times = 8
	go func() {
		fmt.Fprintf(nc, "%sContent-Length: %d\r\n\r\n", header, times*len(large))
		for range times {
			if _, err := io.WriteString(nc, large); err != nil {
				return
			}
		}
	}()
	wait(t, "the call to begin", func() bool { return open() == 1 })
	wait(t, "the call of which nobody reads the answer to end", func() bool { return open() == 0 })

	for what, request := range map[string]string{
		"413":                  fmt.Sprintf("%sContent-Length: %d\r\n\r\n", header, http1Body+1),
		"431":                  header + "X-Large: " + strings.Repeat("x", 80<<10) + "\r\n\r\n",
		"431 as HTTP/2 counts": header + "X-Large: " + strings.Repeat("x", 65200) + "\r\nContent-Length: 0\r\n\r\n",
		"400":                  header + "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
		"400 of chunks":        header + "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
		"501":                  header + "Transfer-Encoding: gzip\r\n\r\n",
	} {
		nc, br := dial()
		go io.WriteString(nc, request)
		answer, err := http.ReadResponse(br, nil)
		if err != nil || fmt.Sprint(answer.StatusCode) != what[:3] {
			t.Errorf("want %s, got %v %v", what, answer, err)
		}
	}
}

// TestHTTP1Drain: calls of HTTP/1.1 end by themselves or with UNAVAILABLE when
// the proxy stops, and no more are taken on their connections.
func TestHTTP1Drain(t *testing.T) {
	core := newFakeCore(t)
	r := webProxy(t, core, func(s *configs.Proxy) { s.DrainTimeout = time.Second })
	idle := r.browser(1)
	idle.call(healthCheck, &healthpb.HealthCheckRequest{})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, "POST", "https://"+r.info.PublicAddress+chatMethod, &endless{first: frame(&demo.SayRequest{Text: "x"}), ctx: ctx})
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("content-type", "application/grpc-web")
	answer, err := r.browser(1).client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	body, err := io.ReadAll(answer.Body)
	if err != nil || !strings.Contains(string(body), "grpc-status: 14") || !strings.Contains(string(body), "shutting down") {
		t.Errorf("an open call: %v %q", err, body)
	}
}
