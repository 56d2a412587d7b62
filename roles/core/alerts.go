package core

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"sallyport/configs"
	"sallyport/store"
)

// alert is what an operator has to hear of without asking.
type alert struct {
	Code    string `json:"code"`    // stable, lower_snake_case
	Subject string `json:"subject"` // gateway/orders, core, a certificate
	Text    string `json:"text"`
	Remedy  string `json:"remedy,omitempty"`
	Alarm   bool   `json:"alarm"` // somebody may be attacking; else something is about to fail

	Once string `json:"-"` // raised once under this key, until over is called with it; empty: each time
	From string `json:"-"` // the component whose word it is; empty: core knows it itself
}

// alerts raises alerts: a line in the log and, if there is one, a request to
// the webhook. What was said is remembered in the store, over restarts.
type alerts struct {
	log   *slog.Logger
	db    *store.Core
	hook  func() configs.Secret // URL as it is now; empty: none
	core  string                // the trust domain
	queue chan alert
	pause time.Duration // before the second attempt; doubles
	told  *rates        // by components
}

const (
	maxQueuedAlerts = 256
	hookAttempts    = 5
	hookTimeout     = 10 * time.Second

	// What a component says of itself it may make up, and what core has found
	// out must not be lost among it.
	toldEvery = time.Minute
	toldBurst = 20
)

func newAlerts(log *slog.Logger, db *store.Core, hook func() configs.Secret, domain string) *alerts {
	return &alerts{log: log, db: db, hook: hook, core: domain, queue: make(chan alert, maxQueuedAlerts), pause: time.Second, told: newRates(toldEvery, toldBurst)}
}

// raise raises an alert, unless it was raised under its key already.
func (a *alerts) raise(ctx context.Context, al alert) {
	if al.Once != "" {
		first, err := a.first(ctx, &al)
		if err != nil {
			a.log.Error("alert cannot be remembered and may come again", "alert", al.Code, "cause", err)
		} else if !first {
			return
		}
	}
	if al.Alarm {
		a.log.Error("ALARM: "+al.Text, "alarm", al.Code, "subject", al.Subject, "remedy", al.Remedy)
	} else {
		a.log.Warn("ALERT: "+al.Text, "alert", al.Code, "subject", al.Subject, "remedy", al.Remedy)
	}
	if a.hook() == "" {
		return
	}
	select {
	case a.queue <- al:
	default:
		a.log.Error("alert was not sent to the webhook: too many wait already", "alert", al.Code, "subject", al.Subject)
	}
}

// first reports whether an alert is news and is to be raised now. What
// components say too often is raised later, if it is said then.
func (a *alerts) first(ctx context.Context, al *alert) (bool, error) {
	ctx = context.WithoutCancel(ctx)
	if al.From == "" {
		return a.db.AlertOnce(ctx, onceKey(al.Once))
	}
	if known, err := a.db.AlertKnown(ctx, onceKey(al.Once)); err != nil || known || !a.told.allow(al.From) {
		return false, err
	}
	return a.db.AlertOnce(ctx, onceKey(al.Once))
}

// onceKey is a key as the store takes it, which is no long one.
func onceKey(once string) string {
	if len(once) <= 256 {
		return once
	}
	return fmt.Sprintf("sha256 %x", sha256.Sum256([]byte(once)))
}

// over says that what an alert was about is over: the next time is news.
func (a *alerts) over(ctx context.Context, once string) {
	if err := a.db.ForgetAlert(context.WithoutCancel(ctx), onceKey(once)); err != nil {
		a.log.Error("alert cannot be forgotten and will not come again", "key", once, "cause", err)
	}
}

// run sends alerts to the webhook until ctx ends.
func (a *alerts) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case al := <-a.queue:
			a.deliver(ctx, al)
		}
	}
}

// deliver tries until the webhook has taken it, a few times.
func (a *alerts) deliver(ctx context.Context, al alert) {
	wait := a.pause
	for attempt := 1; ; attempt++ {
		err := a.send(ctx, al)
		if err == nil || ctx.Err() != nil {
			return
		}
		if attempt == hookAttempts {
			a.log.Error("alert could not be sent to the webhook", "alert", al.Code, "subject", al.Subject, "attempts", attempt, "cause", err)
			return
		}
		if !pause(ctx, wait) {
			return
		}
		wait *= 2
	}
}

// send makes one request. Its errors never contain the URL, which is a secret.
func (a *alerts) send(ctx context.Context, al alert) error {
	body, err := json.Marshal(struct {
		Source string    `json:"source"`
		Core   string    `json:"core"`
		At     time.Time `json:"at"`
		alert
	}{"sallyport", a.core, time.Now().UTC(), al})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, hookTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, a.hook().Reveal(), bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("the webhook's URL cannot be used")
	}
	request.Header.Set("content-type", "application/json")
	client := &http.Client{Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	response, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("no answer: %w", withoutURL(err))
	}
	defer response.Body.Close()
	io.Copy(io.Discard, io.LimitReader(response.Body, 64<<10))
	if response.StatusCode/100 != 2 {
		return fmt.Errorf("it answered %s", response.Status)
	}
	return nil
}

// withoutURL is the cause that net/http puts behind method and URL.
func withoutURL(err error) error {
	if u, ok := err.(interface{ Unwrap() error }); ok && u.Unwrap() != nil {
		return u.Unwrap()
	}
	return err
}
