package core

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"testing"
	"unicode"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"

	"sallyport/roles/control"
	"sallyport/store"
)

func file(name string, filler string) []byte {
	b, err := proto.Marshal(&descriptorpb.FileDescriptorProto{Name: &name, Package: &filler})
	if err != nil {
		panic(err)
	}
	return b
}

func TestAnnouncementsAreBounded(t *testing.T) {
	in := &control.Announcement{Services: []*control.AnnouncedService{
		{Name: "acme.v1.Orders", Upstream: "up\x1b[31m", Serving: true, Methods: []string{"Put", "Get", "Get", "No/Such", "", "Sp ace"}},
		{Name: "acme.stock.*"}, {Name: "grpc.reflection.v1.ServerReflection"}, {Name: "grpc.health.v1.Health"},
		{Name: ""}, {Name: "*"}, {Name: "a/b"}, {Name: "acme..x"}, {Name: strings.Repeat("x", 300)},
	}, Upstreams: []*control.UpstreamState{{Name: "up", Error: strings.Repeat("e", 10000)}}}
	a, left := readAnnouncement(in)
	if len(a.services) != 2 || len(left) != 5 {
		t.Errorf("took %v, left out %q", a.services, left)
	}
	if got := a.services["acme.v1.Orders"]; strings.Join(got.methods, ",") != "Get,Put" || strings.Contains(got.upstream, "\x1b") {
		t.Errorf("took %+v", got)
	}
	if n := len(a.upstreams[0].GetError()); n > 2*maxText {
		t.Errorf("an error of %d bytes was kept", n)
	}
	many := &control.Announcement{}
	for i := range 3000 {
		many.Services = append(many.Services, &control.AnnouncedService{Name: fmt.Sprintf("acme.v1.S%d", i)})
		many.Descriptors = append(many.Descriptors, file(fmt.Sprintf("f%d.proto", i), strings.Repeat("p", 10000)))
		many.Upstreams = append(many.Upstreams, &control.UpstreamState{Name: "u"})
	}
	a, left = readAnnouncement(many)
	total := 0
	for _, d := range a.descriptors {
		total += len(d.body)
	}
	if len(a.services) != store.MaxServices || total > maxAnnouncedFiles || len(a.upstreams) != maxUpstreams || len(left) != 3 {
		t.Errorf("took %d services, %d bytes of descriptors, %d upstreams, left out %q", len(a.services), total, len(a.upstreams), left)
	}
}

// TestDescriptorBombsAreLeftOut: a few bytes that would become much memory, in
// core and in every proxy.
func TestDescriptorBombsAreLeftOut(t *testing.T) {
	bomb := append(file("bomb.proto", "x"), bytes.Repeat([]byte{0x22, 0}, 2<<20)...)
	before := new(runtime.MemStats)
	runtime.ReadMemStats(before)
	a, left := readAnnouncement(&control.Announcement{Descriptors: [][]byte{file("good.proto", "x"), bomb}})
	after := new(runtime.MemStats)
	runtime.ReadMemStats(after)
	if len(a.descriptors) != 1 || a.descriptors[0].name != "good.proto" || len(left) != 1 {
		t.Errorf("took %d, left out %q", len(a.descriptors), left)
	}
	if n := after.TotalAlloc - before.TotalAlloc; n > 32<<20 {
		t.Errorf("it took %d MiB to find out", n>>20)
	}
}

func FuzzReadAnnouncement(f *testing.F) {
	seed, _ := proto.Marshal(&control.Announcement{Services: []*control.AnnouncedService{{Name: "a.B", Methods: []string{"C"}}}, Descriptors: [][]byte{file("x.proto", "x")}})
	f.Add(seed)
	f.Fuzz(func(t *testing.T, body []byte) {
		in := &control.Announcement{}
		if proto.Unmarshal(body, in) != nil {
			return
		}
		a, _ := readAnnouncement(in)
		for name, s := range a.services {
			if !validService(name) || strings.ContainsFunc(s.upstream, unicode.IsControl) {
				t.Fatalf("took %q %+v", name, s)
			}
		}
	})
}

func TestANewcomerCannotReplaceDescriptors(t *testing.T) {
	r := start(t, settings(t))
	r.apply(openPolicy)
	first, late := r.addGateway("z-first"), r.addGateway("a-late")
	announce := func(g *gateway, service, filler string) {
		g.connect()
		g.end.Announce(&control.Announcement{Services: []*control.AnnouncedService{{Name: service, Upstream: "up", Serving: true, Methods: []string{"Get"}}},
			Descriptors: [][]byte{file("shared.proto", filler), file(g.name+".proto", filler)}})
		r.service(service, g.name, "routed")
	}
	announce(first, "acme.v1.Orders", "honest")
	announce(late, "acme.v1.Other", "forged")
	p := r.addProxy("dmz1")
	eventually(t, "the proxy has its snapshot", func() error {
		s, _ := p.last()
		files := s.GetProxy().GetDescriptors()
		if len(files) != 3 {
			return fmt.Errorf("%d files", len(files))
		}
		for _, f := range files {
			if bytes.Contains(f, []byte("shared.proto")) && bytes.Contains(f, []byte("forged")) {
				t.Error("a newcomer replaced a file of another gateway")
			}
		}
		if got := len(s.GetProxy().GetServices()); got != 2 {
			return fmt.Errorf("%d services", got)
		}
		return nil
	})
}

func TestReportedDenialsAreBelievedWithinBounds(t *testing.T) {
	db, err := store.OpenMemoryCore()
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	d := newDenials(db, slog.New(slog.DiscardHandler))
	report := &control.DenialReport{Overflow: 3, Denials: []*control.Denial{
		{Caller: "spiffe://x/client/\x1b[2Jy" + strings.Repeat("z", 5000), Method: "/a.B/C\n", Reason: "Drop Table", Code: "NOT_A_CODE", Count: 7, MinuteUnix: db.Now().Unix()},
		{Caller: "192.0.2.0/24", Method: "/a.B/C", Reason: "no_permission", Code: "PERMISSION_DENIED", Count: 2, MinuteUnix: db.Now().Unix()}}}
	for range 3000 {
		report.Denials = append(report.Denials, &control.Denial{Caller: "c", Method: "/a.B/C", Reason: "r", Code: "OK", Count: 1, MinuteUnix: db.Now().Unix()})
	}
	d.write(context.Background(), trim(report))
	rows, err := db.Denials(context.Background(), db.Now().Add(-1e12), 100)
	if err != nil {
		t.Fatal(err)
	}
	var sum uint64
	for _, r := range rows {
		sum += r.Count
		if strings.ContainsFunc(r.Caller+r.Method+r.Reason, unicode.IsControl) || len(r.Caller) > 300 || r.Code == "NOT_A_CODE" {
			t.Errorf("kept %+v", r)
		}
	}
	if len(rows) != 4 || sum != 3+7+2+3000 {
		t.Errorf("%d rows, %d denials: %+v", len(rows), sum, rows)
	}
}
