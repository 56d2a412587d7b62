package link

import (
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
		{"spent token, both its roots retired since", joined, other.token(pki.RoleGateway, "orders", time.Now().Add(-time.Minute)).String(), pki.RoleGateway, false, ""},
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

// TestDenialTexts: strangers choose the texts, and bytes that are no UTF-8
// would end the session that reports them.
func TestDenialTexts(t *testing.T) {
	var d Denials
	d.Add("x", "/\xff\xfe"+strings.Repeat("é", 300), "no_row", codes.PermissionDenied, time.Now())
	if _, err := proto.Marshal(d.Take()); err != nil {
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
