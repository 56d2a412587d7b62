package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"sallyport/acme/pki"
)

// States of a component. Whether it is connected is not stored: only its
// control session knows.
const (
	StateInvited = "invited" // added; nobody has used its token
	StateJoined  = "joined"
	StateRemoved = "removed"
)

// ComponentRecord is a gateway or proxy that was added, or an instance of a
// reusable gateway.
type ComponentRecord struct {
	Role        pki.Role
	Name        string
	Incarnation uint64   // counts how often the name was added after a removal, from 1
	Parent      string   // of an instance: the name that was added
	Peers       []string // gateway: where it comes from; proxy: where core comes from
	Serve       []string // gateway: patterns that bound its services; none: first come
	Address     string   // proxy: HOST:PORT that core dials
	ServerName  string   // proxy: name expected in an outside certificate
	GRPCTLS     string   // proxy: what its gRPC port shows, "internal", "files" or "acme"; empty: as core's settings say
	CertNames   []string // gateway: DNS names and addresses for --export-cert
	Reusable    bool
	State       string
	Added       time.Time
	Joined      time.Time
	LastSeen    time.Time
	SPKI        []byte // SHA-256 of the SubjectPublicKeyInfo of its confirmed certificate
	NotAfter    time.Time
	Version     string // software, as it said last
	Observed    string // address it was seen at
}

// Label is how audit rows and messages call it: gateway/orders.
func (r *ComponentRecord) Label() string { return label(r.Role, r.Name) }

func label(role pki.Role, name string) string { return string(role) + "/" + name }

func scanComponent(row func(...any) error) (r ComponentRecord, err error) {
	var peers, serve, names string
	var added, joined, seen, notAfter int64
	err = row(&r.Role, &r.Name, &r.Incarnation, &r.Parent, &peers, &serve, &r.Address, &r.ServerName, &r.Reusable, &r.State,
		&added, &joined, &seen, &r.SPKI, &notAfter, &r.Version, &r.Observed, &names, &r.GRPCTLS)
	if err != nil {
		return r, err
	}
	r.Added, r.Joined, r.LastSeen, r.NotAfter = moment(added), moment(joined), moment(seen), moment(notAfter)
	if r.Peers, err = list(peers); err != nil {
		return r, err
	}
	if r.Serve, err = list(serve); err != nil {
		return r, err
	}
	r.CertNames, err = list(names)
	return r, err
}

const selectComponents = `SELECT role, name, incarnation, parent, peers, serve, address, server_name, reusable, state,
	added, joined, last_seen, spki, not_after, version, observed, cert_names, grpc_tls FROM components `

// Component returns one that was not removed, or [ErrNotFound].
func (c *Core) Component(ctx context.Context, role pki.Role, name string) (ComponentRecord, error) {
	return component(ctx, c.db.reader, role, name)
}

func component(ctx context.Context, from source, role pki.Role, name string) (ComponentRecord, error) {
	r, err := one(ctx, from, scanComponent, selectComponents+"WHERE role = ? AND name = ? AND state <> 'removed'", role, name)
	if err != nil {
		return r, fmt.Errorf("%s %s: %w", role, name, err)
	}
	return r, nil
}

// Components returns those of a role, "" for all, that were not removed, by
// role and name.
func (c *Core) Components(ctx context.Context, role pki.Role) ([]ComponentRecord, error) {
	list, err := all(ctx, c.db.reader, scanComponent,
		selectComponents+"WHERE state <> 'removed' AND ?1 IN ('', role) ORDER BY role, name", role)
	if err != nil {
		return nil, fmt.Errorf("read components: %w", err)
	}
	return list, nil
}

// What a proxy's gRPC port shows.
const (
	grpcInternal = "internal"
	grpcFiles    = "files"
	grpcACME     = "acme"
)

// checkSettings refuses what nothing would act on.
func (r *ComponentRecord) checkSettings() error {
	switch {
	case !slices.Contains([]string{"", grpcInternal, grpcFiles, grpcACME}, r.GRPCTLS):
		return fmt.Errorf("a gRPC port shows a certificate of the embedded CA (internal), of files or of a public CA (acme), not %q", r.GRPCTLS)
	case r.Role == pki.RoleGateway && r.GRPCTLS != "":
		return errors.New("a gateway has no gRPC port that could show a certificate")
	case r.Role == pki.RoleProxy && len(r.CertNames) > 0:
		return errors.New("certificate names are for gateways, which export a pair with --export-cert; a proxy has the names it is reached by")
	}
	return nil
}

