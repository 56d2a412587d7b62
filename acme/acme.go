// Package acme gets certificates of a public CA, Let's Encrypt or any other that
// speaks ACME (RFC 8555), by certmagic, and keeps them fresh: for the proxy's
// public port and, where wanted, for the gRPC port of core or of a proxy.
//
// # What it promises
//
// Nothing waits for the CA. A [Manager] serves what its storage holds from the
// first moment; what is missing or due is ordered beside that, every domain for
// itself, and one that cannot be had keeps no other from being had. The former
// certificate serves until the new one is stored whole. Until there is a first
// one, handshakes for its name fail, with the reason in the log: no certificate
// that nobody would trust is shown in its place.
//
// Failures back off: after a refusal of the CA so that its limits on failed
// attempts are not reached (at most five in the first hour), after a failure to
// reach it sooner. [Manager.States] has what failed and when it is tried again.
//
// When to renew is for the CA to say (ARI, RFC 9773); where it says nothing, a
// third of the life is left then. So the alerts at a quarter and a tenth mean
// that something is wrong.
//
// # Proving a domain
//
// By HTTP-01 on plain HTTP ([Front]), which has to be reached on port 80, and by
// TLS-ALPN-01 (RFC 8737) on the public port itself ([Manager.Challenge]), which
// has to be reached on port 443. A handshake that offers acme-tls/1 alone gets
// the proof and is over; no other ever gets that protocol. Whoever shares the
// storage answers for the others: one listener is enough for a core and a proxy
// on one host.
//
// # Several processes
//
// Processes that share a storage order once: the leases of the storage see to
// it, and who comes second finds the certificate there.
//
// # What is secret
//
// Everything that goes into the storage, account keys and certificates' keys
// above all, is sealed with the key of a file beside it (0600), so that a copy of
// the database alone opens nothing. An account's key is stored before it is
// registered: a process that is killed in between registers the same account
// again and not a second one. Nothing secret is logged; certmagic's own log is
// cut down to plain values.
//
// There is no state of certmagic's that is shared: each Manager has its own
// cache, configuration and issuer. (certmagic keeps a table of running
// challenges, and of its own rate limit of orders, for the whole process.)
package acme

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3/acme"

	"sallyport/acme/pki"
	"sallyport/configs"
)

// Settings is what a Manager is made of.
type Settings struct {
	Domains []string      // lower case, as configs checks them
	CA      configs.ACME  // whom to order of, and as whom
	Storage Storage       // closed by its owner, after Run has ended
	KeyFile string        // seals what goes into Storage; made if it is not there; empty: a key in memory, for a storage in memory
	HTTP    bool          // challenges are answered on plain HTTP, by whatever Front has this storage
	TLSALPN bool          // challenges are answered by who calls Challenge
	Log     *slog.Logger  // nil: discarded
	Changed func()        // hears of every certificate that is new in service, and of failures; nil: nobody does
	Instead string        // the way out where no CA can come, as "--tls files"
	Check   time.Duration // between looks at what is due; a minute

	pause func(failures int, err error) time.Duration // in tests; nil: backoff
}

// Manager has the certificates of some domains.
type Manager struct {
	set     Settings
	log     *slog.Logger
	storage *sealed
	roots   *x509.CertPool // of the directory; nil: the public ones
	domains []*domain
	byName  map[string]*domain

	// Of a running Manager.
	config *certmagic.Config
	issuer *certmagic.ACMEIssuer
	cache  *certmagic.Cache
	ready  chan struct{} // closed once the three are there
}

// domain is one name and its certificate.
type domain struct {
	name string

	mu       sync.Mutex // guards what follows
	held     *tls.Certificate
	trouble  string    // why there is no newer one
	failures int       // in a row
	next     time.Time // of the next attempt after a failure
	due      int       // certificates in a row that were due at once
}

// State is what there is to say of one domain.
type State struct {
	Domain   string
	Leaf     *x509.Certificate // nil: there is none yet
	Error    string            // why the last order failed; empty: it did not
	Failures int               // in a row
	Next     time.Time         // when it is tried again after a failure
}

