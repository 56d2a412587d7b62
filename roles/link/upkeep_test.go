package link

import (
	"context"
	"crypto/x509"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"sallyport/acme/pki"
)

// TestRenewalOf: at 0.60 to 0.66 of the life counted from the making, also where
// the backdating is as long as the life; and not at one moment for all.
func TestRenewalOf(t *testing.T) {
	made := time.Now()
	for _, life := range []time.Duration{time.Minute, 24 * time.Hour, 30 * 24 * time.Hour} {
		seen := map[time.Time]bool{}
		for range 20 {
			raw := make([]byte, 8)
			for i := range raw {
				raw[i] = byte(rand.N(256))
			}
			leaf := &x509.Certificate{Raw: raw, NotBefore: made.Add(-backdate), NotAfter: made.Add(life)}
			at := RenewalOf(leaf)
			if in := at.Sub(made); in < life*60/100-time.Second || in > life*66/100+time.Second || !at.Equal(RenewalOf(leaf)) {
				t.Errorf("a life of %s is renewed after %s", life, in)
			}
			seen[at] = true
		}
		if len(seen) < 2 {
			t.Errorf("a life of %s: all are renewed at once", life)
		}
	}
}

// TestIssued: a certificate is asked for again while core refuses, when its time
// has come, and at once when it is not right any more, and is shown no longer
// than it is good.
func TestIssued(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, err := pki.CreateAuthority(filepath.Join(t.TempDir(), "ca"), pki.Secret{}, "test.internal", time.Now())
		if err != nil {
			t.Fatal(err)
		}
		var log logged
		var asked atomic.Int64
		var refuse, good atomic.Bool
		refuse.Store(true)
		good.Store(true)
		i := (&Issued{What: "the public port", As: "public port", Missing: &pki.Refusal{Code: "no_certificate"}, Log: log.logger(),
			Now: time.Now, Good: func(*x509.Certificate) bool { return good.Load() },
			Request: func(_ context.Context, csr []byte) ([][]byte, error) {
				if asked.Add(1); refuse.Load() {
					return nil, errors.New("core is busy")
				}
				parsed, err := pki.ParseCSR(csr)
				if err != nil {
					return nil, err
				}
				issued, err := ca.IssueLeaf(pki.LeafRequest{PublicKey: parsed.PublicKey, Server: true, DNS: []string{"localhost"}, Lifetime: time.Hour}, time.Now())
				if err != nil {
					return nil, err
				}
				return issued.DER(), nil
			}}).Open()
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go i.Run(ctx)
		time.Sleep(20 * time.Minute)
		if _, err := i.Certificate(); err == nil || asked.Load() < 20 || i.Report() != nil || strings.Count(log.text(), "core is busy") != 1 {
			t.Errorf("%v after %d refusals, report %v\n%s", err, asked.Load(), i.Report(), log.text())
		}
		refuse.Store(false)
		asked.Store(0)
		time.Sleep(time.Minute)
		first, err := i.Certificate()
		if err != nil || asked.Load() != 1 || i.Report().GetError() != "" {
			t.Fatalf("%v, asked %d times, report %v", err, asked.Load(), i.Report())
		}
		good.Store(false)
		i.Kick()
		synctest.Wait()
		second, err := i.Certificate()
		if err != nil || asked.Load() != 2 || second == first {
			t.Fatalf("a certificate that is not right stays: %v, asked %d times", err, asked.Load())
		}
		good.Store(true)
		refuse.Store(true)
		time.Sleep(50 * time.Minute) // it was due at 0.66 of the hour at the latest
		if c, err := i.Certificate(); err != nil || c != second || asked.Load() < 3 || i.Report().GetError() == "" {
			t.Errorf("the former one does not serve on: %v, asked %d times", err, asked.Load())
		}
		time.Sleep(11 * time.Minute)
		if _, err := i.Certificate(); err == nil {
			t.Error("a certificate that has ended is shown")
		}
	})
}
