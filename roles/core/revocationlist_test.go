package core

import (
	"bytes"
	"reflect"
	"testing"
	"time"

	"sallyport/acme/pki"
	"sallyport/store"
)

// TestTheListSaysWhatTheStoreSays there and back, and snapshots say the same,
// keys that stand alone included.
func TestTheListSaysWhatTheStoreSays(t *testing.T) {
	at := time.Unix(1900000000, 0).UTC()
	sum := func(b byte) []byte { return bytes.Repeat([]byte{b}, 32) }
	rows := []store.Revocation{
		{SPKI: sum(1), Reason: "API key ci", At: at},
		{Serial: "a1", SPKI: sum(2), Reason: "keyCompromise", At: at},
		{SPKI: sum(3), Reason: "API key nightly", At: at},
		{Role: pki.RoleGateway, Name: "orders", Incarnation: 2, Reason: "removed", At: at},
		{Serial: "a2", Reason: "of nobody knows which key", At: at},
	}
	var entries []store.RevocationEntry
	for i, r := range rows {
		entries = append(entries, store.RevocationEntry{Sequence: uint64(i + 1), Revocation: r})
	}
	list := &pki.RevocationList{TrustDomain: "test.internal", Epoch: 1}
	list.Append(listedRevocations("test.internal", entries)...)
	payload, err := list.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if list, err = pki.ParseRevocations(payload); err != nil {
		t.Fatal(err)
	}
	if back := storedRevocations(list); !reflect.DeepEqual(back, rows) {
		t.Errorf("%+v came back as %+v", rows, back)
	}
	var said []string
	for _, r := range revocationsProto("test.internal", rows) {
		said = append(said, r.GetIdentity()+r.GetSerial()+string(r.GetKey()))
	}
	want := []string{string(sum(1)), "a1", string(sum(2)), string(sum(3)), "spiffe://test.internal/gateway/orders", "a2"}
	if !reflect.DeepEqual(said, want) {
		t.Errorf("snapshots say %q", said)
	}
}
