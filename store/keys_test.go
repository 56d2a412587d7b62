package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"sallyport/acme/pki"
)

// move is one thing that happens in a story about gateway "orders", which
// joined at noon with key a.
type move struct {
	do     string // session, link, renew, remove, add, revoke, keep
	key    string // that is shown; revoke: whose certificate
	next   string // renew: of the request; add: that it joins with
	source string
	at     time.Duration // after noon
	begun  time.Duration // of the handshake; 0: at
	want   error
	again  bool
	alarms int // audited until then
}

// cast plays a story: it issues as core would, and knows every certificate.
type cast struct {
	t      *testing.T
	c      *Core
	certs  map[string]CertificateRecord // by key, the newest
	issued int
	last   Renewed
}

const day = 24 * time.Hour

// issue makes a certificate of a day from an hour of the story on.
func (p *cast) issue(key string, at time.Time) func(ComponentRecord) (CertificateRecord, [][]byte, error) {
	return func(r ComponentRecord) (CertificateRecord, [][]byte, error) {
		p.issued++
		c := p.made(r, key, at)
		p.certs[key] = c
		return c, [][]byte{c.DER, []byte("intermediate")}, nil
	}
}

// made is a certificate that the CA signed, whether core knows it or not.
func (p *cast) made(r ComponentRecord, key string, at time.Time) CertificateRecord {
	serial := fmt.Sprintf("%x", sha256.Sum256(fmt.Appendf(nil, "%s %d %s %d", r.Label(), r.Incarnation, key, p.issued)))[:16]
	return CertificateRecord{
		Serial: serial, Identity: "spiffe://sallyport.internal/" + r.Label(), Kind: string(r.Role), Incarnation: r.Incarnation,
		NotBefore: at.Add(-time.Minute), NotAfter: at.Add(day), SPKI: hash(key), DER: []byte("certificate " + serial),
	}
}

func (p *cast) join(name, key string, at time.Time) {
	p.t.Helper()
	token := TokenRecord{PublicKey: hash(fmt.Sprint("token ", name, key)), Expires: at.Add(ttl)}
	r := add(p.t, p.c, ComponentRecord{Role: pki.RoleGateway, Name: name}, token)
	if _, err := p.c.Adopt(p.t.Context(), "newcomer", Adoption{TokenPublicKey: token.PublicKey, SPKI: hash(key), Source: here, Issue: p.issue(key, at)}, at); err != nil {
		p.t.Fatal(r, err)
	}
}

func (p *cast) use(m move) KeyUse {
	c, ok := p.certs[m.key]
	if !ok { // signed by the CA, and core never heard of it
		c = p.made(ComponentRecord{Role: pki.RoleGateway, Name: "orders", Incarnation: 1}, m.key, noon)
	}
	u := KeyUse{Certificate: c, Source: m.source}
	if m.begun != 0 {
		u.Begun = noon.Add(m.begun)
	}
	return u
}

func (p *cast) play(m move) error {
	now, before := noon.Add(m.at), p.issued
	p.c.Now = func() time.Time { return now }
	switch m.do {
	case "session":
		v, err := p.c.SawKey(p.t.Context(), p.use(m), now)
		if (err == nil) != (v.State == KeyConfirmed) {
			p.t.Errorf("verdict %+v with error %v", v, err)
		}
		return err
	case "link":
		v, err := p.c.CheckKey(p.t.Context(), p.use(m), now)
		if (err == nil) != (v.State == KeyConfirmed || v.State == KeyPending) {
			p.t.Errorf("verdict %+v with error %v", v, err)
		}
		return err
	case "renew":
		got, err := p.c.Renew(p.t.Context(), "gateway/orders", Renewal{Holder: p.use(m), NewSPKI: hash(m.next), Issue: p.issue(m.next, now)}, now)
		if issued := p.issued - before; (err == nil) != (len(got.Chain) == 2) || (issued == 1) != (err == nil && !m.again) || got.Again != m.again {
			p.t.Errorf("%d certificates, issued %d times, again %v, %v", len(got.Chain), issued, got.Again, err)
		}
		if m.again && (got.Serial != p.last.Serial || !bytes.Equal(got.Chain[0], p.last.Chain[0]) || !bytes.Equal(got.Chain[1], p.last.Chain[1])) {
			p.t.Error("another answer than the first one")
		}
		if err == nil {
			p.last = got
		}
		return err
	case "keep": // what it has now, for later
		p.certs[m.key+" kept"] = p.certs[m.key]
		return nil
	case "remove":
		_, err := p.c.RemoveComponent(p.t.Context(), operator, pki.RoleGateway, "orders")
		return err
	case "add":
		p.join("orders", m.next, now)
		return nil
	case "revoke":
		_, err := p.c.RevokeCertificate(p.t.Context(), operator, RevokeRequest{Serial: p.certs[m.key].Serial, Reason: "keyCompromise"}, now)
		return err
	}
	p.t.Fatal(m.do)
	return nil
}

