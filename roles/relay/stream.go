package relay

// stream is one end of a call on one connection. Its connection's mutex guards
// it, unless a field says otherwise.
type stream struct {
	c    *Conn
	call *Call   // set once
	src  *stream // whose bytes this stream sends on; given credit when they have left
	id   uint32  // 0 while the stream waits for a place

	sendWindow int64 // what we may send
	recvWindow int64 // what the peer may send
	owed       int64 // bytes that have left and are not yet given back to the peer
	mark       int64 // bytes of this stream that have ever left for the next hop; its sender's mutex guards it
	left       int64 // bytes that this stream has sent on
	debt       int64 // of left, those that src did not send: gRPC-Web adds some
	base64     bool  // left counts base64

	queue    *buffer // bytes that wait for a window
	held     int64   // bytes counted in the call's budget for what waits
	trailers []Field // sent after the queue, with END_STREAM
	end      bool    // END_STREAM follows the queue
	sentEnd  bool
	recvEnd  bool
	gone     bool // no longer in the connection's table

	inReady bool
	next    *stream // in the connection's ready list
	moved   int64   // when bytes last left the queue, or first entered it

	length   int64 // content-length, -1 without; reader only
	received int64 // message bytes received; reader only
	answered bool  // the final response header was received; reader only
	informed uint8 // 1xx responses received; reader only
	weight   int64 // bytes counted for the call and its request header

	wait                *waitingStream
	onHeader, onTrailer func([]Field) []Field // of the response

	deadline     int64 // unix nanoseconds, 0 without
	halfOpen     int64 // until when the call has to be forwarded, 0 without
	wheel        bool  // in the timer wheel
	dueTick      int64
	wPrev, wNext *stream
}

// largeHeader is the size of the request's header if that is larger than usual.
func (s *stream) largeHeader() int64 {
	if n := s.weight - callCost; n > smallList {
		return n
	}
	return 0
}

func (s *stream) queued() int {
	if s.queue == nil {
		return 0
	}
	return s.queue.len()
}

// ready lists the streams of a connection that have bytes to send and a window
// for them, in turn.
type ready struct {
	head, tail *stream
}

func (r *ready) push(s *stream) {
	if s.inReady || s.gone {
		return
	}
	s.inReady, s.next = true, nil
	if r.tail == nil {
		r.head = s
	} else {
		r.tail.next = s
	}
	r.tail = s
}

// pop takes the first live stream.
func (r *ready) pop() *stream {
	for r.head != nil {
		s := r.head
		r.head = s.next
		if r.head == nil {
			r.tail = nil
		}
		s.inReady, s.next = false, nil
		if !s.gone {
			return s
		}
	}
	return nil
}

// closedRing remembers how the last streams ended, to tell late frames of an
// honest peer from mistakes.
type closedRing struct {
	ids  [64]uint32
	how  [64]closedHow
	next int
}

type closedHow uint8

const (
	closedUnknown closedHow = iota
	closedByPeer            // the peer ended its side before we forgot the stream
	closedByReset           // the peer reset it
	closedByUs              // we reset it: frames may still be under way
)

func (r *closedRing) add(id uint32, how closedHow) {
	r.ids[r.next], r.how[r.next] = id, how
	r.next = (r.next + 1) % len(r.ids)
}

func (r *closedRing) find(id uint32) closedHow {
	for i := range r.ids {
		if r.ids[i] == id {
			return r.how[i]
		}
	}
	return closedUnknown
}
