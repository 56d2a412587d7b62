package link

import (
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	"sallyport/acme/pki"
	"sallyport/roles/control"
)

// newerList is the signed revocation list to hold after core has sent one: the
// new one if it says all that the former does, else, if core has lost some
// since, the former. One from this component's own disk was verified before it
// was stored; the issuer that signed it may have been retired since.
func (st *selfState) newerList(p *control.RevocationList, b *pki.Bundle, stored bool) (*control.RevocationList, *pki.RevocationList, error) {
	if len(p.GetPayload()) == 0 {
		return st.list, st.listed, nil
	}
	if st.list != nil && proto.Equal(p, st.list) {
		return st.list, st.listed, nil
	}
	verify := func() (*pki.RevocationList, error) { return pki.VerifyRevocations(p, b.Roots) }
	if stored {
		verify = func() (*pki.RevocationList, error) { return pki.ParseRevocations(p.GetPayload()) }
	}
	list, err := verify()
	if err != nil {
		return nil, nil, err
	}
	if list.TrustDomain != b.TrustDomain {
		return nil, nil, fmt.Errorf("it is for %s, this component belongs to %s", list.TrustDomain, b.TrustDomain)
	}
	if st.listed != nil && !covers(list, st.listed) {
		return st.list, st.listed, nil
	}
	return p, list, nil
}

// covers reports whether a says everything that b says, in any order and in
// fewer words: a list of a later epoch was merged and compacted.
func covers(a, b *pki.RevocationList) bool {
	probe := *a
	probe.Entries = slices.Clone(a.Entries)
	return a.TrustDomain == b.TrustDomain && !probe.Append(b.Entries...)
}

// Revocations is the newest signed revocation list that this component holds,
// for core, which may have lost its own; nil if there is none.
func (s *Self) Revocations() *control.RevocationList { return s.state.Load().list }

// RevocationsHead names it, for Hello.
func (s *Self) RevocationsHead() *control.RevocationListHead {
	if list := s.Revocations(); list != nil {
		return pki.RevocationsHead(list)
	}
	return nil
}
