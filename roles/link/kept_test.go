package link

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"sallyport/acme/pki"
	"sallyport/roles/control"
)

func TestOpenSelf(t *testing.T) {
	c, other := newCA(t), newCA(t)
	hour := time.Now().Add(time.Hour)
	joined, empty := filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "b")
	if err := pki.SaveCredentials(joined, c.credentials(pki.RoleGateway, "orders"), c.authority.Bundle()); err != nil {
		t.Fatal(err)
	}
	mine := c.token(pki.RoleGateway, "orders", hour).String()
	for _, tc := range []struct {
		name, dir, join string
		role            pki.Role
		token           bool   // it has to join
		fails           string // or the error says this
	}{
		{"joined", joined, "", pki.RoleGateway, false, ""},
		{"joined, spent token", joined, mine, pki.RoleGateway, false, ""},
		{"new", empty, mine, pki.RoleGateway, true, ""},
		{"nothing", empty, "", pki.RoleGateway, false, "gateway add"},
		{"nonsense", empty, "sp1.xxx", pki.RoleGateway, false, "token"},
		{"token of the other role", empty, mine, pki.RoleProxy, false, "for a gateway"},
		{"identity of the other role", joined, "", pki.RoleProxy, false, "data directory"},
		{"token of another name", joined, c.token(pki.RoleGateway, "stock", hour).String(), pki.RoleGateway, false, "stock"},
		{"token of another core", joined, other.token(pki.RoleGateway, "orders", hour).String(), pki.RoleGateway, false, "another core"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			self, token, err := OpenSelf(tc.dir, tc.role, tc.join)
			if tc.fails != "" {
				if err == nil || !strings.Contains(err.Error(), tc.fails) {
					t.Fatalf("got %v, want an error with %q", err, tc.fails)
				}
				return
			}
			if err != nil || (token != nil) != tc.token || (self.Credentials() == nil) != tc.token {
				t.Fatal(self, token, err)
			}
		})
	}
}

// TestSnapshots: understood, then on disk, then in use; a step that fails
// leaves the former in force.
func TestSnapshots(t *testing.T) {
	c := newCA(t)
	var steps []string
	var disk []byte
	var refuse, full bool
	s := &Snapshots{
		Self: c.self(pki.RoleGateway, "orders"),
		Save: func(b []byte, _, _ uint64) error {
			if full {
				return errors.New("disk full")
			}
			steps, disk = append(steps, "save"), b
			return nil
		},
		Load:   func() ([]byte, uint64, uint64, error) { return disk, 0, 0, nil },
		Forget: func() error { disk = nil; return nil },
		Prepare: func(*control.Snapshot) (func(), error) {
			if refuse {
				return nil, errors.New("no")
			}
			return func() { steps = append(steps, "use") }, nil
		},
	}
	of := func(n uint64) *control.Snapshot {
		sn := snapshot(1, n)
		sn.Bundle = c.authority.Bundle().Proto()
		return sn
	}
	if s.Held() != nil || s.Restore() != nil {
		t.Fatal("something from nothing")
	}
	if err := s.Apply(of(1)); err != nil || strings.Join(steps, " ") != "save use" {
		t.Fatal(err, steps)
	}
	for range 2 {
		refuse, full = !refuse, refuse
		if err := s.Apply(of(2)); err == nil || s.Held().GetGeneration() != 1 {
			t.Fatalf("refuse %v, full %v: %v", refuse, full, err)
		}
	}
	refuse, full = false, false
	if err := s.Apply(snapshot(1, 3)); err == nil || s.Held().GetGeneration() != 1 {
		t.Fatal("one without bundle was applied", err)
	}

	next := &Snapshots{Self: s.Self, Save: s.Save, Load: s.Load, Forget: s.Forget, Prepare: s.Prepare}
	if err := next.Restore(); err != nil || next.Held().GetGeneration() != 1 {
		t.Fatal(err, next.Held())
	}
	disk = []byte("broken")
	if err := next.Restore(); err != nil || disk != nil {
		t.Fatal(err)
	}
}

func TestDenials(t *testing.T) {
	var d Denials
	now := time.Unix(1_000_000_000, 0)
	if d.Take() != nil {
		t.Fatal("something from nothing")
	}
	for range 3 {
		d.Add("10.0.0.0/32", "/a.B/C", "no_row", codes.PermissionDenied, now)
	}
	r := d.Take()
	if len(r.GetDenials()) != 1 || r.GetDenials()[0].GetCount() != 3 || r.GetDenials()[0].GetCode() != "PERMISSION_DENIED" || r.GetDenials()[0].GetMinuteUnix()%60 != 0 {
		t.Fatal(r)
	}
	// Strangers choose the texts: bytes that are no UTF-8 once ended the session.
	for i := range 2 * maxDenialRows {
		d.Add("x", "/\xff\xfe"+strings.Repeat("é", 300+i), "no_row", codes.PermissionDenied, now.Add(time.Duration(i)*time.Minute))
	}
	r = d.Take()
	if len(r.GetDenials()) != maxDenialRows || r.GetOverflow() != maxDenialRows {
		t.Fatal(len(r.GetDenials()), r.GetOverflow())
	}
	if _, err := proto.Marshal(r); err != nil {
		t.Fatal(err)
	}
}

// TestAnnounceUnsendable: what protobuf cannot send is refused at once.
func TestAnnounceUnsendable(t *testing.T) {
	e := &ComponentEnd{}
	if err := e.Announce(&control.Announcement{Upstreams: []*control.UpstreamState{{Error: "\xff"}}}); err == nil {
		t.Fatal("announced")
	}
	if e.announcement != nil {
		t.Fatal("kept")
	}
}
