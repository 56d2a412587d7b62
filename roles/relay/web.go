package relay

import (
	"strings"

	"google.golang.org/grpc/codes"
)

// gRPC-Web, as the gRPC project's PROTOCOL-WEB document has it: what a browser
// can send and read. A call of that kind is a stream like any other; only here,
// at the edge, its content-type is another, its trailers follow its messages as
// one more frame, and in text mode everything is in base64. Behind the edge it
// is native gRPC, and nobody there can tell.

const contentTypeWeb = "application/grpc-web"

// webCall is what a call of a browser needs beside others. Its connection's
// mutex guards frames.
type webCall struct {
	suffix  string   // "+proto" and its like
	decode  bool     // the request is in base64
	encode  bool     // the response is
	cors    []Field  // for the response's header, whatever becomes of the call
	exposes bool     // some origin may read what comes
	base64  decoder  // of the request; reader only
	frames  messages // what has been passed on to the caller
}

// webContent reads a content-type of gRPC-Web.
func webContent(s string) (text bool, suffix string, ok bool) {
	rest, ok := strings.CutPrefix(s, contentTypeWeb)
	if !ok {
		return false, "", false
	}
	rest, text = strings.CutPrefix(rest, "-text")
	rest, _, _ = strings.Cut(rest, ";")
	rest = strings.TrimRight(rest, " \t")
	if rest != "" && (rest[0] != '+' || len(rest) < 2 || len(rest) > 32 || !subtype(rest[1:])) {
		return false, "", false
	}
	return text, rest, true
}

// subtype says whether s is the name of a message format and nothing else: it
// comes back in the answer's content-type, where a comma would begin another.
func subtype(s string) bool {
	return !strings.ContainsFunc(s, func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '.' && c != '_'
	})
}

func isWebContent(s string) bool {
	_, _, ok := webContent(s)
	return ok
}

// newWebCall makes the header of a browser's request that of a native call, and
// says what has to be undone on the way back; nil for what is no gRPC-Web.
func newWebCall(c *Call) *webCall {
	text, suffix, ok := webContent(c.Get("content-type"))
	if !ok {
		return nil
	}
	w := &webCall{suffix: suffix, decode: text, encode: text}
	if accept := c.Get("accept"); strings.Contains(accept, contentTypeWeb) {
		w.encode = strings.Contains(accept, contentTypeWeb+"-text")
	}
	return w
}

// glean finds out from a part of a request's header, which is too large to be
// kept, whether it is a browser's, so that it can read why it is refused.
func (c *Call) glean(fields []Field) {
	for _, f := range fields {
		switch f.Name {
		case "content-type", "accept", "origin":
			c.header = append(c.header, f)
		case ":authority":
			c.authority = f.Value
		}
	}
	c.web = newWebCall(c)
}

// nativeHeader is a browser's header without what concerns the browser and this
// edge alone, cookies among it: they are nobody's credentials here.
func nativeHeader(fields []Field, suffix string) []Field {
	kept := fields[:0]
	for _, f := range fields {
		switch {
		case f.Name == "content-type":
			f.Value = contentTypeGRPC + suffix
		case ofBrowser(f.Name):
			continue
		}
		kept = append(kept, f)
	}
	clear(fields[len(kept):])
	return kept
}

func ofBrowser(name string) bool {
	switch name {
	case "content-length", "accept", "accept-encoding", "cache-control", "pragma", "priority", "dnt", "cookie", "x-grpc-web", "upgrade-insecure-requests":
		return true
	}
	return strings.HasPrefix(name, "sec-") || strings.HasPrefix(name, "access-control-")
}

// header makes a response's header one that a browser reads. Scripts of another
// origin see only the fields that are named to it.
func (w *webCall) header(fields []Field) []Field {
	kind := contentTypeWeb
	if w.encode {
		kind += "-text"
	}
	out := make([]Field, 0, len(fields)+len(w.cors)+2)
	out = append(out, Field{Name: ":status", Value: "200"}, Field{Name: "content-type", Value: kind + w.suffix})
	expose := "grpc-status, grpc-message, grpc-status-details-bin"
	for _, f := range fields {
		switch {
		case f.Name[0] == ':', f.Name == "content-type", f.Name == "content-length", strings.HasPrefix(f.Name, "access-control-"):
			continue
		case len(expose) < 4<<10 && !strings.HasPrefix(f.Name, "grpc-status") && f.Name != "grpc-message":
			expose += ", " + f.Name
		}
		out = append(out, f)
	}
	if !w.exposes {
		return append(out, w.cors...)
	}
	if !strings.Contains(expose, HeaderRequestID) {
		expose += ", " + HeaderRequestID
	}
	return append(append(out, w.cors...), Field{Name: "access-control-expose-headers", Value: expose})
}