const minute = time.Minute

// stories are the rules of which key counts, one by one.
var stories = map[string][]move{
	"renewal": {
		{do: "session", key: "a", source: here, at: minute},
		{do: "renew", key: "a", next: "b", source: here, at: 15 * time.Hour},
		{do: "link", key: "b", source: here, at: 15*time.Hour + 1},    // pending: good on every link
		{do: "session", key: "a", source: here, at: 15*time.Hour + 2}, // and the one before as well
		{do: "session", key: "b", source: here, at: 15*time.Hour + 3},
		{do: "session", key: "b", source: here, at: 15*time.Hour + 4},
		{do: "renew", key: "b", next: "c", source: here, at: 30 * time.Hour},
		{do: "session", key: "c", source: here, at: 30*time.Hour + 1},
		{do: "link", key: "c", source: here, at: 30*time.Hour + 2},
	},
	"lost answer": {
		{do: "renew", key: "a", next: "b", source: here, at: minute},
		{do: "renew", key: "a", next: "b", source: here, at: 2 * minute, again: true},
		{do: "renew", key: "a", next: "b", source: far, at: time.Hour, again: true},
		{do: "session", key: "b", source: here, at: 2 * time.Hour},
		{do: "link", key: "a", source: here, at: 3 * time.Hour, want: ErrSuperseded, alarms: 1},
	},
	"lost answer, found ten days later": {
		{do: "renew", key: "a", next: "b", source: here, at: 15 * time.Hour},
		{do: "renew", key: "a", next: "b", source: here, at: 10 * day}, // issued anew: what it got has ended
		{do: "renew", key: "a", next: "b", source: here, at: 10*day + minute, again: true},
		{do: "session", key: "b", source: here, at: 10*day + 2*minute},
	},
	"another key while one is pending": {
		{do: "renew", key: "a", next: "b", source: here, at: minute},
		{do: "renew", key: "a", next: "c", source: far, at: 2 * minute, want: ErrPendingOther, alarms: 1},
		{do: "renew", key: "a", next: "d", source: far, at: 3 * minute, want: ErrPendingOther, alarms: 2},
		{do: "renew", key: "a", next: "e", source: far, at: 4 * minute, want: ErrPendingOther, alarms: 2},
		{do: "renew", key: "a", next: "b", source: here, at: 5 * minute, again: true, alarms: 2},
		{do: "renew", key: "a", next: "c", source: far, at: 10 * day, want: ErrPendingOther, alarms: 3}, // also when what is pending has ended
		{do: "session", key: "c", source: far, at: 10 * day, want: ErrNotJoined, alarms: 4},
	},
	"a copy with a superseded key": {
		{do: "renew", key: "a", next: "b", source: here, at: minute},
		{do: "session", key: "b", source: here, at: 2 * minute},
		{do: "session", key: "a", source: far, at: 3 * minute, want: ErrSuperseded, alarms: 1},
		{do: "link", key: "a", source: far, at: 4 * minute, want: ErrSuperseded, alarms: 2},
		{do: "renew", key: "a", next: "x", source: far, at: 5 * minute, want: ErrSuperseded, alarms: 2},
		{do: "renew", key: "a", next: "b", source: far, at: 6 * minute, want: ErrSuperseded, alarms: 3},
		{do: "session", key: "b", source: here, at: 7 * minute, alarms: 3},
	},
	"a copy renews first": {
		{do: "renew", key: "a", next: "x", source: far, at: minute},
		{do: "session", key: "x", source: far, at: 2 * minute},
		{do: "session", key: "a", source: here, at: 3 * minute, want: ErrSuperseded, alarms: 1}, // the original
		{do: "renew", key: "a", next: "b", source: here, at: 4 * minute, want: ErrSuperseded, alarms: 2},
		{do: "session", key: "x", source: far, at: 5 * minute, alarms: 2}, // until the operator acts
		{do: "remove", at: 6 * minute, alarms: 2},
		{do: "session", key: "x", source: far, at: 7 * minute, want: ErrRevoked, alarms: 2},
	},
	"a copy renews first and stays away": {
		{do: "renew", key: "a", next: "x", source: far, at: minute},
		{do: "session", key: "a", source: here, at: 2 * minute},
		{do: "renew", key: "a", next: "b", source: here, at: 3 * minute, want: ErrPendingOther, alarms: 1}, // the original
	},
	"begun before": {
		{do: "renew", key: "a", next: "b", source: here, at: minute},
		{do: "session", key: "b", source: here, at: 10 * minute},
		{do: "link", key: "a", source: here, at: 11 * minute, begun: 10*minute - 1, want: ErrSuperseded},
		{do: "session", key: "a", source: here, at: 11 * minute, begun: 9 * minute, want: ErrSuperseded},
		{do: "renew", key: "a", next: "c", source: here, at: 11 * minute, begun: 9 * minute, want: ErrSuperseded},
		{do: "link", key: "a", source: here, at: 11 * minute, begun: 10 * minute, want: ErrSuperseded, alarms: 1},
	},
	"a disk rolled back": {
		{do: "renew", key: "a", next: "b", source: here, at: 15 * time.Hour},
		{do: "session", key: "b", source: here, at: 15*time.Hour + minute},
		{do: "renew", key: "b", next: "c", source: here, at: 30 * time.Hour},
		{do: "session", key: "c", source: here, at: 30*time.Hour + minute},
		{do: "session", key: "b", source: here, at: 31 * time.Hour, want: ErrSuperseded, alarms: 1},
		{do: "renew", key: "b", next: "d", source: here, at: 32 * time.Hour, want: ErrSuperseded, alarms: 2},
		{do: "session", key: "a", source: here, at: 33 * time.Hour, want: ErrSuperseded, alarms: 3},
	},
	"a disk rolled back behind the request": {
		{do: "renew", key: "a", next: "b", source: here, at: minute},
		{do: "session", key: "a", source: here, at: 2 * minute},
		{do: "renew", key: "a", next: "c", source: here, at: 3 * minute, want: ErrPendingOther, alarms: 1},
	},
	"ended before it was seen": {
		{do: "renew", key: "a", next: "b", source: here, at: 15 * time.Hour},
		{do: "renew", key: "b", next: "c", source: here, at: 10 * day}, // to ask with it is to show it
		{do: "link", key: "a", source: here, at: 10*day + minute, want: ErrSuperseded, alarms: 1},
		{do: "session", key: "b", source: here, at: 10*day + minute, alarms: 1},
		{do: "session", key: "c", source: here, at: 10*day + 2*minute, alarms: 1},
		{do: "session", key: "b", source: here, at: 10*day + 3*minute, want: ErrSuperseded, alarms: 2},
	},
	"no key twice": {
		{do: "renew", key: "a", next: "a", source: here, at: minute, want: ErrKeyReused},
		{do: "renew", key: "a", next: "b", source: here, at: 2 * minute},
		{do: "renew", key: "b", next: "b", source: here, at: 3 * minute, want: ErrKeyReused},
		{do: "session", key: "b", source: here, at: 4 * minute},
		{do: "renew", key: "b", next: "a", source: here, at: 5 * minute, want: ErrKeyReused},
		{do: "renew", key: "b", next: "b", source: here, at: 6 * minute, want: ErrKeyReused},
	},
	"removed and added again": {
		{do: "renew", key: "a", next: "b", source: here, at: minute},
		{do: "remove", at: 2 * minute},
		{do: "session", key: "a", source: here, at: 3 * minute, want: ErrRevoked},
		{do: "session", key: "b", source: here, at: 3 * minute, want: ErrRevoked},
		{do: "link", key: "b", source: here, at: 3 * minute, want: ErrRevoked},
		{do: "renew", key: "a", next: "c", source: here, at: 3 * minute, want: ErrRevoked},
		{do: "add", next: "z", at: 4 * minute},
		{do: "session", key: "z", source: here, at: 5 * minute},
		{do: "session", key: "a", source: here, at: 6 * minute, want: ErrRevoked},
		{do: "renew", key: "b", next: "c", source: here, at: 6 * minute, want: ErrRevoked},
		{do: "renew", key: "z", next: "a", source: here, at: 7 * minute}, // keys are counted by incarnation, but revoked ones stay revoked
		{do: "renew", key: "z", next: "y", source: here, at: 8 * minute, want: ErrPendingOther, alarms: 1},
	},
	"one certificate revoked": {
		{do: "revoke", key: "a", at: minute},
		{do: "session", key: "a", source: here, at: 2 * minute, want: ErrRevoked},
		{do: "link", key: "a", source: here, at: 2 * minute, want: ErrRevoked},
		{do: "renew", key: "a", next: "b", source: here, at: 2 * minute, want: ErrRevoked},
	},
	"the certificate in use revoked while one is pending": {
		{do: "renew", key: "a", next: "b", source: here, at: minute},
		{do: "revoke", key: "a", at: 2 * minute},
		{do: "session", key: "b", source: here, at: 3 * minute, want: ErrRevoked},
		{do: "renew", key: "b", next: "c", source: here, at: 4 * minute, want: ErrRevoked},
		{do: "renew", key: "a", next: "b", source: here, at: 4 * minute, want: ErrRevoked},
	},
	"a pending certificate revoked": { // it is the one that cert ls shows
		{do: "renew", key: "a", next: "b", source: here, at: minute},
		{do: "revoke", key: "b", at: 2 * minute},
		{do: "session", key: "b", source: here, at: 3 * minute, want: ErrRevoked},
		{do: "session", key: "a", source: here, at: 3 * minute, want: ErrRevoked},
		{do: "renew", key: "a", next: "c", source: here, at: 5 * minute, want: ErrRevoked},
	},
	"a superseded certificate revoked": {
		{do: "renew", key: "a", next: "b", source: here, at: minute},
		{do: "session", key: "b", source: here, at: 2 * minute},
		{do: "renew", key: "b", next: "c", source: here, at: 3 * minute},
		{do: "revoke", key: "a", at: 4 * minute},
		{do: "session", key: "a", source: here, at: 5 * minute, want: ErrRevoked},
		{do: "link", key: "b", source: here, at: 5 * minute},
		{do: "session", key: "c", source: here, at: 6 * minute},
	},
	"a key revoked with its former certificate": {
		{do: "renew", key: "a", next: "b", source: here, at: minute},
		{do: "keep", key: "b", at: minute},
		{do: "renew", key: "a", next: "b", source: here, at: 20 * time.Hour}, // issued anew, for the same key
		{do: "revoke", key: "b kept", at: 21 * time.Hour},
		{do: "session", key: "b", source: here, at: 22 * time.Hour, want: ErrRevoked},
		{do: "link", key: "b", source: here, at: 22 * time.Hour, want: ErrRevoked},
	},
	"signed and never issued": {
		{do: "session", key: "q", source: far, at: minute, want: ErrNotJoined, alarms: 1},
		{do: "session", key: "q", source: far, at: 2 * minute, want: ErrNotJoined, alarms: 1},
		{do: "renew", key: "q", next: "r", source: far, at: 3 * minute, want: ErrNotJoined, alarms: 1},
	},
}

