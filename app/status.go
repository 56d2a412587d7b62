package app

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"sallyport/roles/control"
)

// statusVerb is the whole system on one page.
type statusVerb struct {
	coreFlags
	jsonFlag
}

func (statusVerb) Help() string {
	return `When you come to a running system, or something does not work: the components and why one is not connected, the services and who serves them, and what needs attention.

Example:

    sallyport status`
}

func (v *statusVerb) Run(c *cli) error {
	return v.core(c, func(ctx context.Context, core control.AdminClient) error {
		st, err := core.Status(ctx, &control.StatusRequest{})
		if err != nil {
			return err
		}
		if v.JSON {
			return c.printJSON(st)
		}
		return c.status(st)
	})
}

func (c *cli) status(st *control.StatusResponse) error {
	now := time.Now()
	advertised := ""
	if a := st.GetAdvertise(); a != "" && a != st.GetGrpcAddress() {
		advertised = ", advertised as " + a
	}
	policy := "built-in policy"
	if n := st.GetPolicyVersion(); n != 0 {
		policy = fmt.Sprintf("policy %d", n)
	}
	fmt.Fprintf(c.out, "core %s of %s, up %s, gRPC on %s%s, %s, %d calls in flight\n\n", st.GetVersion(), st.GetTrustDomain(),
		span(now.Sub(time.Unix(st.GetStartedUnix(), 0))), st.GetGrpcAddress(), advertised, policy, st.GetCallsInFlight())
	t := c.table("COMPONENT", "STATE", "AT", "LAST SEEN", "RTT", "CLOCK", "CERTIFICATE", "SNAPSHOT", "CALLS", "WHY")
	for _, m := range st.GetComponents() {
		at := m.GetObservedAddress()
		if m.GetRole() == "proxy" {
			at = m.GetAddress()
		}
		generation := strconv.FormatUint(m.GetAcknowledgedGeneration(), 10)
		if m.GetAcknowledgedGeneration() != m.GetGeneration() {
			generation += " of " + strconv.FormatUint(m.GetGeneration(), 10)
		}
		t.row(m.GetRole()+"/"+m.GetName(), m.GetState(), at, ago(m.GetLastSeenUnix(), now), duration(m.GetRttNano()), duration(m.GetClockOffsetNano()),
			left(m.GetCertificateNotAfterUnix(), now), generation, strconv.Itoa(int(m.GetCallsInFlight())), m.GetDetail())
		for _, u := range m.GetUpstreams() {
			state := "up"
			if !u.GetUp() {
				state = "down"
			}
			t.row("  upstream "+u.GetName(), state, u.GetAddress(), "", "", "", "", "", "", u.GetError())
		}
		for _, entrance := range m.GetEntrances() {
			t.row("  entrance", "open", oneLine(entrance), "", "", "", "", "", "", "")
		}
		for _, held := range m.GetCertificates() {
			expires, state := standing(held, now)
			_, what, _ := strings.Cut(held.GetHolder(), ": ")
			t.row("  certificate", state, held.GetSubject(), "", "", "", expires, "", "", what)
		}
	}
	if err := t.flush("no components yet: sallyport proxy add, sallyport gateway add"); err != nil {
		return err
	}
	if len(st.GetServices()) > 0 {
		fmt.Fprintln(c.out)
	}
	if err := c.services(st.GetServices()); err != nil {
		return err
	}
	if err := c.ownCertificates(st.GetCertificates(), now); err != nil {
		return err
	}
	for _, w := range st.GetWarnings() {
		c.say("%s", c.warning("attention: "+oneLine(w)))
	}
	return nil
}

// ownCertificates prints those of the CA and of core, and whatever needs
// attention; components' stand above, all of them in cert ls.
func (c *cli) ownCertificates(rows []*control.CertificateRow, now time.Time) error {
	t, more := c.table("CERTIFICATE", "STATE", "OF", "EXPIRES", "SERIAL"), 0
	for _, r := range rows {
		expires, state := standing(r, now)
		switch kind := r.GetKind(); {
		case (kind == "file" || kind == "acme") && !strings.HasPrefix(r.GetHolder(), "core: "):
			continue // stands below its component
		case state != "good" && state != "revoked":
		case strings.HasPrefix(kind, "CA ") || kind == "core" || kind == "file" || kind == "acme":
		case kind == "client" || kind == "service":
			more++
			continue
		default:
			continue
		}
		of := cmp.Or(r.GetIdentity(), r.GetHolder(), r.GetSubject())
		t.row(r.GetKind(), state, of, expires, r.GetSerial())
	}
	if t.rows == 0 {
		return nil
	}
	fmt.Fprintln(c.out)
	if err := t.flush(""); err != nil {
		return err
	}
	if more > 0 {
		fmt.Fprintf(c.out, "and %d of callers and services: sallyport cert ls\n", more)
	}
	return nil
}

func (c *cli) warning(s string) string {
	if c.colour(c.err) {
		return yellow + s + noColour
	}
	return s
}

// duration is a measured one; none is not zero.
func duration(nano int64) string {
	if nano == 0 {
		return ""
	}
	d := time.Duration(nano)
	switch {
	case d.Abs() < time.Millisecond:
		return d.Round(10 * time.Microsecond).String()
	case d.Abs() < time.Second:
		return d.Round(100 * time.Microsecond).String()
	}
	return d.Round(10 * time.Millisecond).String()
}
