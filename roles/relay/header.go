package relay

// Header compression as the rest of the engine sees it: a headerEncoder and a
// headerDecoder per connection (hpack_encode.go, hpack_decode.go), and what is
// said here about which fields may be compressed at all.

// passing names fields that differ from call to call: they never enter a table.
func passing(name string) bool {
	switch name {
	case "grpc-timeout", "traceparent", "tracestate", "grpc-message", "content-length", "date",
		HeaderRequestID, HeaderSource, "x-request-id", "request-id", "x-correlation-id", "grpc-trace-bin", "grpc-tags-bin",
		"x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "b3", "grpc-status-details-bin":
		return true
	}
	return false
}

// secret names fields that never enter a table, here or further on, whatever
// their sender did: what is in a table can be guessed at by watching sizes.
func secret(name string) bool {
	return name == "authorization" || name == "proxy-authorization"
}
