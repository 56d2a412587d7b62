package proxy

import (
	"context"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"sallyport/configs"
)

// Deps is what a proxy needs from the process it runs in.
type Deps struct {
	Log      *slog.Logger
	Version  string
	Registry prometheus.Registerer // nil: metrics are kept and shown nowhere
	Ready    func(err error)       // nil error: ready; called on every change
	Started  func(Info)            // called once, when both ports are open
}

// Info says where a running proxy is.
type Info struct {
	Name          string // empty before it has joined
	GRPCAddress   string // the component port, where core comes
	PublicAddress string // where callers come
}

// Run runs a proxy until ctx ends and the calls in flight were drained.
func Run(ctx context.Context, s configs.Proxy, d Deps) error {
	<-ctx.Done()
	return nil
}
