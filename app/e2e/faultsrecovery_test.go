package e2e

import (
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"sallyport/acme/pki"
)

// killedRecovering lets gateways and proxies lie until their certificates have
// ended. Each dies at another step of its recovery, and core at each of its.
func killedRecovering(t *testing.T) {
	t.Parallel()
	d := mortalCore(t, "--cert-lifetime", "1m")
	upstream := "SALLYPORT_UPSTREAM=interop=" + startInteropServer(t)
	points := []string{"pending.key-written", "renewal-key-saved", "renewal-request-sent", "renewal-chain-received",
		"identity.pem-written", "identity.pem-placed", "renewal-stored"}
	coresPoints := []string{"recovery-issued", "recovery-recorded"}
	type victim struct {
		*process
		role, point string
		dies        *process // itself, or core
	}
	var all []victim
	var gateways, edges []string
	for i, point := range append(points, coresPoints...) {
		g := d.inviteGateway(fmt.Sprintf("g%d", i+1), serveTests, upstream)
		p, public := d.inviteProxy(fmt.Sprintf("p%d", i+1))
		gateways, edges = append(gateways, g.name), append(edges, public)
		for role, c := range map[string]*process{"gateway": g, "proxy": p} {
			v := victim{process: c, role: role, point: point, dies: c}
			if i >= len(points) {
				v.dies = d.core
			}
			d.mortal(c)
			c.start(t)
			all = append(all, v)
		}
	}
	var ends time.Time
	for _, v := range all {
		d.waitReady(v.name)
		d.waitState(v.role, v.name, "connected")
	}
	for _, v := range all {
		v.kill()
		ends = maxTime(ends, d.component(v.role, v.name).NotAfter)
	}
	time.Sleep(time.Until(ends.Add(time.Second)))
	for _, v := range all { // one after the other: core has one such point at a time
		d.arm(v.dies.name, v.point)
		v.start(t)
		d.died(v.dies, v.point)
		v.dies.start(t)
		if v.dies == d.core {
			d.waitReady("core")
			d.waitState(v.role, v.name, "connected")
		}
	}
	d.sound("recovery", gateways...)
	for _, v := range all {
		d.waitReady(v.name)
		if c := d.component(v.role, v.name); !c.NotAfter.After(ends) {
			t.Errorf("%s %s is connected with the certificate that ended at %v", v.role, v.name, c.NotAfter)
		}
	}
	d.soundEdges("recovery", edges...)
}

func maxTime(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// killedRenewingCore: core dies at each step of renewing its own certificate,
// first while it runs and then, as it is due still, when it starts.
func killedRenewingCore(t *testing.T) {
	t.Parallel()
	d := mortalCore(t, "--cert-lifetime", "1m")
	d.addGateway("office", serveTests, "SALLYPORT_UPSTREAM=interop="+startInteropServer(t))
	d.sound("before", "office")
	own := func() string {
		t.Helper()
		credentials, _, err := pki.LoadCredentials(filepath.Join(d.dir, "core", "core"))
		if err != nil {
			t.Fatalf("core's own certificate: %v", err)
		}
		return pki.Serial(credentials.Chain[0])
	}
	former := own()
	d.arm("core", "own-certificate-recorded")
	d.died(d.core, "own-certificate-recorded")
	for _, point := range []string{"identity.pem-written", "identity.pem-placed"} {
		if now := own(); now != former {
			t.Fatalf("before %s core's certificate is %s already, and was %s", point, now, former)
		}
		d.arm("core", point)
		d.core.start(t)
		d.died(d.core, point)
	}
	if own() == former {
		t.Error("identity.pem-placed: core's certificate is the former one")
	}
	d.core.start(t)
	d.sound("after three deaths", "office")

	// And once more when everybody is connected.
	former = own()
	d.arm("core", "own-certificate-saved")
	d.died(d.core, "own-certificate-saved")
	if own() == former {
		t.Error("own-certificate-saved: core's certificate is the former one")
	}
	d.core.start(t)
	d.sound("after the fourth", "office")
	eventually(t, 10*time.Second, "core shows the newest certificate", func() error {
		c, err := presented(d.coreAddr)
		if err == nil && pki.Serial(c) != own() {
			err = errors.New("it shows " + pki.Serial(c))
		}
		return err
	})
}
