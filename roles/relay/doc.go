// Package relay is the data plane: an HTTP/2 engine that passes gRPC calls from
// one connection to another frame by frame.
//
// A Conn is either end of an HTTP/2 connection over any net.Conn: NewServer
// receives calls, NewClient sends them on. Which side dialled does not matter;
// links between our components are dialled from the inside and carry calls the
// other way. A Handler decides once per call, on its header, and either rejects
// it or pairs it with a stream on another connection by Call.Forward. From then
// on DATA is copied from read buffer to write buffer; messages are never parsed,
// and no goroutine belongs to a call.
//
// # How it runs
//
// Each connection has one reader, the goroutine in Run. It handles every frame
// that is there, appends what follows from them to other connections' write
// buffers, and flushes those when nothing complete is left to read. Whoever
// finds a flush going on leaves its bytes to it. A reader never waits for a
// peer: when a socket is full a goroutine of that connection carries on, and
// DATA waits in its stream, bounded by the window we gave its sender. So two
// connections that relay for each other cannot wait for each other. Socket makes
// this possible beneath TLS; other connections are written by a goroutine that
// lives as long as there is something to write.
//
// # What it promises
//
//   - Every call ends, once, with a status: the service's, or one of ours that
//     names the hop at which it ended. A lost link gives UNAVAILABLE as trailers,
//     never a bare reset. What a caller had been sent before arrives before them.
//   - A slow reader stops its own stream and nobody else's. Bytes that wait are
//     bounded per stream by a window, per connection and per process by budgets
//     (Limits, Budget); a call that goes over them is ended.
//   - A call that was certainly not looked at (REFUSED_STREAM, GOAWAY) may be
//     sent elsewhere while all of it is still held: ForwardOptions.Retry. A call
//     on a link that was lost is not sent twice.
//   - What RFC 9113 and RFC 7541 say about malformed frames, streams and headers
//     is enforced on both ends, and the rules of the hop on top (CheckRequest):
//     method paths byte for byte, one authorization at most, no field under our
//     names from outside, in any spelling.
//   - Peers that misbehave on purpose cost what Limits says, and are told
//     ENHANCE_YOUR_CALM; Metrics counts each kind.
//   - Fields that were marked as never to be indexed stay so on every hop, and
//     authorization always is.
//
// # Browsers
//
// A server end with Options.Web takes gRPC-Web too, binary and text. A handler
// and everything behind it sees a native call; the content-type, base64 and the
// trailers' frame are this connection's affair (web.go). Of an answer's messages
// the lengths are read, to know where one ends: trailers within one would be
// taken for the rest of it. Such a call is reset, which is the one exception to
// the first promise above. In a request and in native calls nothing is read.
//
// # Locks
//
// A call's mutex may be held while a connection's is taken, never the other way
// round, and nobody holds two of one kind. Callbacks run without either. What a
// goroutine has appended and not flushed is its batch; it runs its batch before
// it waits for anything.
package relay