func TestWhichKeyCounts(t *testing.T) {
	for name, story := range stories {
		t.Run(name, func(t *testing.T) {
			eachCore(t, func(t *testing.T, c *Core) {
				p := &cast{t: t, c: c, certs: map[string]CertificateRecord{}}
				p.join("orders", "a", noon)
				for i, m := range story {
					if err := p.play(m); !errors.Is(err, m.want) {
						t.Fatalf("move %d, %s %s: %v, want %v", i, m.do, m.key, err, m.want)
					}
					if n := strings.Count(strings.Join(actions(t, c), "\n"), ActionAlarm); n != m.alarms {
						t.Fatalf("move %d, %s %s: %d alarms, want %d: %q", i, m.do, m.key, n, m.alarms, actions(t, c))
					}
					atMostOneOfEach(t, c)
				}
				verify(t, c)
			})
		})
	}
}

func atMostOneOfEach(t *testing.T, c *Core) {
	t.Helper()
	keys, err := c.Keys(t.Context(), pki.RoleGateway, "orders")
	if errors.Is(err, ErrNotFound) {
		return
	}
	if err != nil || len(keys) == 0 || keys[0].State != KeyConfirmed {
		t.Fatalf("keys %+v, %v", keys, err)
	}
	for i, k := range keys[1:] {
		if k.State != KeySuperseded && (k.State != KeyPending || i > 0) {
			t.Fatalf("key %d is %s", i+1, k.State)
		}
	}
	if r, err := c.Component(t.Context(), pki.RoleGateway, "orders"); err != nil || !bytes.Equal(r.SPKI, keys[0].SPKI) || !r.NotAfter.Equal(keys[0].NotAfter) {
		t.Errorf("the component's key is %x until %v (%v), the confirmed one %x until %v", r.SPKI, r.NotAfter, err, keys[0].SPKI, keys[0].NotAfter)
	}
}