// instanceRoom is what the name of a reusable gateway leaves for "-xxxxxx".
const instanceRoom = 7

// AddComponent invites a component: it may join with the token. [ErrExists]
// when there is one of this name, unless its token ran out before anybody used
// it. A name that was removed starts its next incarnation.
func (c *Core) AddComponent(ctx context.Context, actor Actor, r ComponentRecord, token TokenRecord) (ComponentRecord, error) {
	if err := checkNew(&r, &token); err != nil {
		return r, fmt.Errorf("add %s %s: %w", r.Role, r.Name, err)
	}
	err := c.decide(ctx, actor, func(t *tx) error {
		former, err := one(t.ctx, t.sql, scanComponent, selectComponents+"WHERE role = ? AND name = ?", r.Role, r.Name)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		if err := t.mayReplace(former); err != nil {
			return err
		}
		if r.Incarnation, err = t.incarnation(r.Role, r.Name, former); err != nil {
			return err
		}
		r.State, r.Added, r.Parent = StateInvited, t.now.UTC(), ""
		r.Joined, r.LastSeen, r.NotAfter, r.SPKI, r.Version, r.Observed = time.Time{}, time.Time{}, time.Time{}, nil, "", ""
		if err := t.putComponent(r); err != nil {
			return err
		}
		token.Role, token.Name, token.Incarnation, token.Reusable = r.Role, r.Name, r.Incarnation, r.Reusable
		if err := t.putToken(token); err != nil {
			return err
		}
		return t.audit("component.add", r.Label(), fmt.Sprintf("incarnation %d, %s, token %s", r.Incarnation, settings(r), until(token.Expires)))
	})
	if err != nil {
		return r, fmt.Errorf("add %s %s: %w", r.Role, r.Name, err)
	}
	return r, nil
}

func checkNew(r *ComponentRecord, token *TokenRecord) error {
	if r.Role != pki.RoleGateway && r.Role != pki.RoleProxy {
		return fmt.Errorf("only gateways and proxies are added, not %q", r.Role)
	}
	if err := pki.ValidName(r.Name); err != nil {
		return err
	}
	if err := r.checkSettings(); err != nil {
		return err
	}
	if r.Reusable && r.Role == pki.RoleGateway && len(r.Name) > 63-instanceRoom {
		return fmt.Errorf("the name of a reusable gateway has at most %d characters, since its instances are called %s-xxxxxx", 63-instanceRoom, r.Name)
	}
	return token.check()
}

// mayReplace says whether a name is free to be added.
func (t *tx) mayReplace(former ComponentRecord) error {
	switch {
	case former.State == "" || former.State == StateRemoved:
		return nil
	case former.State == StateInvited:
		open, err := one(t.ctx, t.sql, value[int], "SELECT count(*) FROM tokens WHERE role = ? AND name = ? AND withdrawn = 0 AND expires > ?",
			former.Role, former.Name, nanos(t.now))
		if err != nil || open == 0 {
			return err
		}
		return fmt.Errorf("%w: it was added at %s and has not joined yet; to add it anew, first run sallyport %s rm %s",
			ErrExists, former.Added.Format(time.RFC3339), former.Role, former.Name)
	}
	return fmt.Errorf("%w: it joined at %s; to replace it, first run sallyport %s rm %s", ErrExists, former.Joined.Format(time.RFC3339), former.Role, former.Name)
}

// incarnation is the one that a name starts with: beyond every one that was
// removed or revoked, the same when the former was never used.
func (t *tx) incarnation(role pki.Role, name string, former ComponentRecord) (uint64, error) {
	revoked, err := one(t.ctx, t.sql, value[uint64], "SELECT coalesce(max(incarnation), 0) FROM revocations WHERE role = ? AND name = ? AND serial = ''", role, name)
	if err != nil {
		return 0, err
	}
	if former.State == StateRemoved {
		revoked = max(revoked, former.Incarnation)
	}
	return max(revoked+1, former.Incarnation), nil
}

