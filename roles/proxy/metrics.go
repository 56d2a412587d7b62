package proxy

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"sallyport/roles/relay"
)

// edgeMetrics counts what happens at the public port before there is a call.
type edgeMetrics struct {
	connections prometheus.Counter
	handshakes  *prometheus.CounterVec
	web         *prometheus.CounterVec
}

// newEdgeMetrics registers them, and the counters of the relay, unless reg is nil.
func newEdgeMetrics(reg prometheus.Registerer, frames *relay.Metrics) (*edgeMetrics, error) {
	m := &edgeMetrics{
		connections: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sallyport_edge_connections_total",
			Help: "Connections to the public port that finished their TLS handshake.",
		}),
		handshakes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sallyport_edge_refused_connections_total",
			Help: "Connections to the public port that came to nothing, by cause.",
		}, []string{"cause"}),
		web: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sallyport_edge_web_calls_total",
			Help: "Calls by gRPC-Web, by version of HTTP.",
		}, []string{"http"}),
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.connections, m.handshakes, m.web, relay.NewCollector("proxy", frames)} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("metrics: %w", err)
		}
	}
	return m, nil
}
