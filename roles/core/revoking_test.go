package core

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/emptypb"

	"sallyport/acme/pki"
	"sallyport/roles/control"
	"sallyport/roles/link"
)

// streams opens streams that stay open, and says how each of them ended.
func (p *proxy) streams(n int, pairs ...string) chan error {
	p.t.Helper()
	ended := make(chan error, n)
	for range n {
		ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(p.ctx, pairs...))
		stream, err := p.client.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/acme.v1.Orders/Get")
		if err == nil {
			err = stream.SendMsg(&emptypb.Empty{})
		}
		if err == nil {
			err = stream.RecvMsg(&emptypb.Empty{})
		}
		if err != nil {
			cancel()
			p.t.Fatalf("open a stream: %v", err)
		}
		p.running.Go(func() {
			defer cancel()
			err := stream.RecvMsg(&emptypb.Empty{})
			if err == io.EOF {
				err = nil
			}
			ended <- err
		})
	}
	return ended
}

// allEnd checks that all streams end within a second of since, and how.
func allEnd(t *testing.T, ended chan error, since time.Time, code codes.Code) {
	t.Helper()
	timer := time.NewTimer(time.Until(since.Add(time.Second)))
	defer timer.Stop()
	for i := range cap(ended) {
		select {
		case err := <-ended:
			expectStatus(t, err, code)
		case <-timer.C:
			t.Fatalf("%d of %d streams were still open a second after the revocation", cap(ended)-i, cap(ended))
		}
	}
}

// TestARemovedGatewayIsCutAtOnce is the promise of revocation: what is open ends
// within a second, everybody who is connected says that it enforces it, and a
// new handshake is refused with the reason.
func TestARemovedGatewayIsCutAtOnce(t *testing.T) {
	r, g, p := rig(t, time.Hour)
	r.addGateway("other").connect()
	eventually(t, "other is connected", func() error {
		if m := r.component("gateway", "other"); m.GetState() != "connected" {
			return errors.New(m.String())
		}
		return nil
	})
	ended := p.streams(100)
	since := time.Now()
	out, err := r.admin.RemoveComponent(context.Background(), &control.RemoveComponentRequest{Role: "gateway", Name: "orders"})
	if err != nil {
		t.Fatal(err)
	}
	allEnd(t, ended, since, codes.Unavailable)
	told := out.GetRevocation()
	if told.GetEnforced() != 2 || told.GetComponents() != 2 || len(told.GetMissing()) > 0 || told.GetElapsedNano() <= 0 || time.Duration(told.GetElapsedNano()) > time.Second {
		t.Errorf("the operator is told %v", told)
	}
	_, err = (&link.Dialler{Self: g.self, Log: g.log}).Dial(context.Background(), g.core, link.ALPNControl, pki.Expect{Role: pki.RoleCore})
	if got := code(err); got != pki.CodeRevoked {
		t.Errorf("a new handshake was answered with %v", err)
	}
	// The proxy holds the signed list that says so.
	list, err := pki.VerifyRevocations(p.self.Revocations(), p.self.Bundle().Roots)
	if err != nil || len(list.Entries) != 1 || list.Entries[0].Identity.Name != "orders" {
		t.Errorf("the list at the proxy says %v, %v", list, err)
	}
	if kept, err := readRevocations(revocationsPath(r.set.DataDir)); err != nil || len(kept.Entries) != 1 {
		t.Errorf("the list beside the database says %v, %v", kept, err)
	}
	// The name can be used again.
	again := r.addGateway("orders")
	again.connect()
	again.announce(true, "acme.v1.Orders")
	eventually(t, "the next incarnation serves", func() error { return second(p.call("/acme.v1.Orders/Get")) })
}

// TestWhoDoesNotAcknowledgeIsNamed holds back a proxy's acknowledgement.
func TestWhoDoesNotAcknowledgeIsNamed(t *testing.T) {
	r, g, p := rig(t, time.Hour)
	slow := r.addGateway("slow")
	slow.hold = make(chan struct{}, 1)
	slow.hold <- struct{}{}
	slow.connect()
	eventually(t, "slow is there", func() error {
		if m := r.component("gateway", "slow"); m.GetAcknowledgedGeneration() == 0 {
			return errors.New(m.String())
		}
		return nil
	})
	out, err := r.admin.RevokeCertificate(context.Background(), &control.RevokeCertificateRequest{Serial: serial(g.self), Reason: "key-compromise"})
	if err != nil {
		t.Fatal(err)
	}
	if out.GetEnforced()+1 != out.GetComponents() || strings.Join(out.GetMissing(), " ") != "gateway/slow" {
		t.Errorf("the operator is told %v", out)
	}
	_ = p
	close(slow.hold)
}

