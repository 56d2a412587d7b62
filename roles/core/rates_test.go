package core

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/age"

	"sallyport/acme/pki"
	"sallyport/configs"
	"sallyport/roles/control"
	"sallyport/roles/link"
)

// TestRecoveriesAreBounded has a component recover its identity as fast as it
// can, each time with the key that it has just got: every certificate is rows
// that are kept for a month.
func TestRecoveriesAreBounded(t *testing.T) {
	r := start(t, settings(t))
	g := r.addGateway("orders")
	granted, refused := 0, ""
	for range 3 * renewalBurst {
		code, err := g.recoverOnce()
		if err != nil {
			t.Fatal(err)
		}
		if code == "" {
			granted++
		} else {
			refused = code
		}
	}
	if granted == 0 || granted > renewalBurst+3 || refused != "too_many_requests" {
		t.Errorf("%d certificates, %d are allowed at once; refused with %q", granted, renewalBurst, refused)
	}
}

// recoverOnce asks for the next certificate on sallyport-renew/1, by hand, and
// takes it. The code is that of core's refusal.
func (g *gateway) recoverOnce() (code string, err error) {
	ctx, cancel := context.WithTimeout(g.ctx, patience)
	defer cancel()
	conn, err := g.dialRenew(ctx)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	cc, err := link.ClientOver(conn)
	if err != nil {
		return "", err
	}
	defer cc.Close()
	st, err := control.NewRenewClient(cc).Recover(ctx)
	if err != nil {
		return "", err
	}
	key, err := pki.NewKey("p256")
	if err != nil {
		return "", err
	}
	csr, err := pki.NewCSR(key)
	if err != nil {
		return "", err
	}
	if err := st.Send(&control.JoinFrame{Frame: &control.JoinFrame_Request{Request: &control.JoinRequest{Csr: csr}}}); err != nil {
		return "", err
	}
	f, err := st.Recv()
	if err != nil {
		return "", err
	}
	if f.GetRefusal() != nil {
		return f.GetRefusal().GetCode(), nil
	}
	var chain []*x509.Certificate
	if chain, err = pki.ParseChain(f.GetGrant().GetChain()); err != nil {
		return "", err
	}
	g.self.Set(&pki.Credentials{ID: g.self.Credentials().ID, Chain: chain, Key: key}, g.self.Bundle())
	return "", st.Send(&control.JoinFrame{Frame: &control.JoinFrame_Stored{Stored: &control.JoinStored{}}})
}

// TestAComponentsAlertsAreBounded has a component make up alerts and files
// without end: what core finds out itself still reaches the webhook.
func TestAComponentsAlertsAreBounded(t *testing.T) {
	var mu sync.Mutex
	got := map[string]int{}
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		body, _ := io.ReadAll(q.Body)
		var a map[string]any
		json.Unmarshal(body, &a)
		mu.Lock()
		defer mu.Unlock()
		got[fmt.Sprint(a["subject"])]++
	}))
	defer hook.Close()
	s := settings(t)
	s.AlertWebhook = configs.Secret(hook.URL)
	r := start(t, s)
	c := r.admin.(*admin).core
	g := r.addGateway("orders")
	g.connect()
	var session *link.Session
	eventually(t, "the gateway is there", func() error {
		session = c.sessions.Session(g.self.Credentials().ID)
		if session == nil {
			return fmt.Errorf("no session")
		}
		return nil
	})
	for i := range 2 * maxQueuedAlerts {
		c.alerted(session, &control.Alert{Code: fmt.Sprintf("made_up_%d", i)})
		if i%16 == 0 {
			c.reported(session, []*control.Certificate{{What: "file", Subject: "orders", Serial: fmt.Sprintf("%x", i+1), NotAfterUnix: 1}})
			if err := c.expiries.look(context.Background(), time.Now()); err != nil {
				t.Fatal(err)
			}
		}
	}
	c.alerts.raise(context.Background(), alert{Code: "superseded_key", Subject: "the real one", Once: "real", Alarm: true})
	eventually(t, "what core says itself arrives", func() error {
		mu.Lock()
		defer mu.Unlock()
		if got["the real one"] != 1 {
			return fmt.Errorf("%d subjects", len(got))
		}
		return nil
	})
	if n := strings.Count(r.log.String(), "ALERT: "); n > toldBurst+3 {
		t.Errorf("%d alerts, %d are allowed at once", n, toldBurst)
	}
	// A key that is longer than the store takes is remembered too.
	before := strings.Count(r.log.String(), "ALERT: long")
	for range 2 {
		c.alerts.raise(context.Background(), alert{Code: "x", Text: "long", Once: strings.Repeat("long", 200)})
	}
	if n := strings.Count(r.log.String(), "ALERT: long") - before; n != 1 {
		t.Errorf("it was said %d times", n)
	}
}

// TestABackupCannotAskForAllMemory: how much scrypt takes stands in the file,
// and is read before anything of it is authenticated.
func TestABackupCannotAskForAllMemory(t *testing.T) {
	to, err := age.NewScryptRecipient("correct horse battery")
	if err != nil {
		t.Fatal(err)
	}
	to.SetWorkFactor(2)
	var file bytes.Buffer
	w, err := age.Encrypt(&file, to)
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	head, rest, _ := bytes.Cut(file.Bytes(), []byte("\n---"))
	head = bytes.Replace(head, []byte(" 2\n"), []byte(" 21\n"), 1)
	began := time.Now()
	_, err = OpenBackup(io.MultiReader(bytes.NewReader(head), strings.NewReader("\n---"), bytes.NewReader(rest)), "correct horse battery")
	if err == nil || !strings.Contains(err.Error(), "work factor") {
		t.Errorf("after %v: %v", time.Since(began), err)
	}
}
