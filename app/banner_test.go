package app

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sallyport/configs"
)

func TestProgramAs(t *testing.T) {
	dir := t.TempDir()
	exe := filepath.Join(dir, "sallyport")
	for _, p := range []string{exe, filepath.Join(dir, "other")} {
		if err := os.WriteFile(p, nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	nowhere := func(string) (string, error) { return "", errors.New("not found") }
	here := func(string) (string, error) { return exe, nil }
	other := func(string) (string, error) { return filepath.Join(dir, "other"), nil }
	for _, c := range []struct {
		exe  string
		look func(string) (string, error)
		want []string
	}{
		{"/tmp/go-build1234/b001/exe/sallyport", here, []string{"go", "run", "."}},
		{exe, here, []string{"sallyport"}},
		{exe, nowhere, []string{exe}},
		{exe, other, []string{exe}},
	} {
		if got := programAs(c.exe, c.look); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.exe, got, c.want)
		}
	}
}

// TestShellJoin: a shell reads back what was joined.
func TestShellJoin(t *testing.T) {
	words := []string{"printf", "%s|", "plain", `{"text":"hello"}`, "it's", "", "a b", "$HOME", "`id`", "~", "#x", "a*"}
	out, err := exec.Command("sh", "-c", shellJoin(words)).Output()
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.Join(words[2:], "|") + "|"; string(out) != want {
		t.Errorf("got %s, want %s", out, want)
	}
}

// TestTryLines: the lines carry what a fresh shell would not know, and nothing
// more.
func TestTryLines(t *testing.T) {
	p := &process{c: &cli{environ: []string{"XDG_STATE_HOME=/x", "HOME=/home/me"}}, settings: &configs.Settings{
		Core:  &configs.Core{DataDir: configs.DataDir([]string{"XDG_STATE_HOME=/x", "HOME=/home/me"}, os.Getuid())},
		Proxy: &configs.Proxy{PublicAddress: "127.0.0.1:8443"},
	}}
	call, grpcurl := p.tryLines()
	if !strings.HasSuffix(call, ` call sallyport.demo.v1.Echo/Say '{"text":"hello"}'`) {
		t.Error(call)
	}
	if !strings.HasPrefix(grpcurl, "grpcurl -cacert "+p.dataDir()+"/ca.crt -d ") || !strings.HasSuffix(grpcurl, " localhost:8443 sallyport.demo.v1.Echo/Say") {
		t.Error(grpcurl)
	}
	p.settings.Core.DataDir, p.settings.Proxy.PublicAddress = "/srv/some where", "0.0.0.0:9443"
	call, _ = p.tryLines()
	if !strings.HasSuffix(call, ` --address localhost:9443 --ca '/srv/some where/ca.crt'`) {
		t.Error(call)
	}
}
