package pki

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"

	"sallyport/roles/control"
)

// RevocationEntry revokes one of: an identity up to an incarnation, a
// certificate by its serial number, a public key by its SHA-256. Never a
// certificate by its hash, because signatures can be rewritten.
type RevocationEntry struct {
	Identity    ID     // with Incarnation
	Incarnation uint64 // callers and services have none: 0
	Serial      string // as Serial writes it
	Key         []byte // SHA-256 of the SubjectPublicKeyInfo, 32 bytes
	At          time.Time
	Reason      string
}

// RevocationList is every revocation in the order in which they were made.
// Core signs it and gives it to every component, so that a core that is
// restored from an older backup learns from them what it has forgotten. It is
// append-only within an epoch.
type RevocationList struct {
	TrustDomain string
	Epoch       uint64
	Entries     []RevocationEntry
}

// The encoding is canonical, so that one list has one hash: numbers big-endian,
// texts with their length before them in one byte,
//
//	magic         "sallyport revocations 1\n"
//	trust domain  1+n
//	epoch         8
//	entries       4
//	each entry    kind 1, at 8 (seconds since 1970), reason 1+n, and
//	              kind 1 identity: role 1, incarnation 8, name 1+n
//	              kind 2 serial:   1+n, as short as can be
//	              kind 3 key:      32
//	head          32, of the hash chain: SHA-256 of magic and trust domain,
//	              then of the former hash and each entry
const (
	revocationsMagic = "sallyport revocations 1\n"
	maxRevocations   = 2 << 20 // bytes; a message between components takes 4 MiB
	maxReason        = 255

	revokeIdentity = 1
	revokeSerial   = 2
	revokeKey      = 3
)

// The numbers of roles in lists. Never renumbered.
var revocationRoles = []Role{1: RoleCore, 2: RoleProxy, 3: RoleGateway, 4: RoleClient, 5: RoleService}

// Sequence is the number of entries.
func (l *RevocationList) Sequence() uint64 { return uint64(len(l.Entries)) }

// Append adds the entries that the list does not cover yet and reports whether
// there was one. Times are cut to seconds, texts to what the encoding takes.
func (l *RevocationList) Append(entries ...RevocationEntry) bool {
	known := map[string]uint64{}
	for _, e := range l.Entries {
		known[e.subject()] = max(known[e.subject()], e.Incarnation)
	}
	added := false
	for _, e := range entries {
		if n, ok := known[e.subject()]; ok && n >= e.Incarnation {
			continue
		}
		e.At = e.At.UTC().Truncate(time.Second)
		// Twice, because what is not printable may get longer.
		e.Reason = printable(printable(e.Reason, maxReason-len("…")), maxReason-len("…"))
		e.Key = bytes.Clone(e.Key)
		l.Entries = append(l.Entries, e)
		known[e.subject()] = e.Incarnation
		added = true
	}
	return added
}

// subject is what an entry revokes, without the incarnation.
func (e RevocationEntry) subject() string {
	switch {
	case !e.Identity.IsZero():
		return e.Identity.String()
	case e.Serial != "":
		return "serial " + e.Serial
	}
	return "key " + string(e.Key)
}

// Compact is the list for a new epoch: of the entries of one identity the
// newest incarnation alone.
func (l *RevocationList) Compact(epoch uint64) *RevocationList {
	out := &RevocationList{TrustDomain: l.TrustDomain, Epoch: epoch}
	last := map[string]uint64{}
	for _, e := range l.Entries {
		last[e.subject()] = max(last[e.subject()], e.Incarnation)
	}
	for _, e := range l.Entries {
		if e.Incarnation == last[e.subject()] {
			out.Append(e)
		}
	}
	return out
}

// Proto is what the list revokes, as verifiers look it up.
func (l *RevocationList) Proto() []*control.Revocation {
	var out []*control.Revocation
	for _, e := range l.Entries {
		out = append(out, &control.Revocation{Identity: e.Identity.String(), Incarnation: e.Incarnation, Serial: e.Serial, Key: e.Key})
	}
	return out
}

