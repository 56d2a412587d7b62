package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"sallyport/acme/pki"
)

// States of an announced service.
const (
	ServiceRouted  = "routed"  // calls go there
	ServiceWaiting = "waiting" // another gateway holds it: service allow
	ServiceRefused = "refused" // outside the gateway's --serve
)

// How much a gateway may announce.
const (
	MaxServices     = 1000     // per gateway
	maxServiceName  = 255      // bytes
	maxMethodsBytes = 64 << 10 // per service, as stored
)

// ServiceRecord is a service that a gateway announced, or was allowed before.
//
// Who may serve what: patterns given with --serve decide alone. Without them
// the first gateway to announce a service holds it, until it is removed, also
// while it is away; another one waits for `service allow`, also when the
// holder is gone by then, so that no gateway inherits calls that nobody meant
// to give it. Instances of one reusable gateway hold services together.
type ServiceRecord struct {
	Service   string // full name, or a pattern ending in .* that was listed by hand
	Gateway   string
	Owner     string // the gateway, or of an instance its parent
	State     string
	Holder    string // who holds it, while waiting; empty when nobody does any more
	Methods   []string
	FirstSeen time.Time // zero: allowed, not announced yet
}

// Announced is one service of an announcement.
type Announced struct {
	Service string
	Methods []string
}

// Covers reports whether pattern includes service. Patterns are a full name,
// "acme.orders.*" (everything below that package), and "*". service may be a
// pattern as well, which is included when all it includes is.
func Covers(pattern, service string) bool {
	switch {
	case pattern == "*" || pattern == service:
		return true
	case strings.HasSuffix(pattern, ".*"):
		return strings.HasPrefix(service, pattern[:len(pattern)-1])
	}
	return false
}

func coversAny(patterns []string, service string) bool {
	for _, p := range patterns {
		if Covers(p, service) {
			return true
		}
	}
	return false
}

func scanService(row func(...any) error) (r ServiceRecord, err error) {
	var methods string
	var first int64
	if err = row(&r.Service, &r.Gateway, &r.Owner, &r.State, &methods, &first); err != nil {
		return r, err
	}
	r.FirstSeen = moment(first)
	r.Methods, err = list(methods)
	return r, err
}

const selectServices = "SELECT service, gateway, owner, state, methods, first_seen FROM services "

// ObserveService is ObserveServices for one.
func (c *Core) ObserveService(ctx context.Context, gateway, service string, methods []string) (ServiceRecord, error) {
	rows, err := c.ObserveServices(ctx, gateway, []Announced{{service, methods}})
	if err != nil {
		return ServiceRecord{}, err
	}
	return rows[0], nil
}

