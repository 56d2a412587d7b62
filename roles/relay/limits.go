package relay

import (
	"math"
	"time"
)

// Limits bounds what one connection may cost. A field left at zero takes the
// default of the connection's place: EdgeLimits for a server end with
// Options.Edge, LinkLimits for any other server end, UpstreamLimits for a client
// end. Whoever exceeds a limit marked (calm) is sent GOAWAY with
// ENHANCE_YOUR_CALM and counted in Metrics.Calmed.
type Limits struct {
	Streams        uint32 // streams a peer may have open at once: 250 edge, 10000 link
	StreamWindow   uint32 // bytes a peer may send on a stream before they have left for the next hop: 256 KiB
	ConnWindow     uint32 // bytes a peer may send on a connection before they are read: 4 MiB edge, 16 MiB link and upstream
	HeaderList     uint32 // bytes of a header list, counted as RFC 9113 section 6.5.2 does: 64 KiB, link 80 KiB: what we add has to fit
	HeaderTable    uint32 // bytes of the table a peer may use to compress headers: 4096
	Continuations  int    // CONTINUATION frames of a header block: 16 (calm)
	Resets         int    // streams a peer may open and reset in a second: 200 edge (calm); not on links, which carry everybody's
	Pings          int    // PING frames in a second that no call accounts for: 50 edge, 1000 link (calm)
	Settings       int    // SETTINGS frames in a second: 20 (calm)
	Priorities     int    // PRIORITY frames, and frames of unknown type, in a second: 500 (calm)
	EmptyData      int    // DATA frames in a second that carry neither bytes nor END_STREAM: 200 (calm)
	WindowUpdates  int    // WINDOW_UPDATE frames in a second that no DATA of ours accounts for: 2000 (calm)
	MalformedCalls int    // malformed requests in a second: 100 edge, 1000 link (calm)

	ConnBuffer    int64         // bytes waiting for a peer's window, over all streams of a connection: 16 MiB edge, 128 MiB link and upstream
	Backlog       int           // bytes waiting for a socket that takes nothing, before the connection is given up: 1 MiB edge, 64 MiB link and upstream (calm)
	FirstFrame    time.Duration // until the peer's preface and SETTINGS are there: 10 s
	HeaderTime    time.Duration // until a header block that has begun is there whole: 10 s (calm)
	Stall         time.Duration // a connection whose peer grants no window at all, or takes nothing, with bytes waiting: 60 s (calm)
	StreamStall   time.Duration // the same for one stream, which is then ended with RESOURCE_EXHAUSTED: 5 min
	HalfOpen      time.Duration // the longest a call may wait for the role to forward or reject it: 30 s
	QueueWait     time.Duration // how long a call waits for a place under the peer's MAX_CONCURRENT_STREAMS: 1 s
	PingInterval  time.Duration // silence after which the peer is asked for a sign of life: 20 s edge, 5 s link, 330 s upstream (servers in Go punish more than one in five minutes)
	PingTimeout   time.Duration // how long it may take to give one: 10 s edge, 5 s link, 20 s upstream
	PingIdle      bool          // ask also while no call is open: on links
	Idle          time.Duration // close a connection without calls after this time, 0 never: 10 min edge
	DeadlineGrace time.Duration // an edge ends a call this long after its grpc-timeout: 200 ms
}

const (
	heldMax   = 64 << 10  // request bytes kept so that a refused call can be sent again
	softLimit = 128 << 10 // bytes in a write buffer above which DATA waits in its stream
	writeSize = 64 << 10  // bytes handed to TLS at once
)

// EdgeLimits are the defaults towards the internet.
func EdgeLimits() Limits {
	return Limits{
		Streams: 250, StreamWindow: 256 << 10, ConnWindow: 4 << 20, HeaderList: 64 << 10, HeaderTable: 4096,
		Continuations: 16, Resets: 200, Pings: 50, Settings: 20, Priorities: 500, EmptyData: 200, WindowUpdates: 2000, MalformedCalls: 100,
		ConnBuffer: 16 << 20, Backlog: 1 << 20,
		FirstFrame: 10 * time.Second, HeaderTime: 10 * time.Second, Stall: time.Minute, StreamStall: 5 * time.Minute, HalfOpen: 30 * time.Second, QueueWait: time.Second,
		PingInterval: 20 * time.Second, PingTimeout: 10 * time.Second, Idle: 10 * time.Minute, DeadlineGrace: 200 * time.Millisecond,
	}
}

// LinkLimits are the defaults between our own components.
func LinkLimits() Limits {
	l := EdgeLimits()
	l.Streams, l.HeaderList, l.ConnWindow, l.ConnBuffer, l.Backlog = 10000, 80<<10, 16<<20, 128<<20, 64<<20
	l.Resets, l.Pings, l.WindowUpdates, l.MalformedCalls = math.MaxInt, 1000, 100000, 1000
	l.PingInterval, l.PingTimeout, l.PingIdle, l.Idle = 5*time.Second, 5*time.Second, true, 0
	return l
}

// UpstreamLimits are the defaults towards services that are not ours.
func UpstreamLimits() Limits {
	l := LinkLimits()
	l.PingInterval, l.PingTimeout, l.PingIdle = 330*time.Second, 20*time.Second, false
	return l
}

// or fills the fields of l that are zero from d.
func (l Limits) or(d Limits) Limits {
	if l == (Limits{}) {
		return d
	}
	fill(&l.Streams, d.Streams)
	fill(&l.StreamWindow, d.StreamWindow)
	fill(&l.ConnWindow, d.ConnWindow)
	fill(&l.HeaderList, d.HeaderList)
	fill(&l.HeaderTable, d.HeaderTable)
	fill(&l.Continuations, d.Continuations)
	fill(&l.Resets, d.Resets)
	fill(&l.Pings, d.Pings)
	fill(&l.Settings, d.Settings)
	fill(&l.Priorities, d.Priorities)
	fill(&l.EmptyData, d.EmptyData)
	fill(&l.WindowUpdates, d.WindowUpdates)
	fill(&l.MalformedCalls, d.MalformedCalls)
	fill(&l.ConnBuffer, d.ConnBuffer)
	fill(&l.Backlog, d.Backlog)
	fill(&l.FirstFrame, d.FirstFrame)
	fill(&l.HeaderTime, d.HeaderTime)
	fill(&l.Stall, d.Stall)
	fill(&l.StreamStall, d.StreamStall)
	fill(&l.HalfOpen, d.HalfOpen)
	fill(&l.QueueWait, d.QueueWait)
	fill(&l.PingInterval, d.PingInterval)
	fill(&l.PingTimeout, d.PingTimeout)
	fill(&l.DeadlineGrace, d.DeadlineGrace)
	return l
}

func fill[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}
