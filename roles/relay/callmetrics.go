package relay

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/grpc/codes"
)

// CallMetrics counts the calls of one role for Prometheus: by status, by
// duration, refused ones by reason, and those in flight.
type CallMetrics struct {
	inFlight atomic.Int64
	byCode   [int(codes.Unauthenticated) + 1]prometheus.Counter
	other    prometheus.Counter
	duration prometheus.Histogram
	denials  *prometheus.CounterVec
}

// NewCallMetrics registers the metrics of role; reg may be nil. Roles that
// share a process share the names and differ in the label role.
func NewCallMetrics(role string, reg prometheus.Registerer) *CallMetrics {
	m := &CallMetrics{
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "sallyport_call_duration_seconds",
			Help:    "Time from a call's first frame to its last, streams included.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 60, 600},
		}),
		denials: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sallyport_denials_total",
			Help: "Calls that were refused, by reason.",
		}, []string{"reason"}),
	}
	calls := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "sallyport_calls_total",
		Help: "Calls that ended, by gRPC status.",
	}, []string{"code"})
	for c := range m.byCode {
		m.byCode[c] = calls.WithLabelValues(StatusName(codes.Code(c)))
	}
	m.other = calls.WithLabelValues("OTHER")
	flying := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "sallyport_calls_in_flight",
		Help: "Calls that have begun and not ended.",
	}, func() float64 { return float64(m.inFlight.Load()) })
	if reg != nil {
		reg = prometheus.WrapRegistererWith(prometheus.Labels{"role": role}, reg)
		reg.MustRegister(calls, m.duration, m.denials, flying)
	}
	return m
}

// Begin counts a call as in flight until End.
func (m *CallMetrics) Begin() { m.inFlight.Add(1) }

// End counts a call that ended.
func (m *CallMetrics) End(r CallRecord) {
	m.inFlight.Add(-1)
	if int(r.Code) < len(m.byCode) {
		m.byCode[r.Code].Inc()
	} else {
		m.other.Inc()
	}
	m.duration.Observe(r.Duration.Seconds())
	if r.Denied != "" {
		m.denials.WithLabelValues(r.Denied).Inc()
	}
}

// InFlight returns the number of calls that have begun and not ended.
func (m *CallMetrics) InFlight() int { return int(m.inFlight.Load()) }

// StatusName is the name that gRPC's specification gives a status: NOT_FOUND.
func StatusName(c codes.Code) string { return code.Code(c).String() }
