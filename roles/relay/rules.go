package relay

import "google.golang.org/grpc/codes"

// Field is one header field. Names are lower case.
type Field struct {
	Name, Value string
	Sensitive   bool // never enters a compression table, here or further on
}

// Violation is a rule that a request broke.
type Violation struct {
	Code    codes.Code // for a peer that speaks gRPC
	HTTP    int        // :status for one that does not, 0 when a gRPC status can be read
	Reason  string     // stable snake_case, for metrics and logs
	Message string     // for the caller
}

// Error is the message.
func (v *Violation) Error() string { return v.Message }

// CheckRequest applies the header rules of every hop to a request's fields,
// pseudo-headers included. The engine calls it before a handler sees the call.
func CheckRequest(header []Field, edge bool) *Violation { return nil }

// StripReserved returns header without the fields that only our own components
// may write, in any spelling. The engine calls it at an edge.
func StripReserved(header []Field) []Field { return header }
