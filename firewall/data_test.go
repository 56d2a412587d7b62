package firewall

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"sallyport/configs"
)

func peers(t testing.TB, list ...string) Peers {
	t.Helper()
	if len(list) == 0 {
		return Peers{}
	}
	p, err := ParsePeers(list)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func same(a, b *Entry) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Generation == b.Generation && a.Peers.Equal(b.Peers)
}

const wholeData = `{
  "version": 1,
  "core": {
    "generation": 12,
    "any": false,
    "peers": [
      "10.0.0.0/24",
      "192.0.2.1/32",
      "2001:db8::7/128"
    ]
  },
  "proxy": {
    "generation": 18446744073709551615,
    "any": true,
    "peers": []
  }
}
`

func TestDataText(t *testing.T) {
	d := Data{
		Core:  &Entry{12, peers(t, "2001:db8::7", "::ffff:192.0.2.1", "10.0.0.0/25", "10.0.0.128/25")},
		Proxy: &Entry{1<<64 - 1, peers(t, "any")},
	}
	text, err := d.Encode()
	if err != nil || string(text) != wholeData {
		t.Fatalf("%v\n%s", err, text)
	}
	for _, d := range []Data{d, {}, {Core: &Entry{}}, {Proxy: &Entry{Peers: peers(t, "0.0.0.0/1")}}} {
		text, err := d.Encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseData(text)
		if err != nil || !same(d.Core, again.Core) || !same(d.Proxy, again.Proxy) {
			t.Errorf("%s\nbecame %+v, %v", text, again, err)
		}
	}
	if _, err := (Data{Core: &Entry{0, peers(t, "gw.example.org")}}).Encode(); err == nil || !strings.Contains(err.Error(), "gw.example.org") {
		t.Errorf("a name that was not resolved: %v", err)
	}
	many := Entry{Peers: Peers{prefixes: make([]netip.Prefix, MaxDataEntries+1)}}
	if _, err := (Data{Core: &many}).Encode(); err == nil || !strings.Contains(err.Error(), "CIDR") {
		t.Errorf("too many: %v", err)
	}
}