// TestKeysOutliveTheProcess plays the longest story with a new process for every
// move.
func TestKeysOutliveTheProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "core.db")
	p := &cast{t: t, c: openCore(t, path), certs: map[string]CertificateRecord{}}
	p.join("orders", "a", noon)
	for i, m := range stories["removed and added again"] {
		if err := p.c.Close(); err != nil {
			t.Fatal(err)
		}
		p.c = openCore(t, path)
		if err := p.play(m); !errors.Is(err, m.want) {
			t.Fatalf("move %d, %s %s: %v, want %v", i, m.do, m.key, err, m.want)
		}
	}
}

// TestAlarmsSayWhatToDo looks at what an operator reads.
func TestAlarmsSayWhatToDo(t *testing.T) {
	for name, words := range map[string][]string{
		"a copy renews first":                {"alarm.superseded_key", here, "rolled back", "copy", "sallyport gateway rm orders", "add it again"},
		"a copy renews first and stays away": {"alarm.pending_other", here, far, "copy", "sallyport gateway rm orders"},
		"signed and never issued":            {"alarm.unknown_key", far, "no record of", "ca rotate --compromised"},
	} {
		c, err := OpenMemoryCore()
		if err != nil {
			t.Fatal(err)
		}
		p := &cast{t: t, c: c, certs: map[string]CertificateRecord{}}
		p.join("orders", "a", noon)
		for _, m := range stories[name] {
			p.play(m)
		}
		rows, err := c.AuditRows(context.Background(), 0, 100)
		if err != nil {
			t.Fatal(err)
		}
		found := ""
		for _, r := range rows {
			if strings.HasPrefix(r.Action, ActionAlarm) {
				found = r.Action + " " + r.Subject + " " + r.Detail
			}
		}
		for _, w := range append(words, "gateway/orders") {
			if !strings.Contains(found, w) {
				t.Errorf("%s: %q does not say %s", name, found, w)
			}
		}
		c.Close()
	}
}

