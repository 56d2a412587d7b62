package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// readiness is which roles of the process are ready, and why the others are
// not.
type readiness struct {
	mu       sync.Mutex
	roles    []string
	why      map[string]string // role → reason; absent when ready
	held     map[string]string // role → what this process has yet to do around it
	draining bool
	changed  chan struct{} // closed and replaced at every change
}

func newReadiness(roles []string) *readiness {
	r := &readiness{roles: roles, why: map[string]string{}, held: map[string]string{}, changed: make(chan struct{})}
	for _, role := range roles {
		r.why[role] = "starting"
	}
	return r
}

// set is what a role says of itself, nil is ready. It returns whether the role
// was ready, and whether it is.
func (r *readiness) set(role string, err error) (was, is bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, waited := r.why[role]
	if err == nil {
		delete(r.why, role)
	} else {
		r.why[role] = err.Error()
	}
	r.notify()
	return !waited, err == nil
}

// hold keeps a role from counting as ready until the returned function is
// called.
func (r *readiness) hold(role, why string) (release func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held[role] = why
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.held, role)
		r.notify()
	}
}

// drain makes the process unready for good.
func (r *readiness) drain() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.draining = true
	r.notify()
}

func (r *readiness) notify() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// roleState is one role's line of the answer.
type roleState struct {
	Role  string `json:"role"`
	Ready bool   `json:"ready"`
	Why   string `json:"why,omitempty"`
}

// state is the answer, and a channel that closes when it changes.
func (r *readiness) state() (ready bool, roles []roleState, changed <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	ready = !r.draining
	for _, role := range r.roles {
		why, not := r.why[role]
		if !not {
			why, not = r.held[role]
		}
		if r.draining {
			not, why = true, "draining: the process is shutting down"
		}
		ready = ready && !not
		roles = append(roles, roleState{Role: role, Ready: !not, Why: why})
	}
	return ready, roles, r.changed
}

// wait returns when every role is ready, or ctx ends.
func (r *readiness) wait(ctx context.Context) error {
	for {
		ready, roles, changed := r.state()
		if ready {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			for _, s := range roles {
				if !s.Ready {
					return fmt.Errorf("%s is not ready: %s", s.Role, s.Why)
				}
			}
			return ctx.Err()
		}
	}
}

// ServeHTTP is /readyz: 200 or 503, one line per role, or JSON where that is
// asked for.
func (r *readiness) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	ready, roles, _ := r.state()
	status := http.StatusOK
	if !ready {
		status = http.StatusServiceUnavailable
	}
	w.Header().Set("Cache-Control", "no-store")
	if strings.Contains(req.Header.Get("Accept"), "application/json") || req.URL.Query().Get("format") == "json" {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		json.NewEncoder(w).Encode(map[string]any{"ready": ready, "roles": roles})
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	for _, s := range roles {
		if s.Ready {
			fmt.Fprintf(w, "%s ready\n", s.Role)
		} else {
			fmt.Fprintf(w, "%s not ready: %s\n", s.Role, oneLine(s.Why))
		}
	}
}

// healthListener is the plain HTTP port for probes and Prometheus, one per
// process. It tells nothing that a stranger could use, and does nothing.
type healthListener struct {
	listener net.Listener
	server   *http.Server
}

// listenHealth opens the port, so that a taken one is known before any role
// starts.
func listenHealth(ctx context.Context, address string, ready *readiness, metrics prometheus.Gatherer, log *slog.Logger) (*healthListener, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, cannotListen(err, address, "--health-address")
	}
	mux := http.NewServeMux()
	mux.Handle("GET /readyz", ready)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		fmt.Fprintln(w, "ok")
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{ErrorLog: promErrors{log}, MaxRequestsInFlight: 4}))
	return &healthListener{listener: l, server: &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       60 * time.Second,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}}, nil
}

// Run serves until ctx ends.
func (h *healthListener) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { h.server.Close() })
	defer stop()
	if err := h.server.Serve(h.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("health listener: %w", err)
	}
	return nil
}

// cannotListen names the flag that moves a port.
func cannotListen(err error, address, flag string) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return failed("the port of "+flag+" "+address+" is taken by another process", "choose another one: "+flag+" HOST:PORT")
	case errors.Is(err, syscall.EACCES):
		return failed("this user may not listen on "+flag+" "+address, "choose a port above 1023, or give the program CAP_NET_BIND_SERVICE")
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return failed(flag+" "+address+" is not an address of this machine", "choose one that is: "+flag+" HOST:PORT")
	}
	return failed(fmt.Sprintf("%s %s: %v", flag, address, err), "")
}

// promErrors logs what the metrics page could not gather.
type promErrors struct{ log *slog.Logger }

func (p promErrors) Println(v ...any) {
	p.log.Error("metrics", "error", strings.TrimSpace(fmt.Sprintln(v...)))
}

// newMetrics is a registry of the process's own; there is no global one.
func newMetrics() *prometheus.Registry {
	r := prometheus.NewRegistry()
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "sallyport_build_info", Help: "Always 1; the labels say what is running.",
		ConstLabels: prometheus.Labels{"version": version(), "go": runtime.Version()},
	})
	build.Set(1)
	r.MustRegister(build, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}
