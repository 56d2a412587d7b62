package link

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"sallyport/acme/pki"
)

// Renewer keeps the identity of a gateway or proxy good, for as long as Run
// runs.
//
// It renews at 0.60 to 0.66 of the certificate's life, over the control
// session. The new key is on disk before its request leaves, the new
// certificate is on disk before it is used; whatever is lost or killed in
// between, the same key asks again and gets the same certificate. Links that
// are open go on, and whoever dialled them replaces them, see [KeepFresh].
//
// When the identity has expired, or core cannot be spoken to because the CA
// was rotated meanwhile, the identity is recovered on sallyport-renew/1: a
// gateway dials for it, a proxy is dialled by core.
type Renewer struct {
	Self *Self
	Dir  string        // where the identity is kept; empty keeps it in memory
	End  *ComponentEnd // asks core

	// RenewBefore, if set, renews that long before the certificate ends,
	// instead of at a share of its life.
	RenewBefore time.Duration

	// Dial, at a gateway, opens a connection of ALPNRenew to core. Nil at a
	// proxy, to which core comes: see ServeRecover.
	Dial func(ctx context.Context) (*Conn, error)

	// Renewed, if set, hears that a new identity is on disk and in Self. It
	// must not block.
	Renewed func()

	// Ready, if set, hears why the identity cannot be renewed, while there is
	// time to act, and nil when it can again: only when that changes.
	Ready func(error)

	Version string // of the software, for core's records
	Log     *slog.Logger

	renewing sync.Mutex    // one renewal at a time; guards pending
	pending  crypto.Signer // the key that asks, when Dir is empty

	mu      sync.Mutex // guards what follows
	err     error      // what Ready was told last
	trouble error      // why core cannot be spoken to, as Trouble was told
	fresh   time.Time  // until then, what Trouble is told may be about the former identity
	asked   bool       // somebody wants a renewal that is not due
	wake    chan struct{}

	step func(string) error // tests stop at each step here
}

// The share of its life after which a certificate is renewed, drawn anew for
// each, so that components that joined together do not come together.
const (
	renewFrom = 0.60
	renewTo   = 0.66
)

// backdate is how long before its making a certificate's NotBefore lies: the
// CA allows for clocks that are a little behind.
const backdate = time.Minute

// Trouble tells that core could not be reached with this identity. If renewing
// can mend that, Run does so at once. It may be called with any error, nil
// included.
func (r *Renewer) Trouble(err error) {
	if !Recoverable(err) || r.End != nil && r.End.Connected() {
		return
	}
	r.mu.Lock()
	old := time.Now().Before(r.fresh)
	if !old {
		r.trouble = err
	}
	r.mu.Unlock()
	if !old {
		r.kick()
	}
}

// Now renews although it is not due: core's operator asked for it.
func (r *Renewer) Now() {
	r.mu.Lock()
	r.asked = true
	r.mu.Unlock()
	r.kick()
}

// attend takes a wish of Now into the plan.
func (r *Renewer) attend(p *renewalPlan) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.asked && p.leaf != nil {
		r.asked, p.wished, p.notBefore = false, true, time.Time{}
	}
}

// serve makes the control sessions' end pass on that a renewal is wanted.
func (r *Renewer) serve(end *ComponentEnd, by *Renewer) {
	if end != nil {
		end.mu.Lock()
		end.renewer = by
		end.mu.Unlock()
	}
}

// Err is why the identity cannot be renewed; nil if it can, as far as is known.
func (r *Renewer) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

func (r *Renewer) waker() chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.wake == nil {
		r.wake = make(chan struct{}, 1)
	}
	return r.wake
}

func (r *Renewer) kick() {
	select {
	case r.waker() <- struct{}{}:
	default:
	}
}

func (r *Renewer) log() *slog.Logger {
	if r.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return r.Log
}

// Run renews until ctx ends. Before the component has joined it waits.
func (r *Renewer) Run(ctx context.Context) error {
	r.serve(r.End, r)
	defer r.serve(r.End, nil)
	var plan renewalPlan
	failures := 0
	for {
		life := plan.look(r.Self.state.Load(), r.RenewBefore, r.log())
		r.attend(&plan)
		wait := plan.at.Sub(r.clock())
		if plan.wished || r.troubled() {
			wait = 0
		}
		if plan.leaf == nil {
			wait = time.Second
		}
		wait = max(wait, time.Until(plan.notBefore))
		// Now and then one looks: a machine that slept, a snapshot that says
		// more, a clock that was set right.
		if !r.pause(ctx, min(max(wait, 0), clamp(life/60, 100*time.Millisecond, time.Minute))) {
			return nil
		}
		life = plan.look(r.Self.state.Load(), r.RenewBefore, r.log())
		r.attend(&plan)
		if plan.leaf == nil || !r.due(&plan) {
			continue
		}
		err := r.once(ctx, plan.leaf)
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			failures = 0
			plan.notBefore = time.Now().Add(clamp(life/10, 5*time.Second, time.Minute))
		default:
			pause := min(clamp(life/120, 100*time.Millisecond, time.Second)<<min(failures, 10), clamp(life/30, time.Second, time.Minute))
			plan.notBefore = time.Now().Add(pause - rand.N(pause/2+1))
			if failures++; failures == 1 || isFinal(err) && r.Err() == nil {
				r.logFailure(err, plan.leaf)
			}
		}
		r.judge(err, plan.leaf)
	}
}

