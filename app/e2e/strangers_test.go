package e2e

import (
	"database/sql"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	_ "modernc.org/sqlite"
)

// TestStrangersLeaveLittle makes 100,000 calls of nobody, each of a method of its
// own, from ten addresses. All are refused and all are counted; what they leave
// in core's database and in the logs does not grow with them.
func TestStrangersLeaveLittle(t *testing.T) {
	t.Parallel()
	d := deploy(t, attackPolicy)
	a := &attack{deployment: d, roots: rootsOf(t, d.caFile)}
	const sources, each, inFlight = 10, 10_000, 50
	began := time.Now()
	var all sync.WaitGroup
	for s := range sources {
		all.Go(func() {
			p, err := a.open(fmt.Sprintf("127.0.7.%d", s+1))
			if err != nil {
				t.Error(err)
				return
			}
			defer p.Close()
			_ = p.SetDeadline(time.Now().Add(2 * time.Minute))
			for sent, answered := 0, 0; answered < each; {
				for ; sent < each && sent-answered < inFlight; sent++ {
					if err := p.call(uint32(2*sent+1), true, fmt.Sprintf("No%dx%d", s, sent)); err != nil {
						t.Errorf("call %d: %v", sent, err)
						return
					}
				}
				f, err := p.fr.ReadFrame()
				if err != nil {
					t.Errorf("after %d answers: %v", answered, err)
					return
				}
				if h, ok := f.(*http2.HeadersFrame); ok && h.StreamEnded() {
					answered++
				}
			}
		})
	}
	all.Wait()
	took := time.Since(began)

	db, err := sql.Open("sqlite", "file:"+filepath.Join(d.dir, "core", "core.db")+"?mode=ro&_pragma=busy_timeout(10000)")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	ask := func(question string) (n int64) {
		t.Helper()
		if err := db.QueryRow(question).Scan(&n); err != nil {
			t.Fatalf("%s: %v", question, err)
		}
		return n
	}
	eventually(t, 40*time.Second, "every refused call is counted", func() error {
		if n := ask("SELECT coalesce(sum(count), 0) FROM denials"); n < sources*each || n > sources*each*101/100 { // a report that was cut off may come twice
			return fmt.Errorf("%d are", n)
		}
		return nil
	})
	if out := run(t, d.coreEnv, "audit", "denials", "--limit", "10000", "--since", "1h"); !strings.Contains(out, "overflow") || !strings.Contains(out, "127.0.7.") {
		t.Errorf("the verb does not list them:\n%.2000s", out)
	}
	minutes := int64(took.Minutes()) + 2
	if n := ask("SELECT count(*) FROM denials"); n > minutes*201 {
		t.Errorf("%d rows count them, of %d minutes", n, minutes)
	}
	if n := ask("SELECT count(*) FROM audit"); n > 50 {
		t.Errorf("%d audit rows", n)
	}
	for _, p := range []*process{d.core, d.proxy} {
		lines := strings.Count(p.log.String(), "\n")
		t.Logf("%s: %d log lines in %v", p.name, lines, took.Round(time.Millisecond))
		if most := 400 + 30*int(took.Seconds()+10); lines > most {
			t.Errorf("%s has %d log lines, at most %d are allowed", p.name, lines, most)
		}
	}
}