// ObserveServices records what a gateway announces, in one transaction, and
// says of each service whether calls may go there. What was announced before
// and is not now keeps its place. Announcing the same again writes nothing.
func (c *Core) ObserveServices(ctx context.Context, gateway string, announced []Announced) ([]ServiceRecord, error) {
	if len(announced) > MaxServices {
		return nil, fmt.Errorf("services of gateway %s: %w: %d announced, %d are allowed", gateway, ErrTooMany, len(announced), MaxServices)
	}
	var rows []ServiceRecord
	err := c.observe(ctx, func(t *tx) error {
		rows = make([]ServiceRecord, 0, len(announced))
		g, err := component(ctx, t.sql, pki.RoleGateway, gateway)
		if err != nil {
			return err
		}
		for _, a := range announced {
			r, err := t.observeService(g, a)
			if err != nil {
				return err
			}
			rows = append(rows, r)
		}
		n, err := one(ctx, t.sql, value[int], "SELECT count(*) FROM services WHERE gateway = ?", gateway)
		if err == nil && n > MaxServices {
			err = fmt.Errorf("%w: %d with those it announced before, %d are allowed; run sallyport gateway rm %s and add it again", ErrTooMany, n, MaxServices, gateway)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("services of gateway %s: %w", gateway, err)
	}
	return rows, nil
}

func checkService(service string) error {
	name := strings.TrimSuffix(service, ".*")
	if service == "" || len(service) > maxServiceName || name != clean(name, maxServiceName) || strings.ContainsAny(name, "/* ") {
		return fmt.Errorf("%.300q is not a service name: use package.Service or package.*", service)
	}
	return nil
}

func (t *tx) observeService(g ComponentRecord, a Announced) (ServiceRecord, error) {
	methods := text(a.Methods)
	if err := checkService(a.Service); err != nil {
		return ServiceRecord{}, err
	}
	if len(methods) > maxMethodsBytes {
		return ServiceRecord{}, fmt.Errorf("%w: the methods of %s take %d bytes, %d are allowed", ErrTooMany, a.Service, len(methods), maxMethodsBytes)
	}
	held, err := one(t.ctx, t.sql, scanService, selectServices+"WHERE service = ? AND gateway = ?", a.Service, g.Name)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return held, err
	}
	r := ServiceRecord{Service: a.Service, Gateway: g.Name, Owner: owner(g), Methods: a.Methods, FirstSeen: held.FirstSeen}
	if r.State, r.Holder, err = t.judge(g, a.Service); err != nil {
		return r, err
	}
	if held.State == r.State && !held.FirstSeen.IsZero() && text(held.Methods) == methods {
		return r, nil
	}
	if r.FirstSeen.IsZero() {
		r.FirstSeen = t.now.UTC()
	}
	return r, t.putService(r)
}

func owner(g ComponentRecord) string {
	if g.Parent != "" {
		return g.Parent
	}
	return g.Name
}

func (t *tx) putService(r ServiceRecord) error {
	_, err := t.exec(`INSERT INTO services (service, gateway, owner, state, methods, first_seen) VALUES (?, ?, ?, ?, ?, ?)
		ON CONFLICT (service, gateway) DO UPDATE SET state = excluded.state, methods = excluded.methods, first_seen = excluded.first_seen`,
		r.Service, r.Gateway, r.Owner, r.State, text(r.Methods), nanos(r.FirstSeen))
	return err
}

// judge applies the rule of [ServiceRecord].
func (t *tx) judge(g ComponentRecord, service string) (state, holder string, err error) {
	if len(g.Serve) > 0 {
		if coversAny(g.Serve, service) {
			return ServiceRouted, "", nil
		}
		return ServiceRefused, "", nil
	}
	permits, err := all(t.ctx, t.sql, value[string], "SELECT service FROM service_permits WHERE owner = ?", owner(g))
	if err != nil {
		return "", "", err
	}
	if coversAny(permits, service) {
		return ServiceRouted, "", nil
	}
	// What was decided for this owner stays: what it holds, it keeps.
	states, err := all(t.ctx, t.sql, value[string], "SELECT DISTINCT state FROM services WHERE service = ? AND owner = ? ORDER BY state", service, owner(g))
	if err != nil {
		return "", "", err
	}
	waits := false
	for _, s := range states {
		if s == ServiceRouted {
			return ServiceRouted, "", nil
		}
		waits = waits || s == ServiceWaiting
	}
	if holder, err = t.serviceHolder(service, owner(g)); err != nil {
		return "", "", err
	}
	if waits || holder != "" {
		return ServiceWaiting, holder, nil
	}
	return ServiceRouted, "", nil
}

// hold is a service that has calls routed to an owner.
type hold struct{ service, owner string }

// holds are all of them, who came first comes first.
type holds struct {
	list []hold
	at   map[string][]int // by service
}

func readHolds(ctx context.Context, from source) (*holds, error) {
	list, err := all(ctx, from, func(row func(...any) error) (h hold, err error) {
		err = row(&h.service, &h.owner)
		return h, err
	}, "SELECT service, owner FROM services WHERE state = 'routed' GROUP BY service, owner ORDER BY min(first_seen), owner")
	if err != nil {
		return nil, err
	}
	h := &holds{list, make(map[string][]int, len(list))}
	for i, one := range list {
		h.at[one.service] = append(h.at[one.service], i)
	}
	return h, nil
}

// of finds who else than one owner has calls of a service, or of services that
// overlap with it (one covers the other), routed to it; empty when nobody has. Gateways announce many
// services, so this does not look at all of them for each.
func (h *holds) of(service, but string) string {
	best := len(h.list)
	see := func(name string) {
		for _, i := range h.at[name] {
			if h.list[i].owner != but {
				best = min(best, i)
				return
			}
		}
	}
	see(service)
	for i := range len(service) { // the patterns that cover it
		if service[i] == '.' {
			see(service[:i+1] + "*")
		}
	}
	if strings.HasSuffix(service, ".*") { // what it covers
		for i, one := range h.list[:best] {
			if one.owner != but && Covers(service, one.service) {
				best = i
				break
			}
		}
	}
	if best == len(h.list) {
		return ""
	}
	return h.list[best].owner
}

// serviceHolder is holds.of for judgements in one transaction. They are all about one
// owner, and change no other's holds.
func (t *tx) serviceHolder(service, but string) (_ string, err error) {
	if t.holds == nil {
		if t.holds, err = readHolds(t.ctx, t.sql); err != nil {
			return "", err
		}
	}
	return t.holds.of(service, but), nil
}

// judgeAgain applies changed --serve patterns to what a gateway and its
// instances announced.
func (t *tx) judgeAgain(g ComponentRecord) error {
	rows, err := all(t.ctx, t.sql, scanService, selectServices+"WHERE gateway = ?1 OR owner = ?1 ORDER BY first_seen, service", g.Name)
	if err != nil {
		return err
	}
	for _, r := range rows {
		state, _, err := t.judge(g, r.Service)
		if err != nil {
			return err
		}
		if _, err := t.exec("UPDATE services SET state = ? WHERE service = ? AND gateway = ?", state, r.Service, r.Gateway); err != nil {
			return err
		}
	}
	return nil
}

// AllowService lets a gateway serve what another one holds, together with it.
// The service may be a pattern, and need not have been announced yet.
func (c *Core) AllowService(ctx context.Context, actor Actor, service, gateway string) (ServiceRecord, error) {
	r := ServiceRecord{Service: service, Gateway: gateway, State: ServiceRouted}
	err := c.decide(ctx, actor, func(t *tx) error {
		if err := checkService(service); err != nil {
			return err
		}
		g, err := component(ctx, t.sql, pki.RoleGateway, gateway)
		if err != nil {
			return err
		}
		if len(g.Serve) > 0 && !coversAny(g.Serve, service) {
			return fmt.Errorf("gateway %s may serve %s and nothing else: run sallyport gateway set %s --serve %s to add this one",
				gateway, strings.Join(g.Serve, ", "), owner(g), strings.Join(append(g.Serve, service), " --serve "))
		}
		r.Owner = owner(g)
		fresh, err := t.exec("INSERT INTO service_permits (service, owner) VALUES (?, ?) ON CONFLICT DO NOTHING", service, r.Owner)
		if err != nil {
			return err
		}
		if fresh > 0 {
			g.Name = r.Owner
			if err := t.judgeAgain(g); err != nil {
				return err
			}
			if err := t.audit("service.allow", "service/"+service, "gateway "+r.Owner); err != nil {
				return err
			}
		}
		held, err := one(ctx, t.sql, scanService, selectServices+"WHERE service = ? AND gateway = ?", service, gateway)
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		r = held
		return err
	})
	if err != nil {
		return r, fmt.Errorf("allow service %s: %w", service, err)
	}
	return r, nil
}

// Services returns what every gateway announced, by service and gateway.
func (c *Core) Services(ctx context.Context) ([]ServiceRecord, error) {
	rows, err := all(ctx, c.db.reader, scanService, selectServices+"ORDER BY service, gateway")
	if err != nil {
		return nil, fmt.Errorf("read services: %w", err)
	}
	var held *holds
	for i := range rows {
		if rows[i].State != ServiceWaiting {
			continue
		}
		if held == nil {
			if held, err = readHolds(ctx, c.db.reader); err != nil {
				return nil, fmt.Errorf("read services: %w", err)
			}
		}
		rows[i].Holder = held.of(rows[i].Service, rows[i].Owner)
	}
	return rows, nil
}
