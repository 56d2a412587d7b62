package link

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// maxPayload bounds a snapshot and an announcement, maxMessage one gRPC
// message on a component link: such a payload and its frame.
const (
	maxPayload = 16 << 20
	maxMessage = maxPayload + 4<<10
)

// AuthInfo is what gRPC handlers on our connections find as the peer's
// authentication: the judged Peer.
type AuthInfo struct {
	credentials.CommonAuthInfo
	Peer Peer
	ALPN string
}

// AuthType names the scheme.
func (AuthInfo) AuthType() string { return "sallyport" }

// transport gives gRPC the finished connection as it is.
type transport struct{ conn *Conn }

func (t transport) info() AuthInfo {
	return AuthInfo{CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}, Peer: t.conn.Peer, ALPN: t.conn.ALPN}
}

func (t transport) ClientHandshake(_ context.Context, _ string, c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return c, t.info(), nil
}

func (t transport) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return c, t.info(), nil
}

func (t transport) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

func (t transport) Clone() credentials.TransportCredentials { return t }
func (t transport) OverrideServerName(string) error         { return nil }

var errConnUsed = errors.New("the connection has ended")

// ClientOver is a gRPC client over one finished connection. It never dials
// again: when the connection ends, so does the client. Closing the client
// closes the connection.
func ClientOver(conn *Conn) (*grpc.ClientConn, error) {
	var used atomic.Bool
	return grpc.NewClient("passthrough:///"+conn.ALPN,
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			if used.Swap(true) {
				return nil, errConnUsed
			}
			return conn, nil
		}),
		grpc.WithTransportCredentials(transport{conn}),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(codec), grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		grpc.WithInitialWindowSize(1<<20), grpc.WithInitialConnWindowSize(1<<20),
		grpc.WithMaxHeaderListSize(16<<10),
		grpc.WithDisableRetry(), grpc.WithDisableServiceConfig(), grpc.WithNoProxy(), grpc.WithIdleTimeout(0),
	)
}

// ServeOver is a gRPC server over one finished connection. It returns when the
// connection has ended, or, after closing it, when ctx has.
func ServeOver(ctx context.Context, conn *Conn, register func(*grpc.Server), options ...grpc.ServerOption) error {
	server := grpc.NewServer(append([]grpc.ServerOption{
		grpc.Creds(transport{conn}),
		grpc.ForceServerCodecV2(codec),
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage),
		grpc.InitialWindowSize(1 << 20), grpc.InitialConnWindowSize(1 << 20),
		grpc.MaxHeaderListSize(16 << 10), grpc.MaxConcurrentStreams(8),
		grpc.WaitForHandlers(true),
	}, options...)...)
	register(server)
	l := &oneListener{conn: conn, done: make(chan struct{})}
	stop := context.AfterFunc(ctx, server.Stop)
	err := server.Serve(l)
	stop()
	server.Stop()
	if err == nil || errors.Is(err, grpc.ErrServerStopped) || errors.Is(err, errConnUsed) {
		return context.Cause(ctx)
	}
	return err
}

// oneListener accepts its one connection and then waits for its end.
type oneListener struct {
	conn  net.Conn
	taken atomic.Bool
	once  sync.Once
	done  chan struct{}
}

func (l *oneListener) Accept() (net.Conn, error) {
	if !l.taken.Swap(true) {
		return &watchedConn{Conn: l.conn, closed: l.end}, nil
	}
	<-l.done
	return nil, errConnUsed
}

func (l *oneListener) end()           { l.once.Do(func() { close(l.done) }) }
func (l *oneListener) Close() error   { l.end(); return nil }
func (l *oneListener) Addr() net.Addr { return l.conn.LocalAddr() }

// watchedConn tells when gRPC has closed it.
type watchedConn struct {
	net.Conn
	closed func()
}

func (c *watchedConn) Close() error {
	defer c.closed()
	return c.Conn.Close()
}
