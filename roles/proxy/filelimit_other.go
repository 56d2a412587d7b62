//go:build !unix

package proxy

// fileLimit is how many files this process may have open.
func fileLimit() int { return 1 << 30 }
