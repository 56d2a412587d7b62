package acme

import (
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sallyport/configs"
)

// TestHugeAnswers: what answers without end in a CA's place is not read on.
func TestHugeAnswers(t *testing.T) {
	t.Parallel()
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		for range 64 {
			if _, err := w.Write(make([]byte, 1<<20)); err != nil {
				return
			}
		}
	}))
	defer s.Close()
	root := filepath.Join(t.TempDir(), "root.pem")
	if err := os.WriteFile(root, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	r := runManager(t, t.TempDir(), nil, Settings{HTTP: true, Domains: []string{"a.example.org"}, CA: configs.ACME{Directory: s.URL, Root: root}})
	until(t, "the failure", func() bool { return r.States()[0].Error != "" })
	if why := r.States()[0].Error; !strings.Contains(why, "larger than 1 MiB") {
		t.Errorf("it failed because of: %s", why)
	}
}

// TestFrontTargets: what is no path leads nowhere.
func TestFrontTargets(t *testing.T) {
	t.Parallel()
	for target, want := range map[string]int{"*": http.StatusNotFound, "/*": redirectStatus} {
		w := httptest.NewRecorder()
		r := httptest.NewRequest("GET", target, nil)
		r.Host = "api.example.org"
		(&Front{Names: []string{"api.example.org"}, Port: "8443"}).ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("%s: %d %v", target, w.Code, w.Header())
		}
	}
}