func (t *tx) putComponent(r ComponentRecord) error {
	_, err := t.exec(`INSERT INTO components (role, name, incarnation, parent, peers, serve, address, server_name, reusable, state,
			added, joined, last_seen, spki, not_after, version, observed, cert_names, grpc_tls)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (role, name) DO UPDATE SET incarnation = excluded.incarnation, parent = excluded.parent, peers = excluded.peers,
			serve = excluded.serve, address = excluded.address, server_name = excluded.server_name, reusable = excluded.reusable,
			state = excluded.state, added = excluded.added, joined = excluded.joined, last_seen = excluded.last_seen,
			spki = excluded.spki, not_after = excluded.not_after, version = excluded.version, observed = excluded.observed,
			cert_names = excluded.cert_names, grpc_tls = excluded.grpc_tls`,
		r.Role, r.Name, r.Incarnation, r.Parent, text(r.Peers), text(r.Serve), r.Address, r.ServerName, r.Reusable, r.State,
		nanos(r.Added), nanos(r.Joined), nanos(r.LastSeen), r.SPKI, nanos(r.NotAfter), clean(r.Version, 128), clean(r.Observed, 128), text(r.CertNames), r.GRPCTLS)
	return err
}

// SetComponent lets change alter what an operator may alter: peers, serve,
// address, server name, mode of its gRPC port, names of its certificates. Instances follow the gateway they are of. Nothing is
// written when nothing changes.
func (c *Core) SetComponent(ctx context.Context, actor Actor, role pki.Role, name string, change func(*ComponentRecord) error) (ComponentRecord, error) {
	var r ComponentRecord
	err := c.decide(ctx, actor, func(t *tx) (err error) {
		if r, err = component(t.ctx, t.sql, role, name); err != nil {
			return err
		}
		before, wish := settings(r), r
		wish.Peers, wish.Serve = slices.Clone(r.Peers), slices.Clone(r.Serve)
		wish.CertNames = slices.Clone(r.CertNames)
		if err := change(&wish); err != nil {
			return err
		}
		r.Peers, r.Serve, r.Address, r.ServerName, r.GRPCTLS, r.CertNames = wish.Peers, wish.Serve, wish.Address, wish.ServerName, wish.GRPCTLS, wish.CertNames
		if err := r.checkSettings(); err != nil {
			return err
		}
		if settings(r) == before {
			return nil
		}
		if _, err := t.exec(`UPDATE components SET peers = ?, serve = ?, address = ?, server_name = ?, grpc_tls = ?, cert_names = ?
			WHERE role = ? AND state <> 'removed' AND (name = ? OR parent = ?)`,
			text(r.Peers), text(r.Serve), r.Address, r.ServerName, r.GRPCTLS, text(r.CertNames), role, name, name); err != nil {
			return err
		}
		if role == pki.RoleGateway {
			if err := t.judgeAgain(r); err != nil {
				return err
			}
		}
		return t.audit("component.set", r.Label(), before+" → "+settings(r))
	})
	if err != nil {
		return r, fmt.Errorf("set %s %s: %w", role, name, err)
	}
	return r, nil
}

// settings is what an operator decided about a component, in words.
func settings(r ComponentRecord) string {
	words := []string{"peers " + strings.Join(r.Peers, " ")}
	if len(r.Serve) > 0 {
		words = append(words, "serve "+strings.Join(r.Serve, " "))
	}
	if r.Address != "" {
		words = append(words, "address "+r.Address)
	}
	if r.ServerName != "" {
		words = append(words, "server name "+r.ServerName)
	}
	if r.GRPCTLS != "" {
		words = append(words, "gRPC certificate "+r.GRPCTLS)
	}
	if len(r.CertNames) > 0 {
		words = append(words, "certificate names "+strings.Join(r.CertNames, " "))
	}
	if r.Reusable {
		words = append(words, "reusable")
	}
	return strings.Join(words, ", ")
}

// Sighting is what core saw of a component just now. Empty fields leave what
// is known.
type Sighting struct {
	At       time.Time
	Version  string
	Observed string
}

// SawComponent notes that a component was there. It decides nothing and is not
// audited; once a minute is often enough.
func (c *Core) SawComponent(ctx context.Context, role pki.Role, name string, s Sighting) error {
	err := c.observe(ctx, func(t *tx) error {
		n, err := t.exec(`UPDATE components SET last_seen = max(last_seen, ?),
				version = CASE WHEN ?2 = '' THEN version ELSE ?2 END, observed = CASE WHEN ?3 = '' THEN observed ELSE ?3 END
			WHERE role = ?4 AND name = ?5 AND state <> 'removed'`,
			nanos(s.At), clean(s.Version, 128), clean(s.Observed, 128), role, name)
		if err == nil && n == 0 {
			return ErrNotFound
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("note that %s %s was seen: %w", role, name, err)
	}
	return nil
}
