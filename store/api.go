// Package store keeps all persistent state in SQLite.
package store

import (
	"context"
	"errors"
	"time"

	"sallyport/acme/pki"
)

// Actor is who decided: "operator:uid=1000", "core", "gateway/orders".
type Actor string

var (
	ErrNotFound       = errors.New("not found")
	ErrExists         = errors.New("already exists")
	ErrNoActor        = errors.New("no actor")
	ErrInUse          = errors.New("in use by another process")
	ErrNewerSchema    = errors.New("written by a newer version")
	ErrTokenUnknown   = errors.New("token unknown")
	ErrTokenExpired   = errors.New("token expired")
	ErrTokenClosed    = errors.New("token closed")
	ErrTokenBound     = errors.New("token bound to another key")
	ErrTokenExhausted = errors.New("token has no uses left")
	ErrAuditBroken    = errors.New("audit chain broken")
	ErrStaleSnapshot  = errors.New("snapshot is older than the one held")
)

// Core is core.db.
type Core struct {
	Now func() time.Time // the clock of audit rows; time.Now unless replaced before first use
}

func OpenCore(path string) (*Core, error) { return nil, errors.ErrUnsupported }
func OpenMemoryCore() (*Core, error)      { return nil, errors.ErrUnsupported }
func (c *Core) Close() error              { return errors.ErrUnsupported }

// Component is proxy.db or gateway.db.
type Component struct{ Now func() time.Time }

func OpenComponent(path string) (*Component, error) { return nil, errors.ErrUnsupported }
func OpenMemoryComponent() (*Component, error)      { return nil, errors.ErrUnsupported }
func (c *Component) Close() error                   { return errors.ErrUnsupported }

// SaveSnapshot is durable when it returns. ErrStaleSnapshot if a newer one is held.
func (c *Component) SaveSnapshot(body []byte, epoch, generation uint64) error {
	return errors.ErrUnsupported
}

// Snapshot returns the last good one; body is nil if there is none.
func (c *Component) Snapshot() (body []byte, epoch, generation uint64, err error) {
	return nil, 0, 0, errors.ErrUnsupported
}

// ForgetSnapshot is for a component that joined anew.
func (c *Component) ForgetSnapshot() error { return errors.ErrUnsupported }

// Put, Get (nil if absent) and Delete: small values, at most 1 MiB.
func (c *Component) Put(key string, value []byte) error { return errors.ErrUnsupported }
func (c *Component) Get(key string) ([]byte, error)     { return nil, errors.ErrUnsupported }
func (c *Component) Delete(key string) error            { return errors.ErrUnsupported }

const (
	StateInvited = "invited"
	StateJoined  = "joined"
	StateRemoved = "removed"
)

type ComponentRecord struct {
	Role                    pki.Role
	Name                    string
	Incarnation             uint64
	Parent                  string // instances of a reusable gateway: the name that was added
	Peers, Serve            []string
	Address, ServerName     string
	Reusable                bool
	State                   string
	Added, Joined, LastSeen time.Time
	SPKI                    []byte // SHA-256 of the SubjectPublicKeyInfo
	NotAfter                time.Time
	Version, Observed       string
}

type TokenRecord struct {
	PublicKey   []byte // Ed25519
	Role        pki.Role
	Name        string
	Incarnation uint64
	Expires     time.Time
	Reusable    bool
	Uses        int // reusable: how many live instances it may make, 0 without bound
	BoundSPKI   []byte
	BoundAt     time.Time
	Source      string
}

func (c *Core) AddComponent(ctx context.Context, actor Actor, r ComponentRecord, t TokenRecord) (ComponentRecord, error) {
	return r, errors.ErrUnsupported
}
func (c *Core) SetComponent(ctx context.Context, actor Actor, role pki.Role, name string, change func(*ComponentRecord) error) (ComponentRecord, error) {
	return ComponentRecord{}, errors.ErrUnsupported
}

// Component and Components leave removed ones out.
func (c *Core) Component(ctx context.Context, role pki.Role, name string) (ComponentRecord, error) {
	return ComponentRecord{}, errors.ErrUnsupported
}

// Components of a role, "" for all.
func (c *Core) Components(ctx context.Context, role pki.Role) ([]ComponentRecord, error) {
	return nil, errors.ErrUnsupported
}
func (c *Core) RemoveComponent(ctx context.Context, actor Actor, role pki.Role, name string) (ComponentRecord, error) {
	return ComponentRecord{}, errors.ErrUnsupported
}

// Sighting is what core saw of a component.
type Sighting struct {
	At                time.Time
	Version, Observed string
}

// SawComponent is not audited; callers coalesce (once a minute is enough).
func (c *Core) SawComponent(ctx context.Context, role pki.Role, name string, s Sighting) error {
	return errors.ErrUnsupported
}

// ForgetInstances removes instances of reusable gateways not seen since before.
func (c *Core) ForgetInstances(ctx context.Context, actor Actor, before time.Time) ([]ComponentRecord, error) {
	return nil, errors.ErrUnsupported
}

func (c *Core) TokenByKey(ctx context.Context, publicKey []byte) (TokenRecord, error) {
	return TokenRecord{}, errors.ErrUnsupported
}

