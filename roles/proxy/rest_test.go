package proxy

import (
	"bufio"
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
)

// TestRestOfARequest: a request that was answered before all of it had come ends
// its connection unless the rest is under way: what comes later of it is not
// taken for the next request, and nobody waits for it.
func TestRestOfARequest(t *testing.T) {
	t.Parallel()
	r := webProxy(t, newFakeCore(t))
	watch := string(frame(&healthpb.HealthCheckRequest{}))
	hidden := fmt.Sprintf("POST /grpc.health.v1.Health/Watch HTTP/1.1\r\nHost: x\r\nContent-Type: application/grpc-web\r\nContent-Length: %d\r\n\r\n%s", len(watch), watch)
	for what, request := range map[string]string{
		"length, no call":  "POST " + chatMethod + " HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 400\r\n\r\n",
		"chunked, no call": "POST " + chatMethod + " HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n",
		"length, denied":   "POST /no.Such/Method HTTP/1.1\r\nHost: x\r\nContent-Type: application/grpc-web\r\nContent-Length: 400\r\n\r\n",
		"continue":         "POST /no.Such/Method HTTP/1.1\r\nHost: x\r\nContent-Type: application/grpc-web\r\nExpect: 100-continue\r\nContent-Length: 400\r\n\r\n",
		"length, a part":   "POST /no.Such/Method HTTP/1.1\r\nHost: x\r\nContent-Type: application/grpc-web\r\nContent-Length: 400\r\n\r\nabc",
		"chunked, a part":  "POST " + chatMethod + " HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n10\r\nabc",
	} {
		for range 2 {
			t.Run(what, func(t *testing.T) {
				t.Parallel()
				nc, err := tls.Dial("tcp", r.info.PublicAddress, r.tls(nil))
				if err != nil {
					t.Fatal(err)
				}
				defer nc.Close()
				_ = nc.SetDeadline(time.Now().Add(15 * time.Second))
				fmt.Fprint(nc, request)
				br := bufio.NewReader(nc)
				answer, err := http.ReadResponse(br, nil)
				for err == nil && answer.StatusCode == http.StatusContinue {
					answer, err = http.ReadResponse(br, nil)
				}
				if err != nil {
					t.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, answer.Body); err != nil {
					t.Fatal(err)
				}
				time.Sleep(2 * http1Rest)
				fmt.Fprint(nc, hidden)
				rest, err := io.ReadAll(br)
				if ne, ok := err.(net.Error); ok && ne.Timeout() {
					t.Error("the connection stays")
				}
				if strings.Contains(string(rest), "HTTP/1.1") {
					t.Errorf("what was announced as a request's rest was taken for another: %q", rest)
				}
			})
		}
	}
}

// TestUnreadAnswers: who sends one request after the other and reads no answer is
// let go, also where answers have no body.
func TestUnreadAnswers(t *testing.T) {
	t.Parallel()
	limits := configs.DefaultLimits()
	limits.Stall = time.Second
	r := webProxy(t, newFakeCore(t), func(s *configs.Proxy) { s.Limits = limits })
	nc, err := tls.Dial("tcp", r.info.PublicAddress, r.tls(nil))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	const patience = 30 * time.Second
	_ = nc.SetDeadline(time.Now().Add(patience))
	requests := []byte(strings.Repeat("OPTIONS / HTTP/1.1\r\nHost: x\r\n\r\n", 1000))
	for {
		if _, err := nc.Write(requests); err != nil {
			if ne, ok := err.(net.Error); ok && ne.Timeout() {
				t.Errorf("after %v the connection is still there", patience)
			}
			return
		}
	}
}
