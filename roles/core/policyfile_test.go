package core

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sallyport/roles/control"
)

func TestThePolicyFileIsApplied(t *testing.T) {
	s := settings(t)
	s.PolicyFile = filepath.Join(t.TempDir(), "policy.toml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(s.PolicyFile, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	logless := func() error {
		err := Run(context.Background(), s, Deps{Log: (&running{log: &logBuffer{}}).logger(), Version: "test"})
		return err
	}
	if err := logless(); err == nil || !strings.Contains(err.Error(), s.PolicyFile) {
		t.Fatalf("core started without the policy file it was given: %v", err)
	}
	write("[methods]\nbroken")
	if err := logless(); err == nil || !strings.Contains(err.Error(), s.PolicyFile) {
		t.Fatalf("core started for the first time on a broken policy: %v", err)
	}
	write(openPolicy)
	r := start(t, s)
	inForce := func() (uint64, string) {
		out, err := r.admin.ShowPolicy(context.Background(), &control.ShowPolicyRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return out.GetVersion(), string(out.GetPolicy())
	}
	if v, text := inForce(); v != 1 || text != openPolicy {
		t.Fatalf("version %d: %s", v, text)
	}
	const closed = "[methods]\n\"/acme.v1.Orders/Get\" = [\"orders:read\"]\n"
	write(closed)
	eventually(t, "the changed file is in force", func() error {
		if v, text := inForce(); v != 2 || text != closed {
			return errors.New(text)
		}
		return nil
	})
	write("[methods]\nbroken")
	eventually(t, "the broken file is reported", func() error {
		out, err := r.admin.Status(context.Background(), &control.StatusRequest{})
		if err != nil || len(out.GetWarnings()) != 1 || !strings.Contains(out.GetWarnings()[0], "not applied") {
			return errors.New(strings.Join(out.GetWarnings(), "; "))
		}
		return nil
	})
	if v, text := inForce(); v != 2 || text != closed {
		t.Errorf("a broken file changed the policy: version %d: %s", v, text)
	}
	r.end()

	// With an earlier policy in force core starts, and says why it is not the file's.
	r = start(t, s)
	if v, text := inForce(); v != 2 || text != closed {
		t.Errorf("version %d: %s", v, text)
	}
	if !strings.Contains(r.log.String(), "level=ERROR") {
		t.Error("a broken policy file is not said")
	}
	write(closed)
	eventually(t, "the mended file is in force", func() error {
		out, err := r.admin.Status(context.Background(), &control.StatusRequest{})
		if err != nil || len(out.GetWarnings()) != 0 {
			return errors.New(strings.Join(out.GetWarnings(), "; "))
		}
		return nil
	})
}