// TestOneRenewalWins lets a component and its copies renew at the same moment.
func TestOneRenewalWins(t *testing.T) {
	eachCore(t, func(t *testing.T, c *Core) {
		p := &cast{t: t, c: c, certs: map[string]CertificateRecord{}}
		p.join("orders", "a", noon)
		holder := KeyUse{Certificate: p.certs["a"], Source: here}
		var wg sync.WaitGroup
		errs := make([]error, 12)
		for i := range errs {
			wg.Go(func() {
				key := hash(fmt.Sprint("next ", i%4)) // each key three times
				_, errs[i] = c.Renew(t.Context(), "gateway/orders", Renewal{Holder: holder, NewSPKI: key, Issue: issue(key)}, noon)
			})
		}
		wg.Wait()
		won := 0
		for i, err := range errs {
			if err == nil {
				won++
			} else if !errors.Is(err, ErrPendingOther) {
				t.Error(i, err)
			}
		}
		keys, err := c.Keys(t.Context(), pki.RoleGateway, "orders")
		if won != 3 || err != nil || len(keys) != 2 || keys[1].State != KeyPending {
			t.Errorf("%d renewed, keys %+v, %v", won, keys, err)
		}
		verify(t, c)
	})
}

func TestRenewRefusesWhatIsNotARenewal(t *testing.T) {
	eachCore(t, func(t *testing.T, c *Core) {
		p := &cast{t: t, c: c, certs: map[string]CertificateRecord{}}
		p.join("orders", "a", noon)
		p.join("other", "o", noon)
		before := actions(t, c)
		broken := errors.New("the authority is away")
		holder := KeyUse{Certificate: p.certs["a"]}
		caller := holder
		caller.Certificate.Identity = "spiffe://sallyport.internal/client/orders"
		stranger := holder
		stranger.Certificate.Identity = "spiffe://sallyport.internal/proxy/orders"
		next := hash("b")
		for name, test := range map[string]struct {
			r    Renewal
			want error
			text string
		}{
			"no key":          {Renewal{Holder: holder, Issue: issue(nil)}, nil, "32 bytes"},
			"not issued":      {Renewal{Holder: holder, NewSPKI: next, Issue: func(ComponentRecord) (CertificateRecord, [][]byte, error) { return CertificateRecord{}, nil, broken }}, broken, ""},
			"for another key": {Renewal{Holder: holder, NewSPKI: next, Issue: issue(hash("c"))}, nil, "another key"},
			"for another": {Renewal{Holder: holder, NewSPKI: next, Issue: func(r ComponentRecord) (CertificateRecord, [][]byte, error) {
				r.Name = "other"
				return issue(next)(r)
			}}, nil, "gateway/other"},
			"of a caller": {Renewal{Holder: caller, NewSPKI: next, Issue: issue(next)}, nil, "only gateways and proxies"},
		} {
			if got, err := c.Renew(t.Context(), "core", test.r, noon); err == nil || test.want != nil && !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) || got.Chain != nil {
				t.Errorf("%s: %+v, %v", name, got, err)
			}
		}
		if after := actions(t, c); len(after) != len(before) {
			t.Errorf("audited: %v", after)
		}
		if _, err := c.Renew(t.Context(), "core", Renewal{Holder: stranger, NewSPKI: next, Issue: issue(next)}, noon); !errors.Is(err, ErrNotJoined) {
			t.Errorf("of one that never joined: %v", err)
		}
		if _, err := c.Renew(t.Context(), "", Renewal{Holder: holder, NewSPKI: next, Issue: issue(next)}, noon); !errors.Is(err, ErrNoActor) {
			t.Errorf("without actor: %v", err)
		}
		if got, err := c.Renew(t.Context(), "core", Renewal{Holder: holder, NewSPKI: next, Issue: issue(next)}, noon); err != nil || got.Again {
			t.Errorf("the real one: %+v, %v", got, err)
		}
	})
}

