package core

import (
	"testing"
	"time"
)

// TestOrderedCertificates: one that a CA has not signed yet is no expired one,
// and one whose renewal fails says why from a quarter of its life on.
func TestOrderedCertificates(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		w    watched
		want string
	}{
		{watched{kind: "acme"}, ""},
		{watched{kind: "acme", trouble: "DNS"}, "there is none: DNS"},
		{watched{kind: "acme", notBefore: now.Add(-time.Hour), notAfter: now.Add(time.Hour)}, ""},
		{watched{kind: "acme", notBefore: now.Add(-time.Hour), notAfter: now.Add(time.Hour), trouble: "DNS"}, "could not be renewed: DNS"},
		{watched{kind: "file", notBefore: now.Add(-time.Hour), notAfter: now.Add(time.Hour), trouble: "DNS"}, "a newer file was not taken"},
		{watched{kind: "file", notBefore: now.Add(-time.Hour), notAfter: now.Add(time.Hour), warning: "CA"}, "outlives its CA: CA"},
		{watched{kind: "acme", notBefore: now.Add(-5 * time.Hour), notAfter: now.Add(time.Hour), trouble: "DNS"}, "expires soon"},
		{watched{kind: "acme", notBefore: now.Add(-5 * time.Hour), notAfter: now.Add(-time.Hour), trouble: "DNS"}, "has expired"},
	} {
		if got := c.w.alert(now); got != c.want {
			t.Errorf("%+v: %q, want %q", c.w, got, c.want)
		}
	}
	if !instant(0).IsZero() || instant(1).IsZero() {
		t.Error("times of components are misread")
	}
}
