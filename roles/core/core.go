// Package core is the composition root of role core.
package core

import (
	"context"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"sallyport/configs"
	"sallyport/roles/control"
)

// Deps is what a core needs from the process it runs in.
type Deps struct {
	Log      *slog.Logger
	Version  string
	Registry prometheus.Registerer // nil: no metrics
	Ready    func(err error)       // called with nil once core can serve, with an error when it stops being able to
	Started  func(Info)            // called once, when every listener is open
}

// Info says where a running core is.
type Info struct {
	GRPCAddress string // as bound, HOST:PORT
	Advertise   string // what goes into gateways' tokens
	AdminSocket string
	TrustDomain string

	admin control.AdminServer
}

// Admin is the admin service of the running core that info describes, without
// a socket in between. What is done through it is audited as done by the
// process itself.
func Admin(info Info) control.AdminServer { return info.admin }

// Run is a core from start to end: it returns when ctx is cancelled and the
// calls in flight have ended, or when it cannot go on.
func Run(ctx context.Context, s configs.Core, d Deps) error {
	panic("core.Run: being written")
}
