package core

import (
	"bytes"
	"log/slog"
	"testing"

	"sallyport/acme/pki"
	"sallyport/roles/control"
	"sallyport/roles/link"
)

// TestComponentsDoNotFillTheLog has a component refuse its snapshot ten thousand
// times. Each refusal was a line.
func TestComponentsDoNotFillTheLog(t *testing.T) {
	var out bytes.Buffer
	c := &core{log: slog.New(slog.NewTextHandler(&out, nil)), registry: newRegistry()}
	c.registry.get(key{pki.RoleProxy, "dmz1"})
	s := &link.Session{Peer: link.Peer{ID: pki.ID{Role: pki.RoleProxy, Name: "dmz1"}}}
	for range 10_000 {
		c.acknowledged(s, &control.SnapshotAck{Error: "it does not please me", Generation: &control.Generation{}})
	}
	if n := bytes.Count(out.Bytes(), []byte("\n")); n < 1 || n > 30 {
		t.Errorf("%d lines", n)
	}
}