// TestDataRefuses: every way in which the file is not exactly what it may be.
func TestDataRefuses(t *testing.T) {
	entry := func(peers string) string {
		return `{"version":1,"core":{"generation":1,"any":false,"peers":[` + peers + `]}}`
	}
	var million strings.Builder
	for i := range 1_000_000 {
		fmt.Fprintf(&million, `,"10.%d.%d.%d/32"`, i>>16, i>>8&255, i&255)
	}
	for in, want := range map[string]string{
		"":                            "unexpected EOF",
		"{":                           "unexpected EOF",
		wholeData[:len(wholeData)-3]:  "unexpected EOF",
		wholeData[:len(wholeData)/2]:  "EOF",
		"[]":                          "\"{\" is missing",
		"null":                        "\"{\" is missing",
		"{}":                          "no version",
		`{"version":2}`:               "version 2",
		`{"version":"1"}`:             "version is no number",
		`{"version":1.0}`:             "version is no number",
		`{"version":-1}`:              "version is no number",
		`{"version":1,"version":1}`:   "twice",
		`{"version":1} {}`:            "follows the end",
		`{"version":1}x`:              "follows the end",
		"{\"version\":1}\n\x00":       "follows the end",
		`{"version":1,}`:              "no JSON",
		`{"Version":1}`:               `"Version" is unknown`,
		`{"version":1,"include":"x"}`: `"include" is unknown`,
		`{"version":1,"port":22}`:     `"port" is unknown`,
		`{"version":1,"core":null}`:   "\"{\" is missing",
		`{"version":1,"core":{}}`:     "have to be there",
		`{"version":1,"core":{"generation":1,"any":false}}`:                              "have to be there",
		`{"version":1,"core":{"generation":1,"any":false,"peers":null}}`:                 "\"[\" is missing",
		`{"version":1,"core":{"generation":1,"any":1,"peers":[]}}`:                       "neither true nor false",
		`{"version":1,"core":{"generation":1,"any":null,"peers":[]}}`:                    "neither true nor false",
		`{"version":1,"core":{"generation":18446744073709551616,"any":true,"peers":[]}}`: "no number",
		`{"version":1,"core":{"generation":1,"any":true,"peers":["10.0.0.1/32"]}}`:       "any comes with no peers",
		`{"version":1,"core":{"generation":1,"any":false,"peers":[],"peers":[]}}`:        "twice",
		`{"version":1,"core":{"generation":1,"any":false,"peers":[],"port":22}}`:         `"port" is unknown`,
		`{"version":1,"core; flush ruleset":{"generation":1,"any":false,"peers":[]}}`:    "is unknown",
		`{"version":1,"` + strings.Repeat("A", 1<<20) + `":1}`:                           "AAAA\"…",
		entry(`{"x":["10.0.0.1/32"]}`):                                                   "number 1 is no text",
		entry(`1`):                                                                       "number 1 is no text",
		entry(`"10.0.0.1"`):                                                              "is no network",
		entry(`"10.0.0.1/24"`):                                                           "is no network",
		entry(`"10.0.0.0/33"`):                                                           "is no network",
		entry(`"010.0.0.0/8"`):                                                           "is no network",
		entry(`" 10.0.0.0/8"`):                                                           "is no network",
		entry(`"::ffff:10.0.0.0/104"`):                                                   "is no network",
		entry(`"2001:DB8::/32"`):                                                         "is no network",
		entry(`"fe80::1%eth0/128"`):                                                      "is no network",
		entry(`"10.0.0.0/8 } ; flush ruleset ; #"`):                                      "is no network",
		entry(`"include \"/etc/shadow\""`):                                               "is no network",
		entry(`"10.0.0.0/8\u0000"`):                                                      "is no network",
		entry(`"gw.example.org"`):                                                        "is no network",
		entry(`"any"`):                                                                   "is no network",
		entry(`"0.0.0.0/0"`):                                                             "everybody",
		entry(`"::/0"`):                                                                  "everybody",
		entry(`"10.0.0.2/32","10.0.0.1/32"`):                                             "not in order",
		entry(`"10.0.0.1/32","10.0.0.1/32"`):                                             "not in order",
		entry(`"10.0.0.0/32","10.0.0.1/32"`):                                             "not merged",
		entry(`"10.0.0.0/8","10.1.0.0/16"`):                                              "not merged",
		entry(million.String()[1:]):                                                      "bytes",
		entry(million.String()[1:6_000_000] + `"`):                                       "more than 65536",
		strings.Repeat("[", 1<<20):                                                       "\"{\" is missing",
		strings.Repeat(`{"version":`, 1<<16):                                             "version is no number",
		strings.Repeat(" ", MaxDataSize) + "{}":                                          "bytes",
		"table inet filter { chain input { type filter hook input priority 0; policy accept; } }\n": "no JSON",
		"\xef\xbb\xbf" + wholeData:         "no JSON",
		"include \"/etc/nftables.conf\"\n": "no JSON",
		"{\"version\":1,\"core\":{\"generation\":1,\"any\":false,\"peers\":[\"10.0.0.0/8\xff\"]}}":        "is no network",
		"{\"version\":1,\"core\":{\"generation\":1,\"any\":false,\"peers\":[\"10.0.0.1/32\nflush\"]}}":    "no JSON",
		"{\"version\":1,\"gateway\":{\"generation\":1,\"any\":false,\"peers\":[]}}":                       "unknown",
		"{\"version\":1,\"core\":{\"generation\":1,\"any\":false,\"peers\":[\"\x1b[2J\"]}}":               "no JSON",
		"{\"version\":1,\"core\":{\"generation\":1,\"any\":false,\"peers\":[\"\\u001b[2J\\u0007x\"]}}":    `"\x1b[2J\ax"`,
		"{\"version\":1,\"core\":{\"generation\":1,\"any\":false,\"peers\":[]},\"core\":{\"any\":true}}":  "twice",
		"{\"version\":1,\"core\":{\"generation\":1,\"any\":false,\"peers\":[\"10.0.0.0/8\"]}}{\"any\":1}": "follows the end",
	} {
		d, err := ParseData([]byte(in))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.120q: got %v, want an error with %q", in, err, want)
			continue
		}
		if d.Core != nil || d.Proxy != nil {
			t.Errorf("%.120q: a refused file gave data", in)
		}
		if len(err.Error()) > 300 || strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' }) {
			t.Errorf("%.120q: unfit for a log: %.400q", in, err)
		}
	}
}