// admitWeb asks whether a browser's call may be made, and from where.
func (c *Call) admitWeb(v *Violation) *Violation {
	cors, no := c.in.c.web(c)
	c.web.cors = cors
	for i := range cors {
		c.web.exposes = c.web.exposes || cors[i].Name == "access-control-allow-origin"
	}
	c.header = nativeHeader(c.header, c.web.suffix)
	if v != nil {
		return v
	}
	return no
}

// sendWeb passes bytes of which source came from the service to a browser. c.mu
// is held.
func (c *Conn) sendWeb(s *stream, p []byte, source int, end bool, b *batch) (over bool) {
	if s.gone || s.sentEnd || s.end {
		return false
	}
	if !s.call.web.encode {
		s.debt += int64(len(p) - source)
		return c.sendData(s, p, end, b)
	}
	s.base64 = true
	q := getBuffer()
	q.b = appendBase64(q.b, p)
	s.debt += int64(len(q.b)/4*3 - source)
	over = c.sendData(s, q.b, end, b)
	putBuffer(q)
	return over
}

// sendWebEnd ends a stream: with its header unless that has gone, and with the
// trailers as a frame. c.mu is held.
func (c *Conn) sendWebEnd(s *stream, fields []Field, answered bool, b *batch) {
	if s.gone || s.sentEnd || s.end {
		return
	}
	if !answered {
		c.writeHeaders(s, s.call.web.header(nil), false, b)
	}
	q := getBuffer()
	q.b = appendTrailers(q.b, fields)
	c.sendWeb(s, q.b, 0, true, b) // its size is bounded as that of a header is
	putBuffer(q)
}

// answerWeb is answer for a browser. Trailers are a frame among messages there,
// so a call that ends within a message can only be cut. c.mu is held.
func (c *Call) answerWeb(o Outcome, extra []Field, keep bool, b *batch) {
	in := &c.in
	in.c.mu.Lock()
	defer in.c.mu.Unlock()
	if in.gone || in.sentEnd {
		return
	}
	within := !c.web.frames.between()
	if in.queue != nil && !keep && (o.Reason == "overflow" || o.Reason == "stalled") {
		within = true // what waits goes, and with it the end of a message, or several
	}
	if within {
		w := in.c.wb(b)
		w.b = appendRST(w.b, in.id, codeInternal)
		in.c.remove(in, closedByUs, b)
		return
	}
	in.end = false
	in.c.sendWebEnd(in, statusFields(false, o.Code, o.Message, extra), c.answered, b)
}

// webData is DATA of the response to a browser. It says whether too much waits,
// and whether it is no gRPC.
func (c *Call) webData(p []byte, b *batch) (over, broken bool) {
	in := &c.in
	in.c.mu.Lock()
	defer in.c.mu.Unlock()
	if in.gone || in.end || in.sentEnd {
		return false, false
	}
	if !c.web.frames.add(p) {
		return false, true
	}
	return in.c.sendWeb(in, p, len(p), false, b), false
}

// respondWeb passes a response's header or trailers on. in.c.mu is held.
func (c *Call) respondWeb(fields []Field, end bool, b *batch) {
	in := &c.in
	switch {
	case end && c.web.frames.between():
		in.c.sendWebEnd(in, fields, c.answered, b)
	case end && !in.gone:
		w := in.c.wb(b)
		w.b = appendRST(w.b, in.id, codeInternal)
		in.c.remove(in, closedByUs, b)
	case !end && !in.gone && !in.sentEnd:
		in.c.writeHeaders(in, c.web.header(fields), false, b)
	}
}

// foreignResponse says what a response means that a browser's library could not
// read: one that is not gRPC, or whose status is in HTTP.
func foreignResponse(status int, fields []Field) (Outcome, bool) {
	native := false
	for i := range fields {
		f := &fields[i]
		native = native || f.Name == "content-type" && grpcContent(f.Value) || f.Name == "grpc-status"
	}
	if status == 200 && native {
		return Outcome{}, false
	}
	code, message := codeOf(fields)
	if code == codes.OK || status == 200 {
		code, message = codes.Unknown, "the service's answer is not gRPC"
	}
	return Outcome{Code: code, Message: message, Reason: "malformed"}, true
}

// decodeWeb takes base64 off a part of a request; false: it is none.
func (c *Call) decodeWeb(p []byte, end bool) (q *buffer, ok bool) {
	q = getBuffer()
	q.b, ok = c.web.base64.append(q.b, p)
	in := &c.in
	in.c.mu.Lock()
	in.owed += int64(len(p) - len(q.b)) // it has arrived where it goes
	in.c.mu.Unlock()
	return q, ok && (!end || c.web.base64.whole())
}
