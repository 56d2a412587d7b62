package proxy

import (
	"math"

	"sallyport/configs"
	"sallyport/roles/relay"
)

// edgeLimits are the limits of one caller's connection.
func edgeLimits(l configs.Limits) relay.Limits {
	e := relay.EdgeLimits()
	e.Streams, e.HeaderList, e.HeaderTable = uint32(l.Streams), uint32(l.HeaderList), uint32(l.HeaderTable)
	e.FirstFrame, e.HeaderTime, e.Stall, e.StreamStall, e.HalfOpen, e.Idle = l.FirstFrame, l.HeaderTime, l.Stall, l.StreamStall, l.HalfOpen, l.Idle
	e.Continuations, e.Resets, e.Pings, e.Settings, e.Priorities = l.Continuations, l.Resets, l.Pings, l.Settings, l.Priorities
	e.EmptyData, e.WindowUpdates, e.MalformedCalls = l.EmptyData, l.WindowUpdates, l.Malformed
	e.ConnBuffer, e.Backlog = l.ConnBuffer, l.Backlog
	return e
}

// frontLimits are those of a front's, which brings calls of many: what one
// caller may do in a second is not what all of them may, and a front keeps its
// callers from the frames that the other limits are about.
func frontLimits(e relay.Limits) relay.Limits {
	link := relay.LinkLimits()
	e.Streams = max(e.Streams, 1000)
	e.Resets, e.MalformedCalls, e.WindowUpdates, e.Pings = math.MaxInt, math.MaxInt, link.WindowUpdates, link.Pings
	e.ConnBuffer, e.Backlog = max(e.ConnBuffer, link.ConnBuffer), max(e.Backlog, link.Backlog)
	return e
}
