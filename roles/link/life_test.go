package link

import (
	"context"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/test/bufconn"

	"sallyport/acme/pki"
	"sallyport/roles/control"
)

// registry is what core's store decides about keys, in short.
type registry struct {
	lifetime time.Duration

	mu     sync.Mutex
	ca     *pki.Authority
	keys   map[pki.ID]*keyRow
	issued int
	alarms []string
	refuse *pki.Refusal // everybody, for now
	lose   int          // so many answers are lost on their way
}

type keyRow struct {
	confirmed, pending [32]byte
	grant              *control.JoinGrant
	former             map[[32]byte]bool
	changes            int // of the confirmed key
}

func (g *registry) authority() *pki.Authority {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.ca
}

func (g *registry) row(id pki.ID) *keyRow {
	if g.keys[id] == nil {
		g.keys[id] = &keyRow{former: map[[32]byte]bool{}}
	}
	return g.keys[id]
}

func (g *registry) renew(_ context.Context, a RenewAttempt) (*control.JoinGrant, *pki.Refusal) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.refuse != nil {
		return nil, g.refuse
	}
	row, holder := g.row(a.ID), pki.SPKI(a.Holder)
	if r := row.saw(holder); r != nil {
		g.alarms = append(g.alarms, r.Code+" "+a.ID.Name)
		return nil, r
	}
	if row.pending != [32]byte{} && row.pending != a.SPKI {
		g.alarms = append(g.alarms, "pending_other "+a.ID.Name)
		return nil, &pki.Refusal{Code: "pending_other", Cause: "another key is pending", Remedy: "add it again"}
	}
	if row.pending != a.SPKI {
		issued, err := g.ca.IssueComponent(pki.ComponentRequest{ID: a.ID, Incarnation: a.Incarnation, PublicKey: a.PublicKey, Lifetime: g.lifetime}, time.Now())
		if err != nil {
			return nil, refusalOf(err)
		}
		g.issued++
		row.pending = a.SPKI
		row.grant = &control.JoinGrant{Chain: issued.DER(), Bundle: g.ca.Bundle().Proto(), Name: a.ID.Name}
	}
	if g.lose > 0 {
		g.lose--
		return nil, &pki.Refusal{Code: "core_error", Cause: "the answer is lost", Remedy: "it comes again"}
	}
	return row.grant, nil
}

// saw: who holds the pending key has had the answer.
func (r *keyRow) saw(key [32]byte) *pki.Refusal {
	switch {
	case r.former[key]:
		return &pki.Refusal{Code: "key_superseded", Cause: "a newer key was seen", Remedy: "add it again"}
	case r.confirmed == [32]byte{}:
		r.confirmed = key
	case r.pending == key:
		r.former[r.confirmed] = true
		r.confirmed, r.pending, r.grant = key, [32]byte{}, nil
		r.changes++
	}
	return nil
}

// check is Port.Check and, on sessions, store.SawKey.
func (g *registry) check(alpn string, p Peer) *pki.Refusal {
	g.mu.Lock()
	defer g.mu.Unlock()
	row, key := g.row(p.ID), pki.SPKI(p.Chain[0])
	if alpn == ALPNControl {
		return row.saw(key)
	}
	if row.former[key] {
		return &pki.Refusal{Code: "key_superseded", Cause: "a newer key was seen", Remedy: "add it again"}
	}
	return nil
}

// life is core and one component, which live together for long: whoever
// dials, dials again.
type life struct {
	t    *testing.T
	c    *ca
	role pki.Role
	reg  *registry
	log  logged

	coreSelf  *Self
	core      *CoreEnd
	registrar *Registrar
	self      *Self
	dir       string
	end       *ComponentEnd
	renewer   *Renewer

	mu       sync.Mutex
	buf      *bufconn.Listener
	sessions int
	ready    []string
	renewals int
}

func newLife(t *testing.T, role pki.Role, lifetime time.Duration) *life {
	c := newCA(t)
	l := &life{t: t, c: c, role: role, dir: t.TempDir(), reg: &registry{ca: c.authority, lifetime: lifetime, keys: map[pki.ID]*keyRow{}}}
	l.coreSelf = NewSelf()
	l.renewCore(lifetime)
	l.core = &CoreEnd{Log: l.log.logger(), Renew: l.reg.renew, Opened: func(s, _ *Session) *pki.Refusal {
		l.mu.Lock()
		l.sessions++
		l.mu.Unlock()
		return l.reg.check(ALPNControl, s.Peer)
	}}
	l.registrar = &Registrar{Log: l.log.logger(), Renew: l.reg.renew, Verifier: l.recovery}
	cr := l.issue(role, "one", lifetime)
	if err := pki.SaveCredentials(l.dir, cr, c.authority.Bundle()); err != nil {
		t.Fatal(err)
	}
	l.open()
	return l
}

func (l *life) recovery() *pki.Verifier {
	return l.reg.authority().RecoveryVerifier(time.Now, l.coreSelf.Revoked)
}

