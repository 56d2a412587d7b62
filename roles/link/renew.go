package link

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"sallyport/acme/pki"
	"sallyport/roles/control"
)

// renewService answers on sallyport-renew/1. Any certificate completes that
// handshake, so all it may do is to tell the verdict about the very certificate
// that the asker has just proven to hold, and to recover its identity.
type renewService struct {
	control.UnimplementedRenewServer
	port  *Port
	conn  *Conn
	began atomic.Bool // its one Recover
	asked atomic.Int32
}

// whyMost bounds how often one connection may ask: a dialler asks once, and
// each answer costs a verification.
const whyMost = 8

// Why says what the port thinks of the asker's certificate for a protocol.
func (s *renewService) Why(_ context.Context, r *control.WhyRequest) (*control.WhyResponse, error) {
	if s.asked.Add(1) > whyMost {
		return nil, status.Error(codes.ResourceExhausted, "this connection has asked often enough")
	}
	peer := s.conn.Peer
	if refusal := s.port.verdict(clip(r.GetAlpn(), 64), &peer); refusal != nil {
		return &control.WhyResponse{Refusal: protoOf(refusal)}, nil
	}
	return &control.WhyResponse{Accepted: true}, nil
}

// Recover renews an identity that no other protocol accepts any more.
func (s *renewService) Recover(st grpc.BidiStreamingServer[control.JoinFrame, control.JoinFrame]) error {
	if s.port.Recover == nil {
		return status.Error(codes.Unimplemented, "no identity is recovered here")
	}
	if s.began.Swap(true) {
		return status.Error(codes.ResourceExhausted, "this connection has had its one recovery already")
	}
	stop := expireStream(s.conn, joinTime)
	defer stop()
	if err := s.port.Recover(st.Context(), s.conn, st); err != nil {
		return status.Error(codes.Aborted, clip(err.Error(), 1024))
	}
	return nil
}

func (p *Port) serveRenew(ctx context.Context, conn *Conn) {
	most := 64 << 10
	if p.Recover != nil {
		most = recoverExchange.most
	}
	ServeOver(ctx, conn, func(s *grpc.Server) {
		control.RegisterRenewServer(s, &renewService{port: p, conn: conn})
	}, grpc.MaxRecvMsgSize(most), grpc.ConnectionTimeout(prefaceTime))
}

func (p *Port) serveHealth(ctx context.Context, conn *Conn) {
	ServeOver(ctx, conn, func(s *grpc.Server) {
		grpc_health_v1.RegisterHealthServer(s, p.Health)
	}, grpc.MaxRecvMsgSize(4<<10), grpc.ConnectionTimeout(prefaceTime), grpc.KeepaliveParams(keepalive.ServerParameters{
		MaxConnectionIdle: time.Minute, MaxConnectionAge: 10 * time.Minute, MaxConnectionAgeGrace: 5 * time.Second,
		Time: 30 * time.Second, Timeout: 10 * time.Second,
	}))
}

// why asks the listener at address what it thinks of this dialler's
// certificate for alpn. The connection is verified as any other: only a
// listener that proves who it is has an opinion that counts.
func (d *Dialler) why(ctx context.Context, address, alpn string, want pki.Expect) (*pki.Refusal, error) {
	conn, err := d.connect(ctx, address, ALPNRenew, want)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	cc, err := ClientOver(conn)
	if err != nil {
		return nil, err
	}
	defer cc.Close()
	answer, err := control.NewRenewClient(cc).Why(ctx, &control.WhyRequest{Alpn: alpn})
	if err != nil {
		return nil, err
	}
	if r := pki.RefusalFromProto(answer.GetRefusal()); r != nil {
		return r, nil
	}
	if !answer.GetAccepted() {
		return nil, errors.New("the answer says neither yes nor no")
	}
	return nil, nil
}
