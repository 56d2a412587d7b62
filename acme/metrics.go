package acme

import "github.com/prometheus/client_golang/prometheus"

// collector shows the state of a Manager's domains.
type collector struct {
	manager           *Manager
	expires, failures *prometheus.Desc
}

// Collector is what Prometheus is told of the domains of m; role is whose they
// are.
func (m *Manager) Collector(role string) prometheus.Collector {
	labels := prometheus.Labels{"role": role}
	return &collector{m,
		prometheus.NewDesc("sallyport_acme_certificate_expires_timestamp_seconds", "When the certificate of a public CA that is in service ends; absent while there is none.", []string{"domain"}, labels),
		prometheus.NewDesc("sallyport_acme_failed_orders", "How many orders of a certificate of a public CA have failed in a row.", []string{"domain"}, labels)}
}

func (c *collector) Describe(out chan<- *prometheus.Desc) {
	out <- c.expires
	out <- c.failures
}

func (c *collector) Collect(out chan<- prometheus.Metric) {
	for _, s := range c.manager.States() {
		if s.Leaf != nil {
			out <- prometheus.MustNewConstMetric(c.expires, prometheus.GaugeValue, float64(s.Leaf.NotAfter.Unix()), s.Domain)
		}
		out <- prometheus.MustNewConstMetric(c.failures, prometheus.GaugeValue, float64(s.Failures), s.Domain)
	}
}
