package core

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"sallyport/acme/pki"
	"sallyport/roles/control"
	"sallyport/store"
)

// clockTolerance is how far a component's clock may be off before it is said.
const clockTolerance = 10 * time.Minute

// Status is everything at a glance.
func (a *admin) Status(ctx context.Context, _ *control.StatusRequest) (*control.StatusResponse, error) {
	c := a.core
	out := &control.StatusResponse{Version: c.version, TrustDomain: c.ca.get().TrustDomain(), Epoch: c.publisher.epoch.Load(), GrpcAddress: c.address,
		Advertise: c.advertise, StartedUnix: c.started.Unix(), CallsInFlight: uint32(max(c.router.calls.InFlight(), 0))}
	components, err := a.ListComponents(ctx, &control.ListComponentsRequest{})
	if err != nil {
		return nil, err
	}
	services, err := a.ListServices(ctx, &control.ListServicesRequest{})
	if err != nil {
		return nil, err
	}
	out.Components, out.Services = components.GetComponents(), services.GetServices()
	record, err := c.db.Policy(ctx, 0)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, refusal(err)
	}
	out.PolicyVersion = record.Version
	out.Certificates = c.expiries.certificates(time.Now())
	if out.Warnings, err = c.estranged(ctx); err != nil {
		return nil, refusal(err)
	}
	out.Warnings = append(out.Warnings, a.warnings(out)...)
	return out, nil
}

// warnings are what an operator should look at.
func (a *admin) warnings(s *control.StatusResponse) []string {
	var out []string
	if w := a.core.policy.warning(); w != "" {
		out = append(out, w)
	}
	out = append(out, a.core.issuers.warnings()...)
	if awaits := a.core.relearning.awaits(); len(awaits) > 0 {
		out = append(out, "core was restored on a fresh host: it issues and relays nothing until it has heard "+strings.Join(awaits, ", ")+": "+a.core.relearning.need()+", or remove what is gone for good")
	}
	for _, r := range s.GetCertificates() {
		if r.GetAlert() != "" {
			w := watched{kind: r.GetKind(), subject: r.GetSubject(), holder: r.GetHolder(), identity: r.GetIdentity()}
			text := fmt.Sprintf("certificate of %s: %s", w.name(), r.GetAlert())
			if r.GetNotAfterUnix() != 0 {
				text += " (" + time.Unix(r.GetNotAfterUnix(), 0).UTC().Format(time.RFC3339) + ")"
			}
			out = append(out, text)
		}
	}
	if ca := a.core.ca.get(); ca.Phase() != pki.PhaseSteady {
		out = append(out, fmt.Sprintf("the CA is being rotated (%s since %s): sallyport ca rotate --status", ca.Phase(), ca.Since().UTC().Format(time.RFC3339)))
	}
	out = append(out, a.core.peerWarnings(s.GetComponents())...)
	for _, m := range s.GetComponents() {
		who := m.GetRole() + " " + m.GetName()
		if slices.Contains(m.GetPeers(), "any") {
			out = append(out, who+": any address may connect as far as the firewall is concerned")
		}
		out = append(out, m.GetNotes()...)
		if d := time.Duration(m.GetClockOffsetNano()).Abs(); d > clockTolerance {
			out = append(out, fmt.Sprintf("%s: its clock is %s off core's: set it right, certificates depend on it", who, d.Round(time.Second)))
		}
		if m.GetState() == "lost" {
			out = append(out, fmt.Sprintf("%s is not connected: %s", who, m.GetDetail()))
		}
	}
	for _, r := range s.GetServices() {
		if r.GetState() == "waiting" || r.GetState() == "refused" {
			out = append(out, fmt.Sprintf("service %s of gateway %s is not routed: %s", r.GetService(), r.GetGateway(), r.GetDetail()))
		}
	}
	return out
}

// componentRow is a component as the operator sees it: what was decided about
// it, and how it is.
func (a *admin) componentRow(r store.ComponentRecord) *control.Component {
	row := &control.Component{Role: string(r.Role), Name: r.Name, Incarnation: r.Incarnation, Peers: r.Peers, Serve: r.Serve, Address: r.Address,
		ServerName: r.ServerName, State: r.State, Version: r.Version, JoinedUnix: seconds(r.Joined), LastSeenUnix: seconds(r.LastSeen),
		CertificateNotAfterUnix: seconds(r.NotAfter), ObservedAddress: r.Observed, CertificateNames: r.CertNames}
	if r.Role == pki.RoleProxy {
		row.GrpcTls = a.core.modeOf(r)
	}
	row.Certificates = a.core.expiries.heldBy(r.Label(), time.Now())
	m := a.core.registry.find(key{r.Role, r.Name})
	if m == nil || r.State == store.StateRemoved {
		if r.State == store.StateJoined {
			row.State, row.Detail = "lost", "it has not connected since core started"
		}
		if r.State != store.StateRemoved {
			row.Notes = a.core.peerNotes(row, nil)
		}
		return row
	}
	m.mu.Lock()
	session, announced := m.session, m.announce
	row.Detail = m.detail
	row.Generation = m.snapshot.GetGeneration().GetGeneration()
	m.mu.Unlock()
	row.CallsInFlight = uint32(max(m.links.InFlight()+m.calling.InFlight(), 0))
	row.AcknowledgedGeneration, row.AcknowledgedRevocations = m.acknowledged.Load(), m.enforces.Load()
	if announced != nil {
		for _, u := range announced.upstreams {
			row.Upstreams = append(row.Upstreams, &control.UpstreamRow{Name: u.GetName(), Address: u.GetAddress(), Up: u.GetUp(), Error: u.GetError()})
		}
	}
	if session == nil {
		if r.State == store.StateJoined {
			row.State = "lost"
			if row.Detail == "" {
				row.Detail = "it has not connected since core started"
			}
		}
		row.Notes = a.core.peerNotes(row, nil)
		return row
	}
	state := session.State()
	row.State = "connected"
	row.Version = clean(session.Hello.GetVersion())
	row.ObservedAddress = addressOf(session.Peer.Remote)
	row.Entrances = entrancesOf(session.Hello)
	row.RttNano, row.ClockOffsetNano = int64(state.RTT), int64(state.ClockOffset)
	if !state.LastSeen.IsZero() {
		row.LastSeenUnix = state.LastSeen.Unix()
	}
	if len(session.Peer.Chain) > 0 {
		row.CertificateNotAfterUnix = session.Peer.Chain[0].NotAfter.Unix()
	}
	if state.AckError != "" {
		row.Detail = "it refused its last snapshot: " + clean(state.AckError)
	} else if r.Role == pki.RoleGateway && m.links.Len() == 0 {
		row.Detail = "its relay link is not up yet"
	}
	row.Notes = a.core.peerNotes(row, session.Hello.GetPort())
	return row
}