// Extends reports whether l begins with all that o says, in the same order.
func (l *RevocationList) Extends(o *RevocationList) bool {
	if l.TrustDomain != o.TrustDomain || len(l.Entries) < len(o.Entries) {
		return false
	}
	return slices.EqualFunc(l.Entries[:len(o.Entries)], o.Entries, func(a, b RevocationEntry) bool {
		return bytes.Equal(a.append(nil), b.append(nil))
	})
}

// Encode is the payload that is signed. It refuses what ParseRevocations would.
func (l *RevocationList) Encode() ([]byte, error) {
	if err := ValidTrustDomain(l.TrustDomain); err != nil {
		return nil, fmt.Errorf("revocation list: %w", err)
	}
	out := append([]byte(revocationsMagic), byte(len(l.TrustDomain)))
	out = append(out, l.TrustDomain...)
	out = binary.BigEndian.AppendUint64(out, l.Epoch)
	out = binary.BigEndian.AppendUint32(out, uint32(len(l.Entries)))
	head := revocationsStart(l.TrustDomain)
	for i, e := range l.Entries {
		if err := e.check(l.TrustDomain); err != nil {
			return nil, fmt.Errorf("revocation list: entry %d: %w", i+1, err)
		}
		from := len(out)
		out = e.append(out)
		head = revocationsNext(head, out[from:])
		if len(out) > maxRevocations-len(head) {
			return nil, fmt.Errorf("the revocation list has more than %d bytes: open a new epoch, which drops what newer entries cover", maxRevocations)
		}
	}
	return append(out, head[:]...), nil
}

func revocationsStart(trustDomain string) [32]byte {
	return sha256.Sum256([]byte(revocationsMagic + trustDomain))
}

func revocationsNext(head [32]byte, entry []byte) [32]byte {
	return sha256.Sum256(append(head[:len(head):len(head)], entry...))
}

func (e RevocationEntry) append(b []byte) []byte {
	kind := byte(revokeKey)
	switch {
	case !e.Identity.IsZero():
		kind = revokeIdentity
	case e.Serial != "":
		kind = revokeSerial
	}
	b = append(b, kind)
	b = binary.BigEndian.AppendUint64(b, uint64(e.At.Unix()))
	b = append(append(b, byte(len(e.Reason))), e.Reason...)
	switch kind {
	case revokeIdentity:
		b = append(b, byte(slices.Index(revocationRoles, e.Identity.Role)))
		b = binary.BigEndian.AppendUint64(b, e.Incarnation)
		b = append(append(b, byte(len(e.Identity.Name))), e.Identity.Name...)
	case revokeSerial:
		n, _ := new(big.Int).SetString(e.Serial, 16)
		raw := n.Bytes()
		b = append(append(b, byte(len(raw))), raw...)
	default:
		b = append(b, e.Key...)
	}
	return b
}

// check holds for every entry that is written or read.
func (e RevocationEntry) check(trustDomain string) error {
	kinds := 0
	for _, is := range []bool{!e.Identity.IsZero(), e.Serial != "", len(e.Key) > 0} {
		if is {
			kinds++
		}
	}
	if kinds != 1 {
		return errors.New("it has to revoke one of an identity, a serial number and a key")
	}
	if at := e.At.Unix(); at <= 0 || at > 1<<40 || e.At.Nanosecond() != 0 {
		return errors.New("its time is out of range")
	}
	if len(e.Reason) > maxReason || e.Reason != printable(e.Reason, maxReason) {
		return fmt.Errorf("its reason is too long or not printable: %q", printable(e.Reason, 64))
	}
	switch {
	case e.Serial != "":
		n, err := ParseSerial(e.Serial)
		if err != nil || n != e.Serial || e.Incarnation != 0 {
			return fmt.Errorf("%q is not a serial number", printable(e.Serial, 80))
		}
		return nil
	case len(e.Key) > 0:
		if len(e.Key) != 32 || e.Incarnation != 0 {
			return errors.New("a key is revoked by the 32 bytes of its SHA-256")
		}
		return nil
	}
	if err := e.Identity.Validate(); err != nil {
		return err
	}
	if e.Identity.TrustDomain != trustDomain {
		return fmt.Errorf("%s is not of the trust domain %s", e.Identity, trustDomain)
	}
	if e.Identity.Role.Component() && e.Incarnation == 0 {
		return fmt.Errorf("%s: incarnations count from 1", e.Identity)
	}
	return nil
}