// TestAStaleAnswerIsIssuedAnew: the CA was rotated while the answer to a renewal
// was lost.
func TestAStaleAnswerIsIssuedAnew(t *testing.T) {
	eachCore(t, func(t *testing.T, c *Core) {
		p := &cast{t: t, c: c, certs: map[string]CertificateRecord{}}
		p.join("orders", "a", noon)
		ask := Renewal{Holder: KeyUse{Certificate: p.certs["a"]}, NewSPKI: hash("b"), Issue: p.issue("b", noon)}
		first, err := c.Renew(t.Context(), "core", ask, noon)
		if err != nil {
			t.Fatal(err)
		}
		for _, stale := range []bool{false, true, true} {
			asked := ""
			ask.Stale = func(r CertificateRecord) bool { asked = r.Serial; return stale }
			got, err := c.Renew(t.Context(), "core", ask, noon.Add(minute))
			if err != nil || got.Again == stale || asked != first.Serial || (got.Serial == first.Serial) == stale {
				t.Errorf("stale %v: %+v, asked about %s, %v", stale, got, asked, err)
			}
			first = got
		}
		if _, err := c.SawKey(t.Context(), KeyUse{Certificate: p.certs["b"]}, noon.Add(2*minute)); err != nil {
			t.Error(err)
		}
		verify(t, c)
	})
}