// pause waits, until somebody wakes it at the longest; false when ctx ended.
func (r *Renewer) pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
	case <-r.waker():
	}
	return ctx.Err() == nil
}

func (r *Renewer) due(p *renewalPlan) bool {
	if time.Now().Before(p.notBefore) {
		return false
	}
	return p.wished || r.troubled() || !r.clock().Before(p.at)
}

func (r *Renewer) troubled() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.trouble != nil
}

// clock is core's clock, as far as it is known: certificates are made by it.
func (r *Renewer) clock() time.Time {
	now := r.Self.now()
	if r.End == nil {
		return now
	}
	return now.Add(r.End.ClockOffset())
}

// judge decides after an attempt whether the identity can be renewed. That
// core is away for a while is nothing; that it says no, or that nothing can be
// stored, is told at once, and any failure when a quarter of the life is left.
func (r *Renewer) judge(err error, leaf *x509.Certificate) {
	r.mu.Lock()
	former := r.err
	switch {
	case err == nil:
		r.err = nil
	case r.Self.state.Load().leaf() != leaf: // renewed meanwhile
	case isFinal(err) || leaf.NotAfter.Sub(r.clock()) <= lifeOf(leaf)/4:
		r.err = fmt.Errorf("the identity is not renewed, and ends at %s: %w", leaf.NotAfter.UTC().Format(time.RFC3339), err)
	}
	now := r.err
	r.mu.Unlock()
	changed := (now == nil) != (former == nil) || now != nil && now.Error() != former.Error()
	if changed && r.Ready != nil {
		r.Ready(now)
	}
}

func (r *Renewer) logFailure(err error, leaf *x509.Certificate) {
	attrs := []any{"not_after", leaf.NotAfter.UTC()}
	if refusal, ok := pki.AsRefusal(err); ok {
		attrs = append(attrs, "code", refusal.Code, "cause", refusal.Cause, "remedy", refusal.Remedy)
	} else {
		attrs = append(attrs, "cause", err.Error())
	}
	r.log().Warn("the identity was not renewed, trying again", attrs...)
}

// renewalPlan is when the certificate in force is to be renewed.
type renewalPlan struct {
	leaf      *x509.Certificate
	at        time.Time
	share     float64
	moved     time.Time // since when core issues from elsewhere than the certificate is from
	notBefore time.Time // no attempt before, by this process's own clock
	wished    bool      // it is to be renewed now
}

// look takes in what is in force now and returns the certificate's life.
func (p *renewalPlan) look(st *selfState, before time.Duration, log *slog.Logger) time.Duration {
	leaf := st.leaf()
	if leaf == nil {
		p.leaf = nil
		return time.Hour
	}
	life := lifeOf(leaf)
	if leaf != p.leaf {
		*p = renewalPlan{leaf: leaf, share: renewFrom + rand.Float64()*(renewTo-renewFrom), notBefore: p.notBefore}
		if before > life*3/4 {
			log.Warn("--renew-before leaves too little of the certificate's life and is not followed whole", "renew_before", before, "lifetime", life)
		}
	}
	issued := leaf.NotAfter.Add(-life)
	p.at = issued.Add(time.Duration(p.share * float64(life)))
	if before > 0 {
		early := time.Duration((p.share - renewFrom) * float64(before)) // up to 6 %
		p.at = issued.Add(max(life-before-early, life/4))
	}
	if want := st.lifetime; want > 0 && want < life {
		if at := issued.Add(time.Duration(p.share * float64(want))); at.Before(p.at) {
			p.at = at // lifetimes were shortened
		}
	}
	if st.otherIssuer() {
		if p.moved.IsZero() {
			p.moved = time.Now().Add(rand.N(clamp(life/20, time.Second, time.Minute)))
		}
		if p.moved.Before(p.at) {
			p.at = p.moved
		}
	}
	return life
}

// lifeOf is how long a certificate lives, counted from its making.
func lifeOf(leaf *x509.Certificate) time.Duration {
	return max(leaf.NotAfter.Sub(leaf.NotBefore.Add(backdate)), time.Second)
}

// otherIssuer reports whether core issues from another intermediate than the
// one that made the certificate in force: the CA is being rotated.
func (st *selfState) otherIssuer() bool {
	if len(st.issuer) != sha256.Size || st.credentials == nil || len(st.credentials.Chain) < 2 {
		return false
	}
	sum := pki.SPKI(st.credentials.Chain[1])
	return string(sum[:]) != string(st.issuer)
}

func clamp(d, low, high time.Duration) time.Duration { return min(max(d, low), high) }
