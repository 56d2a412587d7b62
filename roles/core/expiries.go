package core

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"sallyport/acme/pki"
	"sallyport/roles/control"
	"sallyport/roles/link"
	"sallyport/store"
)

// expiries watches every certificate of the system: those of the CA, of core,
// of its components, the files that components use beside them, and what was
// issued to others. An alert is raised when a quarter of a life is left and
// again at a tenth; what renews itself in time never comes so far.
type expiries struct {
	core  *core
	log   *slog.Logger
	found atomic.Pointer[[]watched]
	again chan struct{}
}

// watched is one certificate.
type watched struct {
	kind, subject, holder, serial, identity string
	notBefore, notAfter                     time.Time
	ours                                    bool   // issued here: notBefore lies before that
	trouble                                 string // why a newer file was not taken
	warning                                 string // what will be wrong with this one
	told                                    string // the component that says so; empty: core knows
	remedy                                  string
	spki                                    []byte
}

// life is how much of its life is left, from 0 to 1.
func (w *watched) life(now time.Time) float64 {
	whole := w.notAfter.Sub(w.notBefore)
	if w.ours {
		whole -= backdate
	}
	if whole <= 0 {
		return 0
	}
	return min(max(float64(w.notAfter.Sub(now))/float64(whole), 0), 1)
}

// alert is what the operator is told in status; empty while all is well. A
// cause follows after a colon.
func (w *watched) alert(now time.Time) string {
	switch {
	case w.notAfter.IsZero() && w.trouble == "":
		return "" // being ordered
	case w.notAfter.IsZero():
		return "there is none: " + w.trouble
	case !now.Before(w.notAfter):
		return "has expired"
	case w.life(now) <= 0.1:
		return "expires very soon"
	case w.life(now) <= 0.25:
		return "expires soon"
	case w.trouble != "" && w.kind == "acme":
		return "could not be renewed: " + w.trouble
	case w.trouble != "":
		return "a newer file was not taken"
	case w.warning != "":
		return "outlives its CA: " + w.warning
	}
	return ""
}

// name is the certificate as a person reads it.
func (w *watched) name() string {
	what := w.kind
	if w.holder != "" {
		what = w.holder
	}
	if w.identity != "" {
		return what + " (" + w.identity + ")"
	}
	if w.subject != "" {
		return what + " (" + w.subject + ")"
	}
	return what
}

func newExpiries(c *core) *expiries {
	return &expiries{core: c, log: c.log, again: make(chan struct{}, 1)}
}

// kick lets run look at once.
func (e *expiries) kick() {
	select {
	case e.again <- struct{}{}:
	default:
	}
}

const (
	expiriesEvery = time.Minute
	expiriesLeast = time.Second
)

// run looks now and then, the more often the shorter certificates live.
func (e *expiries) run(ctx context.Context) error {
	for {
		if err := e.look(ctx, time.Now()); err != nil && ctx.Err() == nil {
			e.log.Error("cannot look at which certificates end soon", "cause", err)
		}
		timer := time.NewTimer(max(min(expiriesEvery, e.core.set.CertLifetime/60), expiriesLeast))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		case <-e.again:
			timer.Stop()
		}
	}
}

// look reads which certificates there are, and raises what is due.
func (e *expiries) look(ctx context.Context, now time.Time) error {
	list, err := e.list(ctx, now)
	if err != nil {
		return err
	}
	e.found.Store(&list)
	for _, w := range list {
		e.judge(ctx, &w, now)
	}
	return nil
}

