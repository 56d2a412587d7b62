package link

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sallyport/roles/control"
)

// stream is either end of a bidirectional RPC whose frames are the same both ways.
type stream[F any] interface {
	Send(*F) error
	Recv() (*F, error)
	Context() context.Context
}

// exchange describes one such RPC.
type exchange[F any] struct {
	most     int  // bytes of a frame
	drain    bool // f has left nobody reading when it returns
	open     func(context.Context, *grpc.ClientConn, ...grpc.CallOption) (stream[F], error)
	register func(*grpc.Server, func(stream[F]) error)
}

// The time a side has to open the stream and say its first word, and the time
// it has to take the last word before the connection is closed.
const (
	firstWordTime = 10 * time.Second
	lastWordTime  = 2 * time.Second
)

// run runs f over the RPC, as client or server by who dialled, and returns
// what f returned. The connection is closed when run returns.
func (x exchange[F]) run(ctx context.Context, conn *Conn, f func(stream[F]) error) error {
	defer conn.NetConn().Close()
	if conn.Dialled {
		return x.call(ctx, conn, f)
	}
	return x.serve(ctx, conn, f)
}

func (x exchange[F]) call(ctx context.Context, conn *Conn, f func(stream[F]) error) error {
	cc, err := ClientOver(conn)
	if err != nil {
		return err
	}
	defer cc.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	st, err := x.open(ctx, cc, grpc.MaxCallRecvMsgSize(x.most))
	if err != nil {
		return endOf(ctx, err)
	}
	err = f(st)
	if c, ok := st.(interface{ CloseSend() error }); ok && x.drain && c.CloseSend() == nil {
		// Wait for the server's end, so that what was said last is not lost
		// in the closing of the connection.
		stop := time.AfterFunc(lastWordTime, cancel)
		for {
			if _, end := st.Recv(); end != nil {
				break
			}
		}
		stop.Stop()
	}
	return err
}

func (x exchange[F]) serve(ctx context.Context, conn *Conn, f func(stream[F]) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var began atomic.Bool
	result := make(chan error, 1)
	first := time.AfterFunc(firstWordTime, func() {
		if !began.Load() {
			cancel(errors.New("the other side connected and said nothing"))
		}
	})
	defer first.Stop()
	handler := func(st stream[F]) error {
		if began.Swap(true) {
			return status.Error(codes.ResourceExhausted, "this connection has its one stream already")
		}
		err := f(st)
		result <- err
		time.AfterFunc(lastWordTime, func() { cancel(errors.New("done")) })
		if err != nil {
			return status.Error(codes.Aborted, clip(err.Error(), 1024))
		}
		return nil
	}
	err := ServeOver(ctx, conn, func(s *grpc.Server) { x.register(s, handler) }, grpc.MaxRecvMsgSize(x.most))
	select {
	case r := <-result:
		return r
	default:
	}
	if err == nil {
		err = errors.New("the other side connected and left")
	}
	return err
}

// endOf turns the error of a stream into what a person should read.
func endOf(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, io.EOF) {
		return errors.New("the other side ended it")
	}
	s, ok := status.FromError(err)
	if !ok {
		return err
	}
	switch s.Code() {
	case codes.Unavailable, codes.Canceled:
		return fmt.Errorf("the connection was lost (%s)", clip(s.Message(), 256))
	case codes.Unimplemented:
		return refuseProtocol("it does not know this RPC")
	case codes.Internal:
		return refuseProtocol("a message could not be read: " + clip(s.Message(), 256))
	case codes.ResourceExhausted:
		return refuseProtocol("a message was too large: " + clip(s.Message(), 256))
	}
	return fmt.Errorf("the other side ended it: %s", clip(s.Message(), 1024))
}

var joinExchange = exchange[control.JoinFrame]{
	drain: true,
	most:  256 << 10, // strangers send it
	open: func(ctx context.Context, cc *grpc.ClientConn, o ...grpc.CallOption) (stream[control.JoinFrame], error) {
		return control.NewJoinClient(cc).Join(ctx, o...)
	},
	register: func(s *grpc.Server, run func(stream[control.JoinFrame]) error) {
		control.RegisterJoinServer(s, joinServer{run: run})
	},
}

type joinServer struct {
	control.UnimplementedJoinServer
	run func(stream[control.JoinFrame]) error
}

func (j joinServer) Join(st grpc.BidiStreamingServer[control.JoinFrame, control.JoinFrame]) error {
	return j.run(st)
}

var controlExchange = exchange[control.Frame]{
	most: maxMessage,
	open: func(ctx context.Context, cc *grpc.ClientConn, o ...grpc.CallOption) (stream[control.Frame], error) {
		return control.NewControlClient(cc).Session(ctx, o...)
	},
	register: func(s *grpc.Server, run func(stream[control.Frame]) error) {
		control.RegisterControlServer(s, controlServer{run: run})
	},
}

type controlServer struct {
	control.UnimplementedControlServer
	run func(stream[control.Frame]) error
}

func (c controlServer) Session(st grpc.BidiStreamingServer[control.Frame, control.Frame]) error {
	return c.run(st)
}
