// Package relay is the data plane: an HTTP/2 engine that passes gRPC calls from
// one connection to another frame by frame.
package relay
