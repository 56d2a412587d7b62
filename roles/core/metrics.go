package core

import (
	"context"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sallyport/roles/relay"
)

// collector shows what core's registry holds. It reads it when somebody asks;
// calls pay nothing for it.
type collector struct {
	core      *core
	connected *prometheus.Desc
	links     *prometheus.Desc
	inFlight  *prometheus.Desc
	rtt       *prometheus.Desc
	offset    *prometheus.Desc
	serving   *prometheus.Desc
	notAfter  *prometheus.Desc
	expiry    *prometheus.Desc
	enforces  *prometheus.Desc
	policy    *prometheus.Desc
	waiting   *prometheus.Desc
	strangers *prometheus.Desc
	elsewhere *prometheus.Desc
}

// registerMetrics registers what core shows beside the calls; reg may be nil.
func registerMetrics(reg prometheus.Registerer, c *core) {
	if reg == nil {
		return
	}
	who := []string{"kind", "name"}
	reg.MustRegister(relay.NewCollector("core", c.relayed), &collector{core: c,
		connected: prometheus.NewDesc("sallyport_component_connected", "Whether a gateway or proxy has a control session with core.", who, nil),
		links:     prometheus.NewDesc("sallyport_component_links", "Relay links with a gateway or proxy.", who, nil),
		inFlight:  prometheus.NewDesc("sallyport_component_calls_in_flight", "Calls that are open on the links with a gateway or proxy.", who, nil),
		rtt:       prometheus.NewDesc("sallyport_component_rtt_seconds", "Round trip of a component's last heartbeat.", who, nil),
		offset:    prometheus.NewDesc("sallyport_component_clock_offset_seconds", "Core's clock minus the component's.", who, nil),
		serving:   prometheus.NewDesc("sallyport_service_gateways", "Gateways that serve a service now.", []string{"service"}, nil),
		notAfter:  prometheus.NewDesc("sallyport_core_certificate_not_after_seconds", "When core's own certificate ends.", nil, nil),
		expiry:    prometheus.NewDesc("sallyport_certificate_not_after_seconds", "When a certificate of the system ends: the CA's, the components', files in use, and those issued to others.", []string{"kind", "holder", "subject", "serial"}, nil),
		enforces:  prometheus.NewDesc("sallyport_component_revocations", "Entries of the revocation list that a gateway or proxy enforces.", who, nil),
		policy:    prometheus.NewDesc("sallyport_policy_version", "The policy in force; 0 is the built-in one.", nil, nil),
		waiting:   prometheus.NewDesc("sallyport_calls_waiting", "Calls that wait for a gateway that is about to take them.", nil, nil),
		strangers: prometheus.NewDesc("sallyport_port_refused_addresses_total", "Connections to the gRPC port that were closed before a handshake, because their address is no peer's.", nil, prometheus.Labels{"role": "core"}),
		elsewhere: prometheus.NewDesc("sallyport_core_wrong_addresses_total", "Identities and join tokens that were proven and refused, because they were used from an address that is not their own.", nil, nil),
	})
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.connected, c.links, c.inFlight, c.rtt, c.offset, c.serving, c.notAfter, c.expiry, c.enforces, c.policy, c.waiting, c.strangers, c.elsewhere} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for _, m := range c.core.registry.list("") {
		role := string(m.role)
		gauge(c.links, float64(m.links.Len()), role, m.name)
		gauge(c.inFlight, float64(m.links.InFlight()+m.calling.InFlight()), role, m.name)
		s := m.current()
		if s == nil {
			gauge(c.connected, 0, role, m.name)
			continue
		}
		state := s.State()
		gauge(c.enforces, float64(m.enforces.Load()), role, m.name)
		gauge(c.connected, 1, role, m.name)
		gauge(c.rtt, state.RTT.Seconds(), role, m.name)
		gauge(c.offset, state.ClockOffset.Seconds(), role, m.name)
	}
	if r := c.core.router.ruling.Load(); r != nil {
		for name, s := range r.services {
			n := 0
			for i := range s.targets {
				if s.targets[i].serving && s.targets[i].gateway.connected.Load() {
					n++
				}
			}
			gauge(c.serving, float64(n), name)
		}
		gauge(c.policy, float64(r.version))
	}
	if own := c.core.self.Credentials(); own != nil {
		gauge(c.notAfter, float64(own.Chain[0].NotAfter.Unix()))
	}
	seen := map[string]bool{}
	for _, r := range c.core.expiries.certificates(time.Now()) {
		subject := r.GetIdentity()
		if subject == "" {
			subject = r.GetSubject()
		}
		// Texts of components: one of two that say the same is enough.
		if id := r.GetKind() + "\x00" + r.GetHolder() + "\x00" + subject + "\x00" + r.GetSerial(); !seen[id] {
			seen[id] = true
			gauge(c.expiry, float64(r.GetNotAfterUnix()), r.GetKind(), r.GetHolder(), subject, r.GetSerial())
		}
	}
	gauge(c.waiting, float64(len(c.core.router.waiting)))
	count := func(d *prometheus.Desc, n uint64) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n))
	}
	if port := c.core.peers.port.Load(); port != nil {
		count(c.strangers, port.RefusedByAddress())
	}
	count(c.elsewhere, c.core.peers.elsewhere.Load())
}

// relayDial connects to a proxy by a socket that the relay can use in batches.
func relayDial(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}
	nc, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return relay.Socket(nc), nil
}
