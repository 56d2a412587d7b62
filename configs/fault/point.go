//go:build !faults

// Package fault names the moments at which the tests kill a process, to show
// that each of them leaves the old state or the new one. In the binary that
// people run a point is nothing: only `go build -tags faults` makes it one.
package fault

// Point is where of does step: nothing.
func Point(of, step string) {}
