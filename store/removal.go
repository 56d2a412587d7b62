package store

import (
	"context"
	"fmt"
	"time"

	"sallyport/acme/pki"
)

// RemoveComponent revokes a component's incarnations so far, with all its
// instances, certificates and tokens, and gives up the services it held.
func (c *Core) RemoveComponent(ctx context.Context, actor Actor, role pki.Role, name string) (ComponentRecord, error) {
	var r ComponentRecord
	err := c.decide(ctx, actor, func(t *tx) (err error) {
		if r, err = component(t.ctx, t.sql, role, name); err != nil {
			return err
		}
		instances, err := t.remove(r, "removed")
		if err != nil {
			return err
		}
		r.State = StateRemoved
		detail := fmt.Sprintf("incarnation %d", r.Incarnation)
		if len(instances) > 0 {
			detail += fmt.Sprintf(", %d instances", len(instances))
		}
		return t.audit("component.remove", r.Label(), detail)
	})
	if err != nil {
		return r, fmt.Errorf("remove %s %s: %w", role, name, err)
	}
	return r, nil
}

// remove ends a component and its instances, which it returns.
func (t *tx) remove(r ComponentRecord, reason string) ([]ComponentRecord, error) {
	instances, err := all(t.ctx, t.sql, scanComponent, selectComponents+"WHERE role = ? AND parent = ?", r.Role, r.Name)
	if err != nil {
		return nil, err
	}
	for _, i := range instances {
		if err := t.dropInstance(i, reason+" with "+r.Label()); err != nil {
			return nil, err
		}
	}
	if r.Parent != "" {
		return instances, t.dropInstance(r, reason)
	}
	if err := t.revokeIdentity(r, reason); err != nil {
		return nil, err
	}
	return instances, t.withdraw(r)
}

// withdraw takes from a revoked component what it had, and keeps its row.
func (t *tx) withdraw(r ComponentRecord) error {
	if _, err := t.exec("UPDATE tokens SET withdrawn = ? WHERE role = ? AND name = ? AND withdrawn = 0", nanos(t.now), r.Role, r.Name); err != nil {
		return err
	}
	if err := t.forgetKeys(r); err != nil {
		return err
	}
	for _, table := range []string{"acknowledgements", "held_certificates"} {
		if _, err := t.exec("DELETE FROM "+table+" WHERE role = ? AND name = ?", r.Role, r.Name); err != nil {
			return err
		}
	}
	if r.Role == pki.RoleGateway {
		if _, err := t.exec("DELETE FROM services WHERE gateway = ?", r.Name); err != nil {
			return err
		}
		if _, err := t.exec("DELETE FROM service_permits WHERE owner = ?", r.Name); err != nil {
			return err
		}
	}
	_, err := t.exec("UPDATE components SET state = 'removed' WHERE role = ? AND name = ?", r.Role, r.Name)
	return err
}

// dropInstance ends an instance and its row: its name is random and its
// revocation keeps it from returning.
func (t *tx) dropInstance(r ComponentRecord, reason string) error {
	if err := t.revokeIdentity(r, reason); err != nil {
		return err
	}
	if err := t.withdraw(r); err != nil {
		return err
	}
	return t.eraseInstance(r)
}

func (t *tx) eraseInstance(r ComponentRecord) error {
	if _, err := t.exec("DELETE FROM generations WHERE role = ? AND name = ?", r.Role, r.Name); err != nil {
		return err
	}
	_, err := t.exec("DELETE FROM components WHERE role = ? AND name = ?", r.Role, r.Name)
	return err
}

// ForgetInstances removes the instances of reusable gateways that were last
// seen before a time, and returns them.
func (c *Core) ForgetInstances(ctx context.Context, actor Actor, before time.Time) ([]ComponentRecord, error) {
	var gone []ComponentRecord
	err := c.decide(ctx, actor, func(t *tx) (err error) {
		gone, err = all(t.ctx, t.sql, scanComponent, selectComponents+"WHERE parent <> '' AND max(last_seen, joined) < ? ORDER BY role, name", nanos(before))
		if err != nil {
			return err
		}
		for _, r := range gone {
			if err := t.dropInstance(r, "not seen for long"); err != nil {
				return err
			}
			if err := t.audit("component.forget", r.Label(), "last seen "+r.LastSeen.Format(time.RFC3339)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("forget instances: %w", err)
	}
	return gone, nil
}
