package proxy

import (
	"fmt"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"

	"sallyport/roles/relay"
)

// What browsers and others with plain HTTP ask of the public port. Browsers let
// a script of one site talk to another only if that one agrees (the Fetch
// standard's CORS): here the origins of --cors-origin may, and pages that come
// from this very name and port. Nobody is ever allowed credentials that a
// browser adds by itself: neither cookies nor client certificates, only what the
// script puts into its own headers.

// crlPath is where the list of what the callers' issuer has revoked lies.
const crlPath = "/.well-known/sallyport/ca.crl"

// preflightAge is how long a browser may keep the answer to a preflight, in
// seconds: as long as browsers keep it at most.
const preflightAge = 7200

// maxRequestHeaders bounds the list of header names in a preflight.
const maxRequestHeaders = 4 << 10

var varyOrigin = relay.Field{Name: "vary", Value: "origin"}

// web judges where a call by gRPC-Web comes from, and says what its answer tells
// the browser. A page whose origin is not allowed gets no call through: its
// browser would not send one without a preflight, so it is none, or lies.
func (p *proxy) web(c *relay.Call) ([]relay.Field, *relay.Violation) {
	version := "2"
	if c.Peer().(*client).http1 {
		version = "1.1"
	}
	p.edge.web.WithLabelValues(version).Inc()
	origin, from := p.origin(c)
	switch from {
	case fromAllowed:
		return []relay.Field{varyOrigin, {Name: "access-control-allow-origin", Value: origin}}, nil
	case fromElsewhere:
		return []relay.Field{varyOrigin}, &relay.Violation{Code: codes.PermissionDenied, Reason: "origin",
			Message: p.hop() + ": pages of this origin may not call here (--cors-origin)"}
	}
	return []relay.Field{varyOrigin}, nil
}

type provenance int

const (
	fromNowhere   provenance = iota // no page: not a browser
	fromHere                        // a page of this name and port
	fromAllowed                     // a page of an origin that may call
	fromElsewhere                   // any other
)

// origin finds out what page makes a request.
func (p *proxy) origin(c *relay.Call) (string, provenance) {
	origin, n := "", 0
	for _, f := range c.Header() {
		if f.Name == "origin" {
			origin = f.Value
			n++
		}
	}
	switch {
	case n == 0:
		return "", fromNowhere
	case n > 1:
		return "", fromElsewhere
	}
	for _, o := range p.settings.CORSOrigins {
		if o.Matches(origin) {
			return origin, fromAllowed
		}
	}
	if host, ok := strings.CutPrefix(origin, "https://"); ok && host != "" && host == strings.TrimSuffix(strings.ToLower(c.Authority()), ":443") {
		return origin, fromHere
	}
	return origin, fromElsewhere
}

// other answers what is no call.
func (p *proxy) other(c *relay.Call, v *relay.Violation) *relay.Answer {
	switch c.Method() {
	case "OPTIONS":
		return p.preflight(c, v)
	case "GET", "HEAD":
		if view := p.view.Load(); view != nil && view.crl != nil && c.Path() == crlPath {
			return &relay.Answer{Status: 200, Proper: true, Header: []relay.Field{{Name: "content-type", Value: "application/pkix-crl"}}, Body: view.crl}
		}
		if !relay.ValidPath(c.Path()) {
			return p.text(c, v, 404, "There is nothing to read here: this is a gRPC server.", "")
		}
		fallthrough
	default:
		return p.text(c, v, 405, "Calls are made with POST: this is a gRPC server.", "allow")
	case "POST":
		return p.text(c, v, 415, "Calls have the content-type application/grpc (over HTTP/2), application/grpc-web or application/grpc-web-text.", "")
	}
}

// text is a short answer in words, and noted.
func (p *proxy) text(c *relay.Call, v *relay.Violation, status int, words, allow string) *relay.Answer {
	a := &relay.Answer{Status: status, Body: []byte(words + "\n"), Header: []relay.Field{{Name: "content-type", Value: "text/plain; charset=utf-8"}}}
	if allow != "" {
		a.Header = append(a.Header, relay.Field{Name: allow, Value: "POST, OPTIONS"})
	}
	if origin, from := p.origin(c); from == fromAllowed { // so that whoever writes the page can read it
		a.Header = append(a.Header, relay.Field{Name: "access-control-allow-origin", Value: origin})
	}
	a.Header = append(append(a.Header, varyOrigin), p.violated(c, v)...)
	return a
}

// maxOriginText bounds what is logged of an origin.
const maxOriginText = 100

// preflight answers a browser that asks whether a script may call. It needs no
// credentials, says nothing about methods or services, and is answered here.
func (p *proxy) preflight(c *relay.Call, v *relay.Violation) *relay.Answer {
	vary := relay.Field{Name: "vary", Value: "origin, access-control-request-method, access-control-request-headers"}
	origin, from := p.origin(c)
	switch from {
	case fromNowhere:
		return &relay.Answer{Status: 204, Proper: true, Header: []relay.Field{vary, {Name: "allow", Value: "POST, OPTIONS"}}}
	case fromElsewhere:
		if len(origin) > maxOriginText {
			origin = origin[:maxOriginText] + "…"
		}
		v.Code, v.Reason, v.Message = codes.PermissionDenied, "origin", fmt.Sprintf("pages of %q may not call here: --cors-origin names those that may", origin)
		return &relay.Answer{Status: 403, Body: []byte("Pages of this origin may not call here (--cors-origin).\n"),
			Header: append([]relay.Field{vary, {Name: "content-type", Value: "text/plain; charset=utf-8"}}, p.violated(c, v)...)}
	}
	header := []relay.Field{vary, {Name: "access-control-allow-origin", Value: origin}, {Name: "access-control-allow-methods", Value: "POST"},
		{Name: "access-control-max-age", Value: strconv.Itoa(preflightAge)}}
	if names := requestHeaders(c.Get("access-control-request-headers")); names != "" {
		header = append(header, relay.Field{Name: "access-control-allow-headers", Value: names})
	}
	return &relay.Answer{Status: 204, Proper: true, Header: header}
}

// requestHeaders are the headers that a script may send, of those it asks for:
// metadata is anybody's, but what only components say is not.
func requestHeaders(asked string) string {
	if len(asked) > maxRequestHeaders {
		return ""
	}
	var names []string
	for name := range strings.SplitSeq(asked, ",") {
		name = strings.ToLower(strings.TrimSpace(name))
		if name == "" || relay.Reserved(name) || strings.ContainsFunc(name, func(c rune) bool {
			return (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' && c != '.'
		}) {
			continue
		}
		names = append(names, name)
	}
	return strings.Join(names, ", ")
}
