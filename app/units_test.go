package app

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestSampleUnits: the units that people copy start what there is, and nobody
// gets more rights than the documentation says.
func TestSampleUnits(t *testing.T) {
	paths, err := filepath.Glob("../configs/examples/*.service")
	if err != nil || len(paths) != 4 {
		t.Fatal(paths, err)
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		unit := map[string]string{}
		for line := range strings.Lines(string(text)) {
			if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && key[0] != '#' {
				unit[key] = value
			}
		}
		name := filepath.Base(path)
		is := func(key, want string) {
			t.Helper()
			if got, there := unit[key]; !there || got != want {
				t.Errorf("%s: %s=%s, want %q", name, key, got, want)
			}
		}
		is("StartLimitIntervalSec", "0")
		is("Restart", "always")
		is("NoNewPrivileges", "yes")
		words := strings.Fields(strings.NewReplacer("%i", "core", " $FLAGS", "").Replace(unit["ExecStart"]))
		if len(words) < 2 || words[0] != "/usr/local/bin/sallyport" {
			t.Errorf("%s: ExecStart=%s", name, unit["ExecStart"])
			continue
		}
		words = words[1:]
		switch name {
		case "sallyport-firewall@.service":
			is("CapabilityBoundingSet", "CAP_NET_ADMIN")
			if unit["AmbientCapabilities"] != "" || unit["User"] != "" {
				t.Errorf("%s: it is root with one capability", name)
			}
		case "sallyport-proxy.service":
			is("CapabilityBoundingSet", "CAP_NET_BIND_SERVICE")
			is("AmbientCapabilities", "CAP_NET_BIND_SERVICE")
		default:
			is("CapabilityBoundingSet", "")
			if unit["AmbientCapabilities"] != "" {
				t.Errorf("%s: it needs no capability", name)
			}
		}
		if name != "sallyport-firewall@.service" {
			is("User", "sallyport")
			words = append([]string{"config", "print"}, words...) // the flags of running
		}
		c := &cli{ctx: t.Context(), out: new(bytes.Buffer), err: new(bytes.Buffer)}
		if _, err := c.parser(&grammar{}, "sallyport", "").Parse(words); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
