package app

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"
	"time"

	"sallyport/roles/control"
)

func statusSample(now time.Time) *control.StatusResponse {
	return &control.StatusResponse{
		Version: "1.0", TrustDomain: "sallyport.internal", GrpcAddress: "0.0.0.0:50055", Advertise: "core.example.org:50055",
		StartedUnix: now.Add(-90 * time.Minute).Unix(), PolicyVersion: 3, CallsInFlight: 2,
		Components: []*control.Component{
			{Role: "gateway", Name: "orders", State: "connected", ObservedAddress: "10.0.0.7", Version: "1.0", LastSeenUnix: now.Unix(),
				RttNano: 1234567, ClockOffsetNano: -2_000_000, CertificateNotAfterUnix: now.Add(23*time.Hour + 30*time.Second).Unix(), Generation: 4, AcknowledgedGeneration: 4, CallsInFlight: 2,
				Upstreams:    []*control.UpstreamRow{{Name: "stock", Address: "127.0.0.1:9000", Error: "connection refused"}},
				Certificates: []*control.CertificateRow{{Kind: "file", Holder: "gateway/orders: exported pair", Subject: "CN=orders.internal", NotAfterUnix: now.Add(40*time.Hour + 30*time.Second).Unix(), Alert: "expires soon"}}},
			{Role: "proxy", Name: "dmz1", State: "lost", Address: "dmz1.example.org:50051", Detail: "no answer\nfrom \x1b[31mit", Generation: 2, AcknowledgedGeneration: 1},
		},
		Services: []*control.ServiceRow{{Service: "acme.orders.v1.Orders", Gateway: "orders", State: "routed", Upstream: "stock", Methods: []string{"Get", "List"}}},
		Certificates: []*control.CertificateRow{
			{Kind: "gateway", Identity: "spiffe://sallyport.internal/gateway/orders", Serial: "a1", NotAfterUnix: now.Add(23*time.Hour + 30*time.Second).Unix()},
			{Kind: "client", Identity: "spiffe://sallyport.internal/client/old", Serial: "b2", NotAfterUnix: now.Add(72*time.Hour + 30*time.Second).Unix(), Alert: "expires soon"},
			{Kind: "client", Identity: "spiffe://sallyport.internal/client/ci", Serial: "c3", NotAfterUnix: now.Add(2000 * time.Hour).Unix()},
			{Kind: "file", Holder: "gateway/orders: exported pair", Subject: "CN=orders.internal", NotAfterUnix: now.Add(40*time.Hour + 30*time.Second).Unix(), Alert: "expires soon"},
			{Kind: "file", Holder: "core: gRPC port", Subject: "CN=core.example.org", Serial: "e5", NotAfterUnix: now.Add(480*time.Hour + 30*time.Second).Unix()},
			{Kind: "CA root", Subject: "CN=Sallyport Root CA 2553b937", Serial: "d4", NotAfterUnix: now.Add(24000*time.Hour + 30*time.Second).Unix()},
		},
		Warnings: []string{"proxy dmz1 is lost"},
	}
}

func TestStatusPage(t *testing.T) {
	var out, errs bytes.Buffer
	c := &cli{out: &out, err: &errs}
	if err := c.status(statusSample(time.Now())); err != nil {
		t.Fatal(err)
	}
	golden(t, "status.txt", out.String())
	if got := errs.String(); got != "attention: proxy dmz1 is lost\n" {
		t.Errorf("stderr: %q", got)
	}
	if strings.Contains(out.String(), "\x1b") {
		t.Error("an escape reached the output")
	}
}

// TestJSONOfAnswers: numbers are numbers, times are times, everything is there,
// in the order of the .proto file.
func TestJSONOfAnswers(t *testing.T) {
	var out bytes.Buffer
	c := &cli{out: &out}
	row := &control.APIKeyRow{Name: "ci", Prefix: "spk_ab", CreatedUnix: 1_700_000_000}
	if err := c.printJSON(&control.ListAPIKeysResponse{Keys: []*control.APIKeyRow{row}}); err != nil {
		t.Fatal(err)
	}
	want := `{
  "keys": [
    {
      "name": "ci",
      "prefix": "spk_ab",
      "created": "2023-11-14T22:13:20Z",
      "expires": null,
      "revoked": null,
      "revocation": null
    }
  ]
}
`
	if out.String() != want {
		t.Errorf("got %s", out.String())
	}
	out.Reset()
	if err := c.printJSON(statusSample(time.Now())); err != nil {
		t.Fatal(err)
	}
	var back struct {
		PolicyVersion int `json:"policy_version"`
		Components    []struct {
			RTT       int64    `json:"rtt_nano"`
			Serve     []string `json:"serve"`
			Upstreams []struct{ Up bool }
		}
	}
	if err := json.Unmarshal(out.Bytes(), &back); err != nil {
		t.Fatal(err)
	}
	if back.PolicyVersion != 3 || back.Components[0].RTT != 1234567 || back.Components[0].Serve == nil || len(back.Components[0].Upstreams) != 1 {
		t.Errorf("got %+v", back)
	}
}

func TestSpans(t *testing.T) {
	now := time.Now()
	for d, want := range map[time.Duration]string{
		0:                "now",
		30 * time.Second: "30s ago",
		90 * time.Minute: "1h30m ago",
		72 * time.Hour:   "3d ago",
	} {
		if got := ago(now.Add(-d).Unix(), now); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
	if got := left(now.Add(-time.Second).Unix(), now); got != "expired" {
		t.Error(got)
	}
	if got := ago(0, now); got != "never" {
		t.Error(got)
	}
}

func TestPeriods(t *testing.T) {
	for text, want := range map[string]time.Duration{"90d": 90 * 24 * time.Hour, "2w": 14 * 24 * time.Hour, "36h": 36 * time.Hour, "1m30s": 90 * time.Second} {
		var p period
		if err := p.UnmarshalText([]byte(text)); err != nil || time.Duration(p) != want {
			t.Errorf("%s: %v, %v", text, time.Duration(p), err)
		}
	}
	for _, text := range []string{"", "d", "-1d", "-5m", "0s", "5", "1.5d", "99999999d"} {
		var p period
		if err := p.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is %v", text, time.Duration(p))
		}
	}
}

// TestLogsKeepSecrets: whatever a line is about, it shows none.
func TestLogsKeepSecrets(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(slog.NewJSONHandler(&out, &slog.HandlerOptions{ReplaceAttr: discreet}))
	token := "sp1.abcdefghijklmnopqrstuvwxyz0123456789"
	key := "spk_abcdefghijklmnopqrstuvwxyz0123456789"
	log.Info("started with --join "+token, "key", key, "header", "Bearer eyJhbGciOi.J9.x", "error", failed("bad token "+token, ""), "path", "/acme.v1.Orders/Get")
	for _, s := range []string{token, key, "eyJhbGciOi"} {
		if strings.Contains(out.String(), s) {
			t.Errorf("%s is in %s", s, out.String())
		}
	}
	if !strings.Contains(out.String(), "/acme.v1.Orders/Get") {
		t.Errorf("too much was taken out: %s", out.String())
	}
}