// New opens the storage. It starts nothing and waits for nobody.
func New(ctx context.Context, s Settings) (*Manager, error) {
	if s.Log == nil {
		s.Log = slog.New(slog.DiscardHandler)
	}
	if s.Changed == nil {
		s.Changed = func() {}
	}
	if s.Check <= 0 {
		s.Check = checkEvery
	}
	if s.pause == nil {
		s.pause = backoff
	}
	m := &Manager{set: s, log: s.Log, byName: make(map[string]*domain), ready: make(chan struct{})}
	var err error
	if m.storage, err = openSealed(ctx, s.Storage, s.KeyFile); err != nil {
		return nil, err
	}
	if s.CA.Root != "" {
		if m.roots, err = readRoots(s.CA.Root); err != nil {
			return nil, err
		}
	}
	for _, name := range s.Domains {
		d := &domain{name: name}
		if m.byName[name] == nil {
			m.domains, m.byName[name] = append(m.domains, d), d
		}
	}
	return m, nil
}

// readRoots reads who vouches for the directory.
func readRoots(file string) (*x509.CertPool, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("--acme-root: %w", err)
	}
	certs, err := pki.ParseCertificatesPEM(text)
	if err != nil || len(certs) == 0 {
		return nil, fmt.Errorf("--acme-root: %s holds no certificate (%w)", file, err)
	}
	pool := x509.NewCertPool()
	for _, c := range certs {
		pool.AddCert(c)
	}
	return pool, nil
}

const (
	checkEvery   = time.Minute
	attemptTime  = 15 * time.Minute // of one order with everything that it waits for
	loadAgain    = 200 * time.Millisecond
	loadAttempts = 5
)

// Run keeps the certificates until ctx ends.
func (m *Manager) Run(ctx context.Context) error {
	// certmagic opens a listener for challenges unless the port is taken by
	// somebody who can be reached. Ours are elsewhere: this takes the port.
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	for said := false; err != nil; taken, err = net.Listen("tcp", "127.0.0.1:0") {
		if !said {
			said = true
			m.log.Error("no certificates are ordered: no port of this host can be opened, trying again", "cause", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(silenceFirst):
		}
	}
	var running sync.WaitGroup
	defer running.Wait()
	defer taken.Close()
	running.Go(func() {
		for {
			nc, err := taken.Accept()
			if err != nil {
				return
			}
			nc.Close()
		}
	})
	m.start(taken.Addr().(*net.TCPAddr))
	defer m.cache.Stop()
	for _, d := range m.domains {
		running.Go(func() { m.keep(ctx, d) })
	}
	<-ctx.Done()
	return nil
}

// start makes certmagic's parts.
func (m *Manager) start(taken *net.TCPAddr) {
	log := newQuiet(m.log)
	m.cache = certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert:   func(certmagic.Certificate) (*certmagic.Config, error) { return m.config, nil },
		RenewCheckInterval: m.set.Check * 10,
		Logger:             log,
	})
	m.config = certmagic.New(m.cache, certmagic.Config{
		Storage:   m.storage,
		KeySource: certmagic.StandardKeyGenerator{KeyType: certmagic.P256},
		OnEvent:   m.event,
		Logger:    log,
	})
	template := certmagic.ACMEIssuer{
		CA: m.set.CA.Directory, Email: m.set.CA.Email, Agreed: true, // or configs would have refused
		TrustedRoots:            m.roots,
		DisableHTTPChallenge:    !m.set.HTTP,
		DisableTLSALPNChallenge: !m.set.TLSALPN,
		ListenHost:              taken.IP.String(), AltHTTPPort: taken.Port, AltTLSALPNPort: taken.Port,
		NewAccountFunc: m.newAccount,
		Logger:         log,
	}
	if m.set.CA.EABKeyID != "" {
		template.ExternalAccount = &acme.EAB{KeyID: m.set.CA.EABKeyID, MACKey: m.set.CA.EABKey.Reveal()}
	}
	m.issuer = certmagic.NewACMEIssuer(m.config, template)
	boundAnswers(m.issuer)
	// Not tried out on a staging CA first: who goes there is configured.
	m.issuer.TestCA = ""
	m.config.Issuers = []certmagic.Issuer{m.issuer}
	close(m.ready)
}

// started says whether Run has made what challenges are answered with.
func (m *Manager) started() bool {
	select {
	case <-m.ready:
		return true
	default:
		return false
	}
}

