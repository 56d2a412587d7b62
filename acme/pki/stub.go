package pki

import (
	"crypto"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"net/netip"
	"time"

	"sallyport/roles/control"
)

var errStub = errors.New("not built yet")

type Bundle struct {
	TrustDomain                                        string
	Roots, ComponentIntermediates, CallerIntermediates []*x509.Certificate
}

func (b *Bundle) PEM() []byte                                 { return nil }
func (b *Bundle) Proto() *control.TrustBundle                 { return nil }
func (b *Bundle) RootPool() *x509.CertPool                    { return nil }
func (b *Bundle) Pins() [][32]byte                            { return nil }
func BundleFromProto(p *control.TrustBundle) (*Bundle, error) { return nil, errStub }

type Credentials struct {
	ID    ID
	Chain []*x509.Certificate
	Key   crypto.Signer
}

func (c *Credentials) TLS() tls.Certificate              { return tls.Certificate{} }
func (c *Credentials) JoinTLS(b *Bundle) tls.Certificate { return tls.Certificate{} }
func (c *Credentials) Incarnation() uint64               { return 0 }

var (
	ErrNoAuthority     = errors.New("no certificate authority")
	ErrAuthorityExists = errors.New("a certificate authority exists already")
	ErrNoCredentials   = errors.New("no credentials")
	ErrNoPendingKey    = errors.New("no pending key")
)

type Authority struct{}

func CreateAuthority(dir, trustDomain string, now time.Time) (*Authority, error) { return nil, errStub }
func OpenAuthority(dir string) (*Authority, error)                               { return nil, errStub }
func (a *Authority) Bundle() *Bundle                                             { return nil }
func (a *Authority) Pins() [][32]byte                                            { return nil }
func (a *Authority) TrustDomain() string                                         { return "" }

type ComponentRequest struct {
	ID          ID
	Incarnation uint64
	PublicKey   crypto.PublicKey
	DNS         []string
	IPs         []netip.Addr
	Lifetime    time.Duration
}

type LeafRequest struct {
	ID             ID
	PublicKey      crypto.PublicKey
	Subject        *pkix.Name
	DNS            []string
	IPs            []netip.Addr
	URIs           []string
	Client, Server bool
	Lifetime       time.Duration
}

type Issued struct {
	Chain  []*x509.Certificate
	Serial string
}

func (i *Issued) DER() [][]byte { return nil }
func (i *Issued) PEM() []byte   { return nil }

func (a *Authority) IssueComponent(r ComponentRequest, now time.Time) (*Issued, error) {
	return nil, errStub
}
func (a *Authority) IssueLeaf(r LeafRequest, now time.Time) (*Issued, error) { return nil, errStub }
func ParseCSR(der []byte) (*x509.CertificateRequest, error)                  { return nil, errStub }
func NewCSR(key crypto.Signer) ([]byte, error)                               { return nil, errStub }

func Incarnation(cert *x509.Certificate) (uint64, error) { return 0, errStub }
func Serial(cert *x509.Certificate) string               { return "" }
func CertificateID(cert *x509.Certificate) (ID, error)   { return ID{}, errStub }

type Expect struct {
	Role Role
	Name string
}

type Verifier struct {
	TrustDomain string
	Anchors     []*x509.Certificate
	Now         func() time.Time
	Revoked     func(cert *x509.Certificate, id ID, incarnation uint64) bool
}

func (v *Verifier) Component(chain []*x509.Certificate, want Expect) (ID, error) {
	return ID{}, errStub
}
func (v *Verifier) Caller(chain []*x509.Certificate) (ID, error) { return ID{}, errStub }

type Token struct {
	Role                Role
	Name                string
	Expires             time.Time
	Core                string
	Peers               []string
	Pins                [][32]byte
	GRPCTLS, ServerName string
	Reusable            bool
	Seed                [32]byte `json:"-"`
}

func NewToken(t Token, rand io.Reader) (Token, error) { return Token{}, errStub }
func ParseToken(s string) (Token, error)              { return Token{}, errStub }
func (t Token) String() string                        { return "" }
func (t Token) BootstrapKey() ed25519.PrivateKey      { return nil }
func (t Token) PublicKey() ed25519.PublicKey          { return nil }
func (t Token) BootstrapCertificate(now time.Time) (tls.Certificate, error) {
	return tls.Certificate{}, errStub
}
func (t Token) VerifyCore(chain []*x509.Certificate, now time.Time) (ID, error) { return ID{}, errStub }
func BootstrapPublicKey(chain []*x509.Certificate) (ed25519.PublicKey, error)   { return nil, errStub }

func SaveCredentials(dir string, c *Credentials, b *Bundle) error { return errStub }
func LoadCredentials(dir string) (*Credentials, *Bundle, error)   { return nil, nil, errStub }
func SaveKey(dir string, key crypto.Signer) error                 { return errStub }
func PendingKey(dir string) (crypto.Signer, error)                { return nil, errStub }
func DropPendingKey(dir string) error                             { return errStub }

func Describe(w io.Writer, cert *x509.Certificate, now time.Time) {}
func Explain(err error) Refusal                                   { return Refusal{} }