func FuzzParseData(f *testing.F) {
	f.Add([]byte(wholeData))
	f.Add([]byte(`{"version":1,"core":{"generation":1,"any":false,"peers":["10.0.0.0/8"]}}`))
	f.Add([]byte(`{"version":1,"core":{"generation":1,"any":true,"peers":[]},"core":{}}x`))
	f.Fuzz(func(t *testing.T, text []byte) {
		d, err := ParseData(text)
		if err != nil {
			return
		}
		out, err := d.Encode()
		if err != nil {
			t.Fatalf("%q cannot be written again: %v", text, err)
		}
		again, err := ParseData(out)
		if err != nil || !same(d.Core, again.Core) || !same(d.Proxy, again.Proxy) {
			t.Fatalf("%q became %q: %v", text, out, err)
		}
		squeeze := func(b []byte) []byte { return bytes.Join(bytes.Fields(b), nil) }
		if !bytes.ContainsRune(text, '\\') && len(squeeze(text)) > len(squeeze(out))+2*len(`"core":{"generation":,"any":,"peers":[]},`) {
			t.Fatalf("%q says more than %q", text, out)
		}
	})
}

// TestFileOfTwoRoles: the roles of one process write one file, and none erases
// the other's set, not even before that has said its first.
func TestFileOfTwoRoles(t *testing.T) {
	path := filepath.Join(t.TempDir(), FileName)
	put := func(f *File, role configs.Role, e Entry) {
		t.Helper()
		if err := f.Put(role, e); err != nil {
			t.Fatal(err)
		}
	}
	look := func(core, proxy *Entry) {
		t.Helper()
		d, err := ReadData(path)
		if err != nil || !same(d.Core, core) || !same(d.Proxy, proxy) {
			t.Fatalf("%+v %+v, %v", d.Core, d.Proxy, err)
		}
	}
	one, two := Entry{1, peers(t, "10.0.0.1")}, Entry{2, peers(t, "10.0.0.2")}
	f := NewFile(path, configs.RoleCore, configs.RoleProxy)
	put(f, configs.RoleCore, one)
	look(&one, nil)
	put(f, configs.RoleProxy, two)
	look(&one, &two)
	before, _ := os.Stat(path)
	put(f, configs.RoleProxy, two)
	if after, _ := os.Stat(path); !os.SameFile(before, after) {
		t.Error("the same set was written again")
	}
	f = NewFile(path, configs.RoleCore, configs.RoleProxy)
	put(f, configs.RoleCore, two)
	look(&two, &two)
	f = NewFile(path, configs.RoleProxy) // core does not run here any more
	put(f, configs.RoleProxy, one)
	look(nil, &one)
	if err := f.Put(configs.RoleGateway, one); err == nil {
		t.Error("a gateway has no port")
	}
	if err := os.WriteFile(path, []byte("half {"), 0o600); err != nil {
		t.Fatal(err)
	}
	put(NewFile(path, configs.RoleCore), configs.RoleCore, one)
	look(&one, nil)
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestReadDataRefusesTraps: the directory belongs to somebody else, who may lay
// anything there.
func TestReadDataRefusesTraps(t *testing.T) {
	dir := t.TempDir()
	good := filepath.Join(dir, "good")
	if err := WriteData(good, Data{}); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadData(good); err != nil {
		t.Fatal(err)
	}
	link, fifo := filepath.Join(dir, "link"), filepath.Join(dir, "fifo")
	if err := os.Symlink(good, link); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(fifo, 0o644); err != nil {
		t.Fatal(err)
	}
	big := filepath.Join(dir, "big")
	if err := os.Truncate(good, 0); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(big, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(big, 1<<40); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{link: "symbolic link", fifo: "no regular file", dir: "no regular file",
		"/dev/zero": "no regular file", big: "more than", good: "EOF", filepath.Join(dir, "none"): "no such file"} {
		if _, err := ReadData(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
}

func TestUnion(t *testing.T) {
	got := Union(peers(t, "10.0.0.0/25", "b.example.org"), peers(t), peers(t, "10.0.0.128/25", "a.example.org", "b.example.org")).Strings()
	if want := []string{"10.0.0.0/24", "a.example.org", "b.example.org"}; !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	if !Union(peers(t, "10.0.0.1"), peers(t, "any")).IsAny() || !Union().Empty() {
		t.Error("any and nobody")
	}
}
