// Sallyport relays gRPC into private networks without an inbound port. The
// command line is package app; this file owns the process: its signals and its
// exit status.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"

	"sallyport/app"
)

func main() {
	os.Exit(app.Main(untilSignal(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.Environ()))
}

// untilSignal ends with the first SIGINT or SIGTERM, which drains. The second
// one does not wait for anything; an echo of the first is not a second one
// (timeout(1) signals its child and then the child's whole group).
func untilSignal() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		cancel()
		for first := time.Now(); ; {
			<-signals
			if time.Since(first) > 50*time.Millisecond {
				os.Exit(1)
			}
		}
	}()
	return ctx
}
