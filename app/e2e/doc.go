// Package e2e holds the end-to-end tests: the real binary in separate
// processes, joined by the lines it printed itself, with official and foreign
// gRPC peers on both sides. It has no code of its own.
//
// Each test picks free ports on 127.0.0.1 and a data directory for each
// process, kills only what it started, and shows the logs of every process
// when it fails.
package e2e
