//go:build !unix

package gateway

import "os"

// lockFile makes the file; without locks a socket that answers is protected all
// the same.
func lockFile(path string) (*os.File, error) { return os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600) }
