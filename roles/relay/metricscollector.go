package relay

import "github.com/prometheus/client_golang/prometheus"

// collector shows a Metrics to Prometheus.
type collector struct {
	m      *Metrics
	plain  []plainMetric
	calmed *prometheus.Desc
	bytes  *prometheus.Desc
}

// plainMetric is one number of a Metrics.
type plainMetric struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	read func(*Metrics) int64
}

// NewCollector shows m to Prometheus as the relay of role. Roles that share a
// process share the names and differ in the label. Nothing is added to the
// work of a call: the numbers are read when somebody asks.
func NewCollector(role string, m *Metrics) prometheus.Collector {
	label := prometheus.Labels{"role": role}
	c := &collector{m: m,
		calmed: prometheus.NewDesc("sallyport_relay_calmed_total", "Connections ended because their peer exceeded a limit.", []string{"limit"}, label),
		bytes:  prometheus.NewDesc("sallyport_relay_message_bytes_total", "Bytes of messages passed on.", []string{"direction"}, label),
	}
	for _, p := range []struct {
		name, help string
		kind       prometheus.ValueType
		read       func(*Metrics) int64
	}{
		{"connections_total", "Connections ever run.", prometheus.CounterValue, func(m *Metrics) int64 { return m.Conns.Load() }},
		{"connections_open", "Connections that are open.", prometheus.GaugeValue, func(m *Metrics) int64 { return m.ConnsOpen.Load() }},
		{"streams_total", "Calls received on a connection.", prometheus.CounterValue, func(m *Metrics) int64 { return m.Calls.Load() }},
		{"streams_open", "Calls that are open on a connection.", prometheus.GaugeValue, func(m *Metrics) int64 { return m.CallsOpen.Load() }},
		{"buffered_bytes", "Bytes that wait for a peer's window.", prometheus.GaugeValue, func(m *Metrics) int64 { return m.Buffered.Load() }},
		{"retries_total", "Calls sent again after a refusal.", prometheus.CounterValue, func(m *Metrics) int64 { return m.Retries.Load() }},
		{"rejected_total", "Calls that this hop answered itself.", prometheus.CounterValue, func(m *Metrics) int64 { return m.Rejected.Load() }},
		{"lost_total", "Calls that ended because a connection did.", prometheus.CounterValue, func(m *Metrics) int64 { return m.Lost.Load() }},
		{"expired_total", "Calls that this hop ended at their deadline.", prometheus.CounterValue, func(m *Metrics) int64 { return m.Expired.Load() }},
		{"malformed_total", "Requests and responses that broke RFC 9113.", prometheus.CounterValue, func(m *Metrics) int64 { return m.Malformed.Load() }},
		{"violations_total", "Requests that broke the header rules.", prometheus.CounterValue, func(m *Metrics) int64 { return m.Violations.Load() }},
		{"overflows_total", "Calls ended because their buffers were over budget.", prometheus.CounterValue, func(m *Metrics) int64 { return m.Overflows.Load() }},
	} {
		c.plain = append(c.plain, plainMetric{prometheus.NewDesc("sallyport_relay_"+p.name, p.help, nil, label), p.kind, p.read})
	}
	return c
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(out chan<- *prometheus.Desc) {
	for _, p := range c.plain {
		out <- p.desc
	}
	out <- c.calmed
	out <- c.bytes
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	for _, p := range c.plain {
		out <- prometheus.MustNewConstMetric(p.desc, p.kind, float64(p.read(c.m)))
	}
	for _, k := range CalmKinds() {
		out <- prometheus.MustNewConstMetric(c.calmed, prometheus.CounterValue, float64(c.m.Calmed[k].Load()), k.String())
	}
	out <- prometheus.MustNewConstMetric(c.bytes, prometheus.CounterValue, float64(c.m.BytesUp.Load()), "up")
	out <- prometheus.MustNewConstMetric(c.bytes, prometheus.CounterValue, float64(c.m.BytesDown.Load()), "down")
}
