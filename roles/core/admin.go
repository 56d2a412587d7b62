package core

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"sallyport/roles/control"
	"sallyport/store"
)

// admin is what the operator may do, one method per verb of the command line.
// Who is at the socket is known by uid, from the kernel: core's own uid and
// root are operators, nobody else is. The messages of its errors are for a
// person: what, to what, and what to do.
type admin struct {
	control.UnimplementedAdminServer
	core *core

	// changing is held while a component is added, changed or removed: the
	// store, the links and the workers have to hear of it in the same order.
	changing sync.Mutex
}

// serve serves the socket until ctx ends.
func (a *admin) serve(ctx context.Context, l net.Listener) error {
	server := grpc.NewServer(grpc.Creds(socketCredentials{}), grpc.UnaryInterceptor(a.admit), grpc.StreamInterceptor(a.admitStream),
		grpc.MaxRecvMsgSize(8<<20), grpc.WaitForHandlers(true))
	control.RegisterAdminServer(server, a)
	stop := context.AfterFunc(ctx, func() {
		timer := time.AfterFunc(2*time.Second, server.Stop)
		defer timer.Stop()
		server.GracefulStop()
	})
	defer stop()
	err := server.Serve(l)
	if ctx.Err() != nil {
		server.Stop()
		return nil
	}
	return fmt.Errorf("admin socket: %w", err)
}

// admit lets operators through.
func (a *admin) admit(ctx context.Context, request any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if err := operator(ctx); err != nil {
		return nil, err
	}
	return next(ctx, request)
}

func (a *admin) admitStream(server any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if err := operator(stream.Context()); err != nil {
		return err
	}
	return next(server, stream)
}

// operator refuses who is none.
func operator(ctx context.Context) error {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return status.Error(codes.PermissionDenied, "nobody is at the other end of the socket")
	}
	who, ok := p.AuthInfo.(socketPeer)
	if !ok {
		return status.Error(codes.PermissionDenied, "the kernel does not say who is at the other end of the socket")
	}
	if who.uid != 0 && who.uid != os.Getuid() {
		return status.Errorf(codes.PermissionDenied, "uid %d may not administer this core: run the command as the user that core runs as (uid %d), or as root", who.uid, os.Getuid())
	}
	return nil
}

// actor is who asks, as the audit shows it.
func actor(ctx context.Context) store.Actor {
	if p, ok := peer.FromContext(ctx); ok {
		if who, ok := p.AuthInfo.(socketPeer); ok {
			return store.Actor("uid:" + strconv.Itoa(who.uid) + userName(who.uid))
		}
	}
	return "process"
}

func userName(uid int) string {
	u, err := user.LookupId(strconv.Itoa(uid))
	if err != nil {
		return ""
	}
	return " (" + clean(u.Username) + ")"
}

// socketPeer is who the kernel says is at the other end of the socket.
type socketPeer struct {
	credentials.CommonAuthInfo
	uid int
}

// AuthType implements credentials.AuthInfo.
func (socketPeer) AuthType() string { return "uid" }

// socketCredentials ask the kernel who is at the other end.
type socketCredentials struct{}

func (socketCredentials) ServerHandshake(nc net.Conn) (net.Conn, credentials.AuthInfo, error) {
	uid, err := peerUID(nc)
	if err != nil {
		return nil, nil, fmt.Errorf("admin socket: %w", err)
	}
	return nc, socketPeer{CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}, uid: uid}, nil
}

func (socketCredentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("these credentials are for the server's end")
}

func (socketCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "unix"}
}

func (c socketCredentials) Clone() credentials.TransportCredentials { return c }
func (socketCredentials) OverrideServerName(string) error           { return nil }

// refusal is an error of the store as the operator reads it.
func refusal(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	code := codes.Internal
	switch {
	case errors.Is(err, store.ErrNotFound):
		code = codes.NotFound
	case errors.Is(err, store.ErrExists):
		code = codes.AlreadyExists
	case errors.Is(err, store.ErrTooMany):
		code = codes.ResourceExhausted
	case errors.Is(err, context.Canceled):
		code = codes.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		code = codes.DeadlineExceeded
	}
	return status.Error(code, err.Error())
}

// wrong is a request that cannot be carried out as it is.
func wrong(format string, args ...any) error {
	return status.Errorf(codes.InvalidArgument, format, args...)
}

// seconds is a time as messages carry it: seconds, 0 for never.
func seconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}
