package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"sallyport/acme/pki"
)

// maxAlerts bounds how many alerts are remembered; the oldest give way.
const maxAlerts = 10_000

// AlertOnce reports whether an alert of this key is to be raised: the first
// time, and again after [Core.ForgetAlert]. What it said is remembered over
// restarts.
func (c *Core) AlertOnce(ctx context.Context, key string) (bool, error) {
	first := false
	err := c.observe(ctx, func(t *tx) (err error) {
		first, err = t.alertOnce(key)
		return err
	})
	if err != nil {
		return false, fmt.Errorf("remember alert %s: %w", key, err)
	}
	return first, nil
}

// AlertKnown reports whether an alert of this key was raised already.
func (c *Core) AlertKnown(ctx context.Context, key string) (bool, error) {
	n, err := one(ctx, c.db.reader, value[int], "SELECT count(*) FROM alerts WHERE key = ?", key)
	if err != nil {
		return false, fmt.Errorf("look for alert %s: %w", key, err)
	}
	return n > 0, nil
}

func (t *tx) alertOnce(key string) (bool, error) {
	if len(key) > 512 {
		return false, errors.New("the key of an alert is too long")
	}
	n, err := t.exec("INSERT INTO alerts (key, at) VALUES (?, ?) ON CONFLICT DO NOTHING", key, nanos(t.now))
	if err != nil || n == 0 {
		return false, err
	}
	_, err = t.exec("DELETE FROM alerts WHERE id <= (SELECT id FROM alerts ORDER BY id DESC LIMIT 1 OFFSET ?)", maxAlerts)
	return true, err
}

// ForgetAlert says that what a key stands for is over: the next time it is to
// be alerted about again.
func (c *Core) ForgetAlert(ctx context.Context, key string) error {
	err := c.observe(ctx, func(t *tx) error {
		_, err := t.exec("DELETE FROM alerts WHERE key = ?", key)
		return err
	})
	if err != nil {
		return fmt.Errorf("forget alert %s: %w", key, err)
	}
	return nil
}

// MaxHeldCertificates is how many certificates a component may report.
const MaxHeldCertificates = 256

// HeldCertificate is a certificate that a component uses beside its identity,
// as it reported it.
type HeldCertificate struct {
	Role      pki.Role
	Name      string // of the component
	What      string // "public port", "gRPC port", "upstream orders", …: one certificate each
	Subject   string
	Serial    string
	NotBefore time.Time
	NotAfter  time.Time
	Error     string // why a newer file was not taken
	Warning   string // what will be wrong with this one
	Reported  time.Time
}

func scanHeld(row func(...any) error) (h HeldCertificate, err error) {
	var notBefore, notAfter, reported int64
	err = row(&h.Role, &h.Name, &h.What, &h.Subject, &h.Serial, &notBefore, &notAfter, &h.Error, &h.Warning, &reported)
	h.NotBefore, h.NotAfter, h.Reported = moment(notBefore), moment(notAfter), moment(reported)
	return h, err
}

// ReportCertificates replaces what is known of a component's certificates. Role
// and Name of the list are not read. [ErrTooMany] beyond
// [MaxHeldCertificates].
func (c *Core) ReportCertificates(ctx context.Context, role pki.Role, name string, list []HeldCertificate) error {
	err := c.observe(ctx, func(t *tx) error {
		if len(list) > MaxHeldCertificates {
			return fmt.Errorf("%w: %d, and at most %d are kept", ErrTooMany, len(list), MaxHeldCertificates)
		}
		if _, err := component(t.ctx, t.sql, role, name); err != nil {
			return err
		}
		if _, err := t.exec("DELETE FROM held_certificates WHERE role = ? AND name = ?", role, name); err != nil {
			return err
		}
		for _, h := range list {
			if _, err := t.exec(`INSERT INTO held_certificates (role, name, what, subject, serial, not_before, not_after, error, warning, reported)
					VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (role, name, what) DO NOTHING`,
				role, name, clean(h.What, 128), clean(h.Subject, 512), clean(h.Serial, 64), nanos(h.NotBefore), nanos(h.NotAfter), clean(h.Error, 512), clean(h.Warning, 512), nanos(t.now)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("record certificates of %s %s: %w", role, name, err)
	}
	return nil
}

// HeldCertificates returns what the components have reported. The one that ends
// first comes first.
func (c *Core) HeldCertificates(ctx context.Context) ([]HeldCertificate, error) {
	list, err := all(ctx, c.db.reader, scanHeld,
		"SELECT role, name, what, subject, serial, not_before, not_after, error, warning, reported FROM held_certificates ORDER BY not_after, role, name, what")
	if err != nil {
		return nil, fmt.Errorf("read reported certificates: %w", err)
	}
	return list, nil
}