// TestShortLivesDoNotFillTheDisk renews for two months with certificates of an
// hour.
func TestShortLivesDoNotFillTheDisk(t *testing.T) {
	c, err := OpenMemoryCore()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.Now = func() time.Time { return noon }
	p := &cast{t: t, c: c, certs: map[string]CertificateRecord{}}
	p.join("orders", "0", noon)
	const step = 12 * time.Hour
	for i := range 150 {
		key, next, at := fmt.Sprint(i), fmt.Sprint(i+1), noon.Add(time.Duration(i+1)*step)
		if _, err := c.Renew(t.Context(), "core", Renewal{Holder: KeyUse{Certificate: p.certs[key]}, NewSPKI: hash(next), Issue: p.issue(next, at)}, at); err != nil {
			t.Fatal(i, err)
		}
		if _, err := c.SawKey(t.Context(), KeyUse{Certificate: p.certs[next]}, at); err != nil {
			t.Fatal(i, err)
		}
	}
	keys, err := c.Keys(t.Context(), pki.RoleGateway, "orders")
	list, err2 := c.Certificates(t.Context(), true, noon)
	// 31 days after the end of a life of one day, at two a day.
	if most := 2*33 + 1; err != nil || err2 != nil || len(keys) > most || len(list) > most+1 {
		t.Errorf("%d keys, %d certificates, %v, %v", len(keys), len(list), err, err2)
	}
	if _, err := c.SawKey(t.Context(), KeyUse{Certificate: p.certs["100"]}, noon.Add(150*step)); !errors.Is(err, ErrSuperseded) {
		t.Errorf("a key that could still be shown: %v", err)
	}
}

// TestRefusedKeysWriteLittle: who holds a superseded key tries as often as he
// likes; the attempts are counted all the same.
func TestRefusedKeysWriteLittle(t *testing.T) {
	eachCore(t, func(t *testing.T, c *Core) {
		ctx := t.Context()
		p := &cast{t: t, c: c, certs: map[string]CertificateRecord{}}
		p.join("orders", "a", noon)
		renew(t, p, "orders", "a", "b", noon.Add(time.Hour), true)
		counted := func() uint64 {
			n, err := one(ctx, c.db.reader, value[uint64], "SELECT alarms FROM identity_keys WHERE spki = ?", p.certs["a"].SPKI)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		at := noon.Add(2 * time.Hour)
		alarms := 0
		for i := range 1000 {
			v, err := c.CheckKey(ctx, KeyUse{Certificate: p.certs["a"], Source: far}, at)
			if i%2 == 0 {
				_, err = c.Renew(ctx, "core", Renewal{Holder: KeyUse{Certificate: p.certs["a"], Source: far}, NewSPKI: hash("z")}, at)
			}
			if !errors.Is(err, ErrSuperseded) {
				t.Fatal(err)
			}
			if v.Alarm {
				alarms++
			}
		}
		if n := counted(); n != attemptsAtOnce || alarms == 0 {
			t.Errorf("%d attempts were written at once, %d alarms", n, alarms)
		}
		v, err := c.CheckKey(ctx, KeyUse{Certificate: p.certs["a"], Source: far}, at.Add(attemptsEvery))
		if n := counted(); !errors.Is(err, ErrSuperseded) || n != 1501 || !v.Alarm {
			t.Errorf("%d attempts are counted, %+v, %v", n, v, err)
		}
	})
}
