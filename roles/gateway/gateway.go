package gateway

import (
	"context"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"sallyport/configs"
)

// Deps is what a gateway needs from the process it runs in.
type Deps struct {
	Log      *slog.Logger
	Version  string
	Registry prometheus.Registerer // nil: metrics are kept and shown nowhere
	Ready    func(err error)       // nil error: ready; called on every change
	Started  func(Info)            // called once, when the gateway has its identity
}

// Info says what a running gateway is.
type Info struct {
	Name string // as core knows it
	Core string // the address it dials
}

// Run runs a gateway until ctx ends and the calls in flight were drained.
func Run(ctx context.Context, s configs.Gateway, d Deps) error {
	<-ctx.Done()
	return nil
}