func (e *expiries) judge(ctx context.Context, w *watched, now time.Time) {
	once := w.serial
	if once == "" {
		once = w.holder + " " + w.subject + " " + w.notAfter.UTC().Format(time.RFC3339)
	}
	a := alert{Code: "certificate_expires", Subject: w.name(), Remedy: w.remedy, From: w.told,
		Text: fmt.Sprintf("the certificate of %s ends at %s", w.name(), w.notAfter.UTC().Format(time.RFC3339))}
	late := ""
	if w.kind == "acme" && w.trouble != "" {
		late = "; it could not be renewed: " + w.trouble
	}
	a.Text += late
	switch left := w.life(now); {
	case w.notAfter.IsZero():
	case !now.Before(w.notAfter):
		a.Code, a.Once = "certificate_expired", "expired "+once
		a.Text = fmt.Sprintf("the certificate of %s has ended, at %s", w.name(), w.notAfter.UTC().Format(time.RFC3339)) + late
		e.core.alerts.raise(ctx, a)
	case left <= 0.1:
		a.Once = "expires 1/10 " + once
		e.core.alerts.raise(ctx, a)
	case left <= 0.25:
		a.Once = "expires 1/4 " + once
		e.core.alerts.raise(ctx, a)
	}
	if w.warning != "" && now.Before(w.notAfter) {
		e.core.alerts.raise(ctx, alert{Code: "certificate_outlives", Subject: w.name(), Once: "outlives " + once, From: w.told,
			Text: fmt.Sprintf("the certificate of %s outlives its CA: %s", w.name(), w.warning), Remedy: "put a chain there that ends later; it is picked up without a restart"})
	}
	trouble := "file " + w.holder
	switch {
	case w.trouble == "":
	case w.kind == "acme" && !w.notAfter.IsZero(): // an order may fail; the alerts above say so when it is late
	case w.kind == "acme": // the cause is never twice the same text
		e.core.alerts.raise(ctx, alert{Code: "certificate_order", Subject: w.name(), Once: trouble + " " + now.UTC().Format(time.DateOnly), From: w.told,
			Text: fmt.Sprintf("there is no certificate yet of %s: %s", w.name(), w.trouble), Remedy: w.remedy})
	default:
		e.core.alerts.raise(ctx, alert{Code: "certificate_file", Subject: w.name(), Once: trouble + " " + w.trouble, From: w.told,
			Text: fmt.Sprintf("the newer certificate file of %s was not taken: %s", w.name(), w.trouble), Remedy: "put a good pair there; the former one stays in use"})
	}
}

// list is every certificate that is in use, the one that ends first first.
func (e *expiries) list(ctx context.Context, now time.Time) ([]watched, error) {
	c := e.core
	var out []watched
	known := map[string]bool{}
	for _, cert := range c.ca.get().Certificates() {
		known[pki.Serial(cert.Cert)] = true
		remedy := "sallyport ca rotate"
		if strings.Contains(cert.What, "imported") {
			remedy = "renew it where it comes from, and run sallyport ca import"
		}
		spki := pki.SPKI(cert.Cert)
		out = append(out, watched{kind: "CA " + cert.What, subject: cert.Cert.Subject.String(), serial: pki.Serial(cert.Cert),
			notBefore: cert.Cert.NotBefore, notAfter: cert.Cert.NotAfter, remedy: remedy, spki: spki[:]})
	}
	// What has ended a while ago is not asked for: nobody has been using it.
	issued, err := c.db.Certificates(ctx, false, now)
	if err != nil {
		return nil, err
	}
	newest := map[string]watched{}
	for _, r := range issued {
		if known[r.Serial] || !r.Revoked.IsZero() || r.Kind == "root" || r.Kind == "intermediate" {
			continue
		}
		w := watched{ours: true, kind: r.Kind, subject: r.Subject, holder: r.Holder, serial: r.Serial, identity: r.Identity, notBefore: r.NotBefore, notAfter: r.NotAfter, spki: r.SPKI, remedy: remedyFor(r)}
		if r.Kind == string(pki.RoleCore) { // it replaces its own
			if have, ok := newest[r.Kind]; !ok || r.NotAfter.After(have.notAfter) {
				newest[r.Kind] = w
			}
			continue
		}
		out = append(out, w)
	}
	for _, w := range newest {
		out = append(out, w)
	}
	held, err := c.db.HeldCertificates(ctx)
	if err != nil {
		return nil, err
	}
	ours := map[string]bool{}
	for _, w := range out {
		ours[w.serial] = true
	}
	for _, h := range held {
		if h.Serial != "" && ours[h.Serial] && h.Error == "" {
			continue // issued here, and listed
		}
		w := watched{kind: "file", subject: h.Subject, serial: h.Serial, holder: string(h.Role) + "/" + h.Name + ": " + h.What,
			told: string(h.Role) + "/" + h.Name, notBefore: h.NotBefore, notAfter: h.NotAfter, trouble: h.Error, warning: h.Warning, remedy: "renew the file; it is picked up without a restart"}
		if link.Ordered(h.What) {
			w.kind, w.remedy = "acme", orderedRemedy
		}
		out = append(out, w)
	}
	if c.ordered != nil {
		r := c.ordered.report()
		out = append(out, watched{kind: "acme", subject: r.GetSubject(), serial: r.GetSerial(), holder: "core: " + r.GetWhat(), notBefore: instant(r.GetNotBeforeUnix()),
			notAfter: instant(r.GetNotAfterUnix()), trouble: r.GetError(), remedy: orderedRemedy})
	}
	if c.outside != nil {
		r := c.outside.Report()
		out = append(out, watched{kind: "file", subject: r.GetSubject(), serial: r.GetSerial(), holder: "core: " + r.GetWhat(), notBefore: time.Unix(r.GetNotBeforeUnix(), 0),
			notAfter: time.Unix(r.GetNotAfterUnix(), 0), trouble: r.GetError(), warning: r.GetWarning(), remedy: "renew the file; it is picked up without a restart"})
	}
	slices.SortStableFunc(out, func(a, b watched) int { return cmp.Or(a.notAfter.Compare(b.notAfter), bytes.Compare(a.spki, b.spki)) })
	return out, nil
}