// TestARevokedCertificateIsCut revokes the certificate, not the identity: the
// key is of no use any more, not even to recover.
func TestARevokedCertificateIsCut(t *testing.T) {
	r, g, p := rig(t, time.Hour)
	ended := p.streams(10)
	since := time.Now()
	if _, err := r.admin.RevokeCertificate(context.Background(), &control.RevokeCertificateRequest{Serial: serial(g.self)}); err != nil {
		t.Fatal(err)
	}
	allEnd(t, ended, since, codes.Unavailable)
	eventually(t, "it is gone", func() error {
		if m := r.component("gateway", "orders"); m.GetState() != "lost" {
			return errors.New(m.String())
		}
		return nil
	})
	conn, err := g.dialRenew(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	crl, err := r.admin.GetCRL(context.Background(), &control.GetCRLRequest{})
	if err != nil || len(crl.GetCrls()) < 2 {
		t.Fatal(crl, err)
	}
	list, err := x509.ParseRevocationList(crl.GetCrls()[0])
	if err != nil || len(list.RevokedCertificateEntries) != 1 || fmt.Sprintf("%x", list.RevokedCertificateEntries[0].SerialNumber) != serial(g.self) {
		t.Errorf("the CRL says %v, %v", list, err)
	}
	eventually(t, "the proxy has the CRL", func() error {
		if s, _ := p.last(); string(s.GetCrl()) != string(crl.GetCrls()[0]) {
			return errors.New("another one")
		}
		return nil
	})
}

func TestARevokedAPIKeyEndsItsCalls(t *testing.T) {
	r, _, p := rig(t, time.Hour)
	key, err := r.admin.CreateAPIKey(context.Background(), &control.CreateAPIKeyRequest{Name: "ci"})
	if err != nil {
		t.Fatal(err)
	}
	other, err := r.admin.CreateAPIKey(context.Background(), &control.CreateAPIKeyRequest{Name: "cd"})
	if err != nil {
		t.Fatal(err)
	}
	r.apply("[methods]\n\"/acme.v1.Orders/*\" = [\"orders\"]\n[[grant]]\napikey = \"ci\"\npermissions = [\"orders\"]\n[[grant]]\napikey = \"cd\"\npermissions = [\"orders\"]\n")
	ended := p.streams(20, "authorization", "Bearer "+key.GetSecret())
	stays := p.streams(1, "authorization", "Bearer "+other.GetSecret())
	since := time.Now()
	row, err := r.admin.RevokeAPIKey(context.Background(), &control.RevokeAPIKeyRequest{Name: "ci"})
	if err != nil {
		t.Fatal(err)
	}
	allEnd(t, ended, since, codes.Unauthenticated)
	if told := row.GetRevocation(); told.GetEnforced() != 2 || told.GetComponents() != 2 {
		t.Errorf("the operator is told %v", told)
	}
	select {
	case err := <-stays:
		t.Errorf("a call with another key ended: %v", err)
	default:
	}
}

// TestACloneIsRefusedWithAnAlarm lets a copy of a gateway's disk come back after
// the gateway has renewed.
func TestACloneIsRefusedWithAnAlarm(t *testing.T) {
	r, g, _ := rig(t, 10*time.Second)
	clone := &gateway{member: newMember(t, pki.RoleGateway, "orders", r.log), core: g.core}
	clone.self.Set(g.self.Credentials(), g.self.Bundle())
	eventually(t, "the gateway has renewed, and its session runs on it", func() error {
		keys, err := r.admin.(*admin).core.db.Keys(context.Background(), pki.RoleGateway, "orders")
		if err != nil || len(keys) < 2 || keys[0].Serial == serial(clone.self) {
			return fmt.Errorf("%v %v", keys, err)
		}
		return nil
	})
	time.Sleep(1100 * time.Millisecond) // its handshake begins certainly later
	_, err := (&link.Dialler{Self: clone.self, Log: clone.log}).Dial(context.Background(), g.core, link.ALPNRelay, pki.Expect{Role: pki.RoleCore})
	if got := code(err); got != "superseded_key" {
		t.Errorf("the clone was answered with %v", err)
	}
	if !strings.Contains(r.log.String(), "alarm=superseded_key subject=gateway/orders") {
		t.Error("no alarm in the log")
	}
}

// TestTheListOutlivesTheDatabase starts core with an older database and the
// list of a newer one beside it.
func TestTheListOutlivesTheDatabase(t *testing.T) {
	s := settings(t)
	r := start(t, s)
	r.invite("neighbour") // its address keeps the port open to those that are removed
	g := r.addGateway("orders")
	older := s.DataDir + "/older.db"
	if err := r.admin.(*admin).core.db.Snapshot(context.Background(), older); err != nil {
		t.Fatal(err)
	}
	if _, err := r.admin.RemoveComponent(context.Background(), &control.RemoveComponentRequest{Role: "gateway", Name: "orders"}); err != nil {
		t.Fatal(err)
	}
	r.end()
	if err := errors.Join(renameAway(s.DataDir+"/core.db"), renameTo(older, s.DataDir+"/core.db")); err != nil {
		t.Fatal(err)
	}
	r = start(t, s)
	if m := r.component("gateway", "orders"); m != nil {
		t.Errorf("it is there again: %v", m)
	}
	g.core = r.info.GRPCAddress
	_, err := (&link.Dialler{Self: g.self, Log: g.log}).Dial(context.Background(), g.core, link.ALPNControl, pki.Expect{Role: pki.RoleCore})
	if got := code(err); got != pki.CodeRevoked {
		t.Errorf("a revoked gateway was answered with %v", err)
	}
}
