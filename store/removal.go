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
		instances, err := all(t.ctx, t.sql, scanComponent, selectComponents+"WHERE role = ? AND parent = ?", role, name)
		if err != nil {
			return err
		}
		for _, i := range instances {
			if err := t.dropInstance(i, "removed with "+r.Label()); err != nil {
				return err
			}
		}
		if r.Parent != "" {
			if err := t.dropInstance(r, "removed"); err != nil {
				return err
			}
		} else if err := t.retire(r, "removed"); err != nil {
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

// retire ends what a component was and keeps its row.
func (t *tx) retire(r ComponentRecord, reason string) error {
	if err := t.revokeIdentity(r, reason); err != nil {
		return err
	}
	if _, err := t.exec("UPDATE tokens SET withdrawn = ? WHERE role = ? AND name = ? AND withdrawn = 0", nanos(t.now), r.Role, r.Name); err != nil {
		return err
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
	if err := t.retire(r, reason); err != nil {
		return err
	}
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