// newAccount keeps the key of an account before it is registered, and takes the
// one that was kept when an earlier registration was cut off. certmagic holds the
// account's lease meanwhile.
func (m *Manager) newAccount(ctx context.Context, i *certmagic.ACMEIssuer, a acme.Account) (acme.Account, error) {
	who := "default"
	if m.set.CA.Email != "" {
		who = m.set.CA.Email
	}
	key := "sallyport/accounts/" + certmagic.StorageKeys.Safe(i.IssuerKey()) + "/" + certmagic.StorageKeys.Safe(who)
	if text, err := m.storage.Load(ctx, key); err == nil {
		if a.PrivateKey, err = certmagic.PEMDecodePrivateKey(text); err != nil {
			return a, fmt.Errorf("the account's stored key: %w", err)
		}
		return a, nil
	}
	text, err := certmagic.PEMEncodePrivateKey(a.PrivateKey)
	if err != nil {
		return a, err
	}
	return a, m.storage.Store(ctx, key, text)
}

// Certificate is what a handshake of a port with some of the domains presents:
// that of the name asked for, else the first there is, which tells who looks for
// another name what this is.
func (m *Manager) Certificate(asked string, names []string) (*tls.Certificate, error) {
	if asked = strings.ToLower(asked); slices.Contains(names, asked) {
		return m.CertificateOf(asked)
	}
	var ended *tls.Certificate
	var first error
	for _, name := range names {
		c, err := m.CertificateOf(name)
		switch {
		case err == nil && time.Now().Before(c.Leaf.NotAfter):
			return c, nil
		case err == nil:
			ended = cmp.Or(ended, c)
		default:
			first = cmp.Or(first, err)
		}
	}
	if ended != nil {
		return ended, nil
	}
	return nil, first
}

// CertificateOf is the certificate of one of the domains.
func (m *Manager) CertificateOf(name string) (*tls.Certificate, error) {
	if d := m.byName[name]; d != nil {
		return d.certificate()
	}
	return nil, fmt.Errorf("%s is no name that a certificate is ordered for", name)
}

func (d *domain) certificate() (*tls.Certificate, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.held != nil {
		return d.held, nil
	}
	r := &pki.Refusal{Code: CodeNoCertificate, Cause: "there is no certificate for " + d.name + " yet: it is being ordered", Remedy: "wait a moment"}
	if d.trouble != "" {
		r.Cause = "there is no certificate for " + d.name + " yet: " + d.trouble
		r.Remedy = "it is tried again at " + d.next.UTC().Format(time.RFC3339)
	}
	return nil, r
}

// CodeNoCertificate is why a handshake fails while there is no certificate.
const CodeNoCertificate = "no_certificate"

// States are those of all domains, in the order of the settings.
func (m *Manager) States() []State {
	list := make([]State, 0, len(m.domains))
	for _, d := range m.domains {
		d.mu.Lock()
		s := State{Domain: d.name, Error: d.trouble, Failures: d.failures, Next: d.next}
		if d.held != nil {
			s.Leaf = d.held.Leaf
		}
		d.mu.Unlock()
		list = append(list, s)
	}
	return list
}

// Challenge is the configuration for a handshake by which a CA looks for a
// proof: one that offers acme-tls/1 and nothing else. Nil for every other.
// After such a handshake there is nothing to be said.
func (m *Manager) Challenge(hello *tls.ClientHelloInfo) *tls.Config {
	if !m.set.TLSALPN || !slices.Equal(hello.SupportedProtos, []string{ProtocolChallenge}) || !m.started() {
		return nil
	}
	return &tls.Config{
		MinVersion:             tls.VersionTLS12,
		NextProtos:             []string{ProtocolChallenge},
		SessionTicketsDisabled: true,
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if hello.ServerName == "" || !slices.Equal(hello.SupportedProtos, []string{ProtocolChallenge}) {
				return nil, errNoChallenge
			}
			c, err := m.config.GetCertificateWithContext(hello.Context(), hello)
			if err != nil {
				return nil, errNoChallenge
			}
			return c, nil
		},
	}
}

// ProtocolChallenge is the protocol of TLS-ALPN-01.
const ProtocolChallenge = "acme-tls/1"

var errNoChallenge = &pki.Refusal{Code: "no_challenge", Cause: "somebody looked for the proof that a CA asks for, and no CA has been asked for such a certificate",
	Remedy: "none, if a stranger did it; if an order fails at the same time, the name leads to another host of yours than the one that orders"}
