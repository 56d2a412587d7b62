package relay

import "sync/atomic"

type counter = atomic.Int64

// Metrics counts what the connections that share it did. All fields may be read
// and summed at any time.
type Metrics struct {
	Conns, ConnsOpen   atomic.Int64 // connections ever run, running now
	Calls, CallsOpen   atomic.Int64 // calls received, open now
	BytesUp, BytesDown atomic.Int64 // message bytes towards the service, towards the caller
	Buffered           atomic.Int64 // bytes that wait for a peer's window now
	Retries            atomic.Int64 // calls sent again after a refusal
	Rejected           atomic.Int64 // calls that this hop answered itself
	Lost               atomic.Int64 // calls that ended because a connection did
	Expired            atomic.Int64 // calls ended at their deadline by this hop
	Malformed          atomic.Int64 // requests and responses that broke RFC 9113
	Violations         atomic.Int64 // requests that broke the header rules
	Overflows          atomic.Int64 // calls ended because their buffers were over budget
	Calmed             [calmKinds]atomic.Int64
}

// CalmKind says which limit made a connection end with ENHANCE_YOUR_CALM; it
// indexes Metrics.Calmed.
type CalmKind uint8

// The limits of Limits that end a connection.
const (
	CalmResets CalmKind = iota
	CalmPings
	CalmSettings
	CalmPriorities
	CalmEmptyData
	CalmWindowUpdates
	CalmContinuations
	CalmHeaderBlock
	CalmMalformed
	CalmStall
	CalmBacklog
	CalmFirstFrame
	CalmHeaderTime
	CalmMemory
	calmKinds
)

var calmNames = [calmKinds]string{"resets", "pings", "settings", "priorities", "empty_data", "window_updates",
	"continuations", "header_block", "malformed", "stall", "backlog", "first_frame", "header_time", "memory"}

// String is the name of the limit as it stands in metrics.
func (k CalmKind) String() string {
	if k < calmKinds {
		return calmNames[k]
	}
	return "unknown"
}

// CalmKinds lists all of them.
func CalmKinds() []CalmKind {
	all := make([]CalmKind, calmKinds)
	for i := range all {
		all[i] = CalmKind(i)
	}
	return all
}