func (l *life) issue(role pki.Role, name string, lifetime time.Duration) *pki.Credentials {
	l.t.Helper()
	key, err := pki.NewKey("p256")
	if err != nil {
		l.t.Fatal(err)
	}
	issued, err := l.reg.authority().IssueComponent(pki.ComponentRequest{ID: l.c.id(role, name), Incarnation: 1, PublicKey: key.Public(), Lifetime: lifetime}, time.Now())
	if err != nil {
		l.t.Fatal(err)
	}
	return &pki.Credentials{ID: l.c.id(role, name), Chain: issued.Chain, Key: key}
}

func (l *life) renewCore(lifetime time.Duration) {
	cr, a := l.issue(pki.RoleCore, "core", lifetime), l.reg.authority()
	l.coreSelf.SetCore(cr, a.Bundle(), a.RecoveryChain(cr))
}

// open is the component's start, from what is on its disk.
func (l *life) open() {
	l.t.Helper()
	self, token, err := OpenSelf(l.dir, l.role, "")
	if err != nil || token != nil {
		l.t.Fatal(err, token)
	}
	l.self = self
	l.end = &ComponentEnd{Hello: hello(1), Apply: self.Apply, Log: l.log.logger()}
	l.renewer = &Renewer{Self: self, Dir: l.dir, End: l.end, Log: l.log.logger(),
		Renewed: func() { l.mu.Lock(); l.renewals++; l.mu.Unlock() },
		Ready: func(err error) {
			l.mu.Lock()
			defer l.mu.Unlock()
			text := "ready"
			if err != nil {
				text = err.Error()
			}
			l.ready = append(l.ready, text)
		}}
	if l.role == pki.RoleGateway {
		l.renewer.Dial = func(ctx context.Context) (*Conn, error) { return l.dial(ctx, ALPNRenew) }
	}
}

func (l *life) connect(ctx context.Context, _, _ string) (net.Conn, error) {
	l.mu.Lock()
	buf := l.buf
	l.mu.Unlock()
	if buf == nil {
		return nil, &net.OpError{Op: "dial", Err: context.DeadlineExceeded}
	}
	return buf.DialContext(ctx)
}

// dial is the dialling side's, of whichever role.
func (l *life) dial(ctx context.Context, alpn string) (*Conn, error) {
	if l.role == pki.RoleGateway {
		return (&Dialler{Self: l.self, Connect: l.connect}).Dial(ctx, "bufconn:1", alpn, pki.Expect{Role: pki.RoleCore})
	}
	return l.coreDialler().Dial(ctx, "bufconn:1", alpn, pki.Expect{Role: pki.RoleProxy, Name: "one"})
}

// run runs everything until the returned function is called.
func (l *life) run() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	buf := bufconn.Listen(256 << 10)
	l.mu.Lock()
	l.buf = buf
	l.mu.Unlock()
	port := &Port{Self: l.coreSelf, Log: l.log.logger(), Expect: pki.RoleGateway, Recover: l.registrar.ServeRecover, Check: l.reg.check,
		Handlers: map[string]Handler{ALPNRelay: hold, ALPNControl: func(ctx context.Context, conn *Conn) { l.core.Serve(ctx, conn) }}}
	if l.role == pki.RoleProxy {
		port = &Port{Self: l.self, Log: l.log.logger(), Expect: pki.RoleCore, Recover: l.renewer.ServeRecover,
			Handlers: map[string]Handler{ALPNRelay: hold, ALPNControl: func(ctx context.Context, conn *Conn) { l.end.Run(ctx, conn) }}}
	}
	all.Go(func() { port.Serve(ctx, buf) })
	all.Go(func() { l.renewer.Run(ctx) })
	all.Go(func() {
		KeepFresh(ctx, l.log.logger(), "control session", func(ctx context.Context, turn *Turn) error {
			conn, err := l.dial(ctx, ALPNControl)
			if err != nil {
				return l.trouble(ctx, err)
			}
			defer conn.Close()
			turn.Use(conn)
			if l.role == pki.RoleGateway {
				return l.end.Run(ctx, conn)
			}
			return l.core.Serve(ctx, conn)
		})
	})
	return func() {
		cancel()
		all.Wait()
		l.mu.Lock()
		l.buf = nil
		l.mu.Unlock()
	}
}

// trouble is what the side that dials does when it cannot.
func (l *life) trouble(ctx context.Context, err error) error {
	if l.role == pki.RoleGateway {
		l.renewer.Trouble(err)
		return err
	}
	return l.registrar.Mend(ctx, l.coreDialler(), "bufconn:1", pki.Expect{Role: pki.RoleProxy, Name: "one"}, err)
}

func (l *life) coreDialler() *Dialler {
	return &Dialler{Self: l.coreSelf, Connect: l.connect, Recovery: l.recovery}
}

func (g *registry) stats() (issued int, alarms []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.issued, slices.Clone(g.alarms)
}

func (g *registry) answer(r *pki.Refusal) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.refuse = r
}

func (l *life) renewed() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.renewals
}

func (l *life) confirmed() int {
	l.reg.mu.Lock()
	defer l.reg.mu.Unlock()
	return l.reg.row(l.c.id(l.role, "one")).changes
}

// connected reports whether both ends have a session that is not ending.
func (l *life) connected() bool {
	s := l.core.Session(l.c.id(l.role, "one"))
	return s != nil && s.ctx.Err() == nil && l.end.Connected()
}

func (l *life) readiness() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string(nil), l.ready...)
}