type Adoption struct {
	TokenPublicKey []byte
	SPKI           []byte // SHA-256 of the newcomer's SubjectPublicKeyInfo
	Source         string
	Version        string
	Instance       string // suffix of an instance of a reusable gateway; empty: random
	Issue          func(ComponentRecord) (CertificateRecord, [][]byte, error)
}

type Adopted struct {
	Component ComponentRecord
	Serial    string
	Chain     [][]byte // DER, leaf first
	Again     bool     // the same key asked again
}

func (c *Core) Adopt(ctx context.Context, actor Actor, a Adoption, now time.Time) (Adopted, error) {
	return Adopted{}, errors.ErrUnsupported
}

type CertificateRecord struct {
	Serial, Identity, Kind, Subject string
	Incarnation                     uint64
	NotBefore, NotAfter             time.Time
	SPKI                            []byte // SHA-256 of the SubjectPublicKeyInfo
	DER                             []byte
	Revoked                         time.Time
}

func (c *Core) RecordCertificate(ctx context.Context, actor Actor, r CertificateRecord) error {
	return errors.ErrUnsupported
}
func (c *Core) Certificates(ctx context.Context, all bool, now time.Time) ([]CertificateRecord, error) {
	return nil, errors.ErrUnsupported
}

// Revocation covers an identity's incarnations up to and including Incarnation, or one serial.
type Revocation struct {
	Role        pki.Role
	Name        string
	Incarnation uint64
	Serial      string
	Reason      string
	At          time.Time
}

func (c *Core) Revocations(ctx context.Context) ([]Revocation, error) {
	return nil, errors.ErrUnsupported
}

type APIKeyRecord struct {
	Name                      string
	SHA256                    []byte
	Prefix                    string
	Created, Expires, Revoked time.Time
}

func (c *Core) CreateAPIKey(ctx context.Context, actor Actor, k APIKeyRecord) (APIKeyRecord, error) {
	return k, errors.ErrUnsupported
}
func (c *Core) APIKeys(ctx context.Context) ([]APIKeyRecord, error) {
	return nil, errors.ErrUnsupported
}
func (c *Core) RevokeAPIKey(ctx context.Context, actor Actor, name string) (APIKeyRecord, error) {
	return APIKeyRecord{}, errors.ErrUnsupported
}

type PolicyRecord struct {
	Version uint64
	Text    []byte
	Actor   Actor
	Applied time.Time
}

// ApplyPolicy: the text in force again changes nothing and returns its version.
func (c *Core) ApplyPolicy(ctx context.Context, actor Actor, text []byte) (uint64, error) {
	return 0, errors.ErrUnsupported
}

// Policy: version 0 is the one in force; ErrNotFound if none was ever applied.
func (c *Core) Policy(ctx context.Context, version uint64) (PolicyRecord, error) {
	return PolicyRecord{}, errors.ErrUnsupported
}

const (
	ServiceRouted  = "routed"
	ServiceWaiting = "waiting" // another gateway serves it; service allow
	ServiceRefused = "refused" // outside --serve
)

type ServiceRecord struct {
	Service, Gateway    string
	State               string
	Holder              string // waiting: who has it
	Methods             []string
	FirstSeen, LastSeen time.Time
}

func (c *Core) ObserveService(ctx context.Context, gateway, service string, methods []string) (ServiceRecord, error) {
	return ServiceRecord{}, errors.ErrUnsupported
}
func (c *Core) AllowService(ctx context.Context, actor Actor, service, gateway string) (ServiceRecord, error) {
	return ServiceRecord{}, errors.ErrUnsupported
}
func (c *Core) Services(ctx context.Context) ([]ServiceRecord, error) {
	return nil, errors.ErrUnsupported
}

// Covers reports whether pattern ("a.b.C", "a.b.*", "*") covers service, which may be a pattern itself.
func Covers(pattern, service string) bool { return false }

type AuditRow struct {
	Sequence                uint64
	Time                    time.Time
	Actor                   Actor
	Action, Subject, Detail string
	Hash                    []byte
}

// ActionAlarm begins the action of every audit row that an operator must look at.
const ActionAlarm = "alarm."

func (c *Core) Audit(ctx context.Context, actor Actor, action, subject, detail string) error {
	return errors.ErrUnsupported
}

// AuditRows, newest first; before 0 is from the end.
func (c *Core) AuditRows(ctx context.Context, before uint64, limit int) ([]AuditRow, error) {
	return nil, errors.ErrUnsupported
}
func (c *Core) VerifyAudit(ctx context.Context) error { return errors.ErrUnsupported }

type DenialRow struct {
	Minute                       time.Time
	Caller, Method, Reason, Code string
	Count                        uint64
}

func (c *Core) AddDenials(ctx context.Context, rows []DenialRow) error { return errors.ErrUnsupported }

// Denials, newest minute first.
func (c *Core) Denials(ctx context.Context, since time.Time, limit int) ([]DenialRow, error) {
	return nil, errors.ErrUnsupported
}

func (c *Core) Epoch(ctx context.Context) (uint64, error) { return 0, errors.ErrUnsupported }
func (c *Core) NextGeneration(ctx context.Context, role pki.Role, name string) (uint64, error) {
	return 0, errors.ErrUnsupported
}
