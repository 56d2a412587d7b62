package app

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// golden compares with a file, or rewrites it with -update.
func golden(t *testing.T, file, got string) {
	t.Helper()
	path := filepath.Join("testdata", file)
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (go test ./app -update writes it)", err)
	}
	if got != string(want) {
		t.Errorf("%s differs from what is printed now (go test ./app -update rewrites it):\n%s", path, got)
	}
}

// verbsOf are all verbs as words.
func verbsOf(t *testing.T) [][]string {
	c := &cli{ctx: t.Context(), out: new(bytes.Buffer), err: new(bytes.Buffer)}
	var verbs [][]string
	for _, leaf := range c.parser(&grammar{}, "sallyport", "").Model.Leaves(true) {
		verbs = append(verbs, strings.Fields(strings.TrimPrefix(leaf.FullPath(), "sallyport ")))
	}
	return verbs
}

func TestHelp(t *testing.T) {
	t.Setenv("COLUMNS", "100")
	status, out, _ := run(t, nil, "", "--help")
	if status != 0 {
		t.Errorf("exit status %d", status)
	}
	golden(t, "help/sallyport.txt", out)
	status, out, _ = run(t, nil, "", "--role", "core", "--help")
	if status != 0 {
		t.Errorf("exit status %d", status)
	}
	golden(t, "help/run.txt", out)
	for _, verb := range verbsOf(t) {
		status, out, errs := run(t, nil, "", append(verb, "--help")...)
		if status != 0 || errs != "" {
			t.Errorf("%v: exit status %d, %s", verb, status, errs)
		}
		golden(t, "help/"+strings.Join(verb, "-")+".txt", out)
	}
}

// TestEveryVerbHasAnExample: that it is one, the parser says.
func TestEveryVerbHasAnExample(t *testing.T) {
	for _, verb := range verbsOf(t) {
		_, out, _ := run(t, nil, "", append(verb, "--help")...)
		_, examples, found := strings.Cut(out, "\nExample")
		line := ""
		for l := range strings.Lines(examples) {
			if l = strings.TrimSpace(l); strings.HasPrefix(l, "sallyport "+strings.Join(verb, " ")) {
				line = l
				break
			}
		}
		if !found || line == "" {
			t.Errorf("%v: its help has no example of itself", verb)
			continue
		}
		words := strings.Fields(strings.NewReplacer("'", "").Replace(line))[1:]
		for i, w := range words {
			if w == ">" {
				words = words[:i]
				break
			}
		}
		c := &cli{ctx: t.Context(), out: new(bytes.Buffer), err: new(bytes.Buffer)}
		if _, err := c.parser(&grammar{}, "sallyport", "").Parse(words); err != nil {
			t.Errorf("%s: %v", line, err)
		}
	}
}

// TestEveryVerbIsInTheHelp: a group that the help does not print would hide
// its verbs.
func TestEveryVerbIsInTheHelp(t *testing.T) {
	_, out, _ := run(t, nil, "", "--help")
	for _, verb := range verbsOf(t) {
		if !strings.Contains(out, "\n  "+strings.Join(verb, " ")) {
			t.Errorf("%v is not in --help", verb)
		}
	}
}
