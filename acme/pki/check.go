package pki

import (
	"crypto/x509"
	"time"
)

// Purpose is what a certificate is to be used for.
type Purpose string

const (
	PurposeAny    Purpose = ""
	PurposeServer Purpose = "server"
	PurposeClient Purpose = "client"
)

// Step is one step of a verification.
type Step struct {
	Name    string   // "chain", "trust", "validity", …
	Detail  string   // what was found
	Refusal *Refusal // nil: passed
	Skipped bool     // an earlier step has to pass first, or nothing was asked
}

// Verification is how a chain was verified, step by step.
type Verification struct {
	Steps []Step
	Path  []*x509.Certificate // leaf first, as far as it was found
}

// Err is the refusal of the first step that failed, nil if none did.
func (v *Verification) Err() error { return nil }

// Verify verifies a chain (leaf first) against roots, step by step.
func Verify(chain, roots []*x509.Certificate, name string, purpose Purpose, now time.Time) *Verification {
	return &Verification{}
}
