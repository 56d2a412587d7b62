package core

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func TestMetricsSayWhoIsConnected(t *testing.T) {
	s := settings(t)
	reg := prometheus.NewPedanticRegistry()
	ctx, stop := context.WithCancel(context.Background())
	r := &running{t: t, set: s, log: &logBuffer{}, stop: stop, done: make(chan error, 1)}
	started := make(chan Info, 1)
	go func() {
		r.done <- Run(ctx, s, Deps{Log: slog.New(slog.NewTextHandler(r.log, nil)), Version: "test", Registry: reg, Started: func(i Info) { started <- i }})
	}()
	select {
	case r.info = <-started:
	case <-time.After(patience):
		t.Fatal(r.log)
	}
	r.admin = Admin(r.info)
	t.Cleanup(r.end)
	r.apply(openPolicy)
	g := r.addGateway("orders")
	g.connect()
	g.announce(true, "acme.v1.Orders")
	p := r.addProxy("dmz1")
	r.service("acme.v1.Orders", "orders", "routed")
	for range 3 {
		if _, err := p.call("/acme.v1.Orders/Get"); err != nil {
			t.Fatal(err)
		}
	}
	p.call("/acme.v1.Secret/Get")
	eventually(t, "metrics", func() error {
		return testutil.GatherAndCompare(reg, strings.NewReader(`
# HELP sallyport_calls_total Calls that ended, by gRPC status.
# TYPE sallyport_calls_total counter
`+callLines()+`
# HELP sallyport_component_connected Whether a gateway or proxy has a control session with core.
# TYPE sallyport_component_connected gauge
sallyport_component_connected{kind="gateway",name="orders"} 1
sallyport_component_connected{kind="proxy",name="dmz1"} 1
# HELP sallyport_component_links Relay links with a gateway or proxy.
# TYPE sallyport_component_links gauge
sallyport_component_links{kind="gateway",name="orders"} 1
sallyport_component_links{kind="proxy",name="dmz1"} 1
# HELP sallyport_policy_version The policy in force; 0 is the built-in one.
# TYPE sallyport_policy_version gauge
sallyport_policy_version 1
# HELP sallyport_service_gateways Gateways that serve a service now.
# TYPE sallyport_service_gateways gauge
sallyport_service_gateways{service="acme.v1.Orders"} 1
`), "sallyport_calls_total", "sallyport_component_connected", "sallyport_component_links", "sallyport_policy_version", "sallyport_service_gateways")
	})
	if n, err := testutil.GatherAndCount(reg, "sallyport_relay_streams_total", "sallyport_denials_total"); err != nil || n != 2 {
		t.Errorf("%d relay and denial metrics, %v", n, err)
	}
	if err := errors.Join(lint(reg)...); err != nil {
		t.Error(err)
	}
}

func callLines() string {
	var b strings.Builder
	for _, c := range []string{"ABORTED", "ALREADY_EXISTS", "CANCELLED", "DATA_LOSS", "DEADLINE_EXCEEDED", "FAILED_PRECONDITION", "INTERNAL", "INVALID_ARGUMENT",
		"NOT_FOUND", "OK", "OTHER", "OUT_OF_RANGE", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "UNAUTHENTICATED", "UNAVAILABLE", "UNIMPLEMENTED", "UNKNOWN"} {
		n := "0"
		switch c {
		case "OK":
			n = "3"
		case "UNAUTHENTICATED":
			n = "1"
		}
		b.WriteString("sallyport_calls_total{code=\"" + c + "\",role=\"core\"} " + n + "\n")
	}
	return strings.TrimSpace(b.String())
}

func lint(reg prometheus.Gatherer) (errs []error) {
	problems, err := testutil.GatherAndLint(reg)
	errs = append(errs, err)
	for _, p := range problems {
		errs = append(errs, errors.New(p.Metric+": "+p.Text))
	}
	return errs
}