// orderedRemedy is what to do about a certificate of a public CA.
const orderedRemedy = "its holder orders it again and again by itself: mend what the cause names; its log has more"

// instant is a time as components report it; 0 is none.
func instant(unix int64) time.Time {
	if unix == 0 {
		return time.Time{}
	}
	return time.Unix(unix, 0)
}

// remedyFor is what to do about a certificate that was issued here and was not
// renewed in time.
func remedyFor(r store.CertificateRecord) string {
	switch {
	case r.Kind == string(pki.RoleGateway) || r.Kind == string(pki.RoleProxy):
		return "it renews itself while it is connected: look at its log, and at whether core can be reached"
	case r.Kind == string(pki.RoleCore):
		return "core renews it by itself: look at core's log"
	case r.Holder != "":
		return "its holder renews it by itself: look at its log"
	}
	return "renew it: sallyport cert renew, or cert issue"
}

// certificates is what was found last, as the operator sees it.
func (e *expiries) certificates(now time.Time) []*control.CertificateRow {
	found := e.found.Load()
	if found == nil {
		return nil
	}
	out := make([]*control.CertificateRow, 0, len(*found))
	for _, w := range *found {
		out = append(out, &control.CertificateRow{Serial: w.serial, Identity: w.identity, Kind: w.kind, Subject: w.subject, NotBeforeUnix: seconds(w.notBefore),
			NotAfterUnix: seconds(w.notAfter), SpkiSha256: fmt.Sprintf("%x", w.spki), Holder: w.holder, Alert: w.alert(now)})
	}
	return out
}

// heldBy is what was found of a component, beside its identity.
func (e *expiries) heldBy(component string, now time.Time) (out []*control.CertificateRow) {
	for _, r := range e.certificates(now) {
		if strings.HasPrefix(r.GetHolder(), component+": ") {
			out = append(out, r)
		}
	}
	return out
}

// reported takes what a component says of the certificates it uses beside its
// identity.
func (c *core) reported(s *link.Session, list []*control.Certificate) {
	rows := make([]store.HeldCertificate, 0, len(list))
	for _, r := range list[:min(len(list), store.MaxHeldCertificates)] {
		rows = append(rows, store.HeldCertificate{What: clean(r.GetWhat()), Subject: clean(r.GetSubject()), Serial: clean(r.GetSerial()),
			NotBefore: instant(r.GetNotBeforeUnix()), NotAfter: instant(r.GetNotAfterUnix()), Error: clean(r.GetError()), Warning: clean(r.GetWarning())})
	}
	if err := c.db.ReportCertificates(context.WithoutCancel(s.Context()), s.Peer.ID.Role, s.Peer.ID.Name, rows); err != nil {
		c.log.Error("cannot note which certificates a component uses", string(s.Peer.ID.Role), s.Peer.ID.Name, "cause", err)
	}
	c.expiries.kick()
}
