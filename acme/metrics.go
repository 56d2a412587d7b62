package acme

import (
	"github.com/prometheus/client_golang/prometheus"
)

var (
	descExpires = prometheus.NewDesc("sallyport_acme_certificate_expires_timestamp_seconds",
		"When the certificate of a public CA that is in service ends; absent while there is none.", []string{"domain"}, nil)
	descFailures = prometheus.NewDesc("sallyport_acme_failed_orders",
		"How many orders of a certificate of a public CA have failed in a row.", []string{"domain"}, nil)
)

// Describe and Collect make a Manager a prometheus.Collector.
func (m *Manager) Describe(out chan<- *prometheus.Desc) {
	out <- descExpires
	out <- descFailures
}

// Collect tells the state of every domain.
func (m *Manager) Collect(out chan<- prometheus.Metric) {
	for _, s := range m.States() {
		if s.Leaf != nil {
			out <- prometheus.MustNewConstMetric(descExpires, prometheus.GaugeValue, float64(s.Leaf.NotAfter.Unix()), s.Domain)
		}
		out <- prometheus.MustNewConstMetric(descFailures, prometheus.GaugeValue, float64(s.Failures), s.Domain)
	}
}