// ParseRevocations reads a payload, of which every byte has a meaning. It
// verifies no signature.
func ParseRevocations(payload []byte) (*RevocationList, error) {
	bad := func(what string) (*RevocationList, error) {
		return nil, refuse(CodeBadRevocations, "the revocation list cannot be read: "+what, "update the older side, or report this")
	}
	if len(payload) > maxRevocations {
		return bad(fmt.Sprintf("it has %d bytes", len(payload)))
	}
	b, ok := bytes.CutPrefix(payload, []byte(revocationsMagic))
	if !ok {
		return bad("it begins with something else")
	}
	short := false
	take := func(n int) []byte {
		if len(b) < n {
			short, b = true, nil
			return make([]byte, n)
		}
		head := b[:n]
		b = b[n:]
		return head
	}
	text := func() string { return string(take(int(take(1)[0]))) }
	l := &RevocationList{TrustDomain: text(), Epoch: binary.BigEndian.Uint64(take(8))}
	count := binary.BigEndian.Uint32(take(4))
	if short || ValidTrustDomain(l.TrustDomain) != nil {
		return bad("its beginning is damaged")
	}
	head := revocationsStart(l.TrustDomain)
	for range count {
		if len(b) == 0 {
			return bad("it ends too early")
		}
		from := b
		var e RevocationEntry
		kind := take(1)[0]
		at := binary.BigEndian.Uint64(take(8))
		if at > 1<<40 {
			return bad("a time is out of range")
		}
		e.At = time.Unix(int64(at), 0).UTC()
		e.Reason = text()
		switch kind {
		case revokeIdentity:
			role := int(take(1)[0])
			if role < 1 || role >= len(revocationRoles) {
				return bad("a role is unknown")
			}
			e.Incarnation = binary.BigEndian.Uint64(take(8))
			e.Identity = ID{l.TrustDomain, revocationRoles[role], text()}
		case revokeSerial:
			raw := []byte(text())
			if len(raw) == 0 || raw[0] == 0 || len(raw) > 32 {
				return bad("a serial number is out of range")
			}
			e.Serial = new(big.Int).SetBytes(raw).Text(16)
		case revokeKey:
			e.Key = bytes.Clone(take(32))
		default:
			return bad(fmt.Sprintf("an entry of kind %d is unknown", kind))
		}
		if short {
			return bad("it ends too early")
		}
		if err := e.check(l.TrustDomain); err != nil {
			return bad(printable(err.Error(), 300))
		}
		head = revocationsNext(head, from[:len(from)-len(b)])
		l.Entries = append(l.Entries, e)
	}
	if !bytes.Equal(b, head[:]) {
		return bad("its hash chain does not end as it says")
	}
	return l, nil
}

// MergeRevocations is the union of lists of one trust domain. The list of the
// highest epoch, the longest of those, comes first and whole; what others know
// beside it follows. So the result extends that list, and nothing that anybody
// has revoked is forgotten.
func MergeRevocations(lists ...*RevocationList) (*RevocationList, error) {
	lists = slices.DeleteFunc(slices.Clone(lists), func(l *RevocationList) bool { return l == nil })
	if len(lists) == 0 {
		return nil, errors.New("merge revocation lists: there is none")
	}
	slices.SortStableFunc(lists, func(a, b *RevocationList) int {
		return cmp.Or(cmp.Compare(b.Epoch, a.Epoch), cmp.Compare(len(b.Entries), len(a.Entries)))
	})
	out := &RevocationList{TrustDomain: lists[0].TrustDomain, Epoch: lists[0].Epoch, Entries: slices.Clone(lists[0].Entries)}
	for _, l := range lists[1:] {
		if l.TrustDomain != out.TrustDomain {
			return nil, fmt.Errorf("merge revocation lists: one is of the trust domain %s, another of %s", out.TrustDomain, l.TrustDomain)
		}
		out.Append(l.Entries...)
	}
	return out, nil
}
