package app

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func health(t *testing.T, r *readiness) (address string) {
	t.Helper()
	address = freePort()
	h, err := listenHealth(t.Context(), address, r, newMetrics(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return address
}

func get(t *testing.T, url string, accept string) (int, string) {
	t.Helper()
	req, _ := http.NewRequest("GET", url, nil)
	req.Header.Set("Accept", accept)
	transport := &http.Transport{DisableKeepAlives: true}
	res, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(body)
}

func TestReadiness(t *testing.T) {
	r := newReadiness([]string{"core", "proxy"})
	address := health(t, r)
	check := func(wantStatus int, want string) {
		t.Helper()
		if status, body := get(t, "http://"+address+"/readyz", ""); status != wantStatus || body != want {
			t.Errorf("%d %q, want %d %q", status, body, wantStatus, want)
		}
	}
	check(503, "core not ready: starting\nproxy not ready: starting\n")
	r.set("core", nil)
	r.set("proxy", errors.New("core has not come yet"))
	check(503, "core ready\nproxy not ready: core has not come yet\n")
	status, body := get(t, "http://"+address+"/readyz", "application/json")
	var state struct {
		Ready bool
		Roles []struct {
			Role, Why string
			Ready     bool
		}
	}
	if err := json.Unmarshal([]byte(body), &state); err != nil || status != 503 || state.Ready || len(state.Roles) != 2 || state.Roles[1].Why != "core has not come yet" {
		t.Errorf("%d %s %v", status, body, err)
	}
	exit, _, errs := run(t, nil, "", "health", address)
	if exit != 1 || errs != "" {
		t.Errorf("health of what is not ready: %d %s", exit, errs)
	}
	r.set("proxy", nil)
	check(200, "core ready\nproxy ready\n")
	exit, out, _ := run(t, []string{"SALLYPORT_HEALTH_ADDRESS=" + address}, "", "health", "--json")
	if exit != 0 || !strings.Contains(out, `"ready":true`) {
		t.Errorf("health: %d %s", exit, out)
	}
	r.drain()
	if status, _ := get(t, "http://"+address+"/readyz", ""); status != 503 {
		t.Errorf("ready while draining: %d", status)
	}
	if exit, out, _ := run(t, nil, "", "health", address, "--live"); exit != 0 || out != "ok\n" {
		t.Errorf("alive: %d %s", exit, out)
	}
	if _, body := get(t, "http://"+address+"/metrics", ""); !strings.Contains(body, "sallyport_build_info{") || !strings.Contains(body, "go_goroutines ") {
		t.Errorf("metrics: %s", body)
	}
}

func TestReadinessWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReadiness([]string{"core", "proxy"})
		r.set("core", nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := r.wait(ctx); err == nil || err.Error() != "proxy is not ready: starting" {
			t.Errorf("got %v", err)
		}
		done := make(chan error, 1)
		go func() { done <- r.wait(t.Context()) }()
		synctest.Wait()
		r.set("proxy", nil)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestTakenPortNamesTheFlag: several processes on one host need their own.
func TestTakenPortNamesTheFlag(t *testing.T) {
	address := health(t, newReadiness(nil))
	_, err := listenHealth(t.Context(), address, newReadiness(nil), newMetrics(), slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "--health-address") || !strings.Contains(err.Error(), address) {
		t.Errorf("got %v", err)
	}
}

func TestReach(t *testing.T) {
	for listen, want := range map[string]string{":8080": "127.0.0.1:8080", "0.0.0.0:1": "127.0.0.1:1", "[::]:2": "[::1]:2", "10.0.0.1:3": "10.0.0.1:3"} {
		if got, err := reach(listen); err != nil || got != want {
			t.Errorf("%s: %s %v, want %s", listen, got, err, want)
		}
	}
	if _, err := reach("nonsense"); err == nil {
		t.Error("nonsense is an address")
	}
}

// TestHealthBesidePort: the probe of an image finds health where the process has
// put it because the platform gives clients its port.
func TestHealthBesidePort(t *testing.T) {
	moved := health(t, newReadiness(nil))
	_, own, _ := net.SplitHostPort(freePort())
	beside := func(port string) string {
		if port != own {
			t.Errorf("asked about port %s", port)
		}
		return moved
	}
	target := "127.0.0.1:" + own
	for port, want := range map[string]string{own: moved, "1": target, "": target} {
		if got := besidePort(target, port, beside); got != want {
			t.Errorf("PORT=%s: asked %s, want %s", port, got, want)
		}
	}
	if got := besidePort(target, own, func(string) string { return freePort() }); got != target {
		t.Errorf("a role that has not moved is asked at %s", got)
	}
}
