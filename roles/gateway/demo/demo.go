// Package demo is the service that a gateway offers when it was given nothing
// else to offer: sallyport.demo.v1.Echo, all four kinds of call, answered with
// what was sent and with what the gateway told about the caller. It runs on a
// grpc-go server in the same process and is found, checked and called exactly
// like a foreign upstream, by reflection and over a connection of its own.
package demo

import (
	"context"
	"errors"
	"io"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"
)

// Limits of one call. They keep a stranger with a public demo from holding
// more than a little memory or time.
const (
	maxCount      = 1000
	maxInterval   = 10 * time.Second
	maxGatherText = 1 << 20
)

// echo answers calls on behalf of the gateway called name.
type echo struct {
	UnimplementedEchoServer
	name string
}

// NewServer returns a server that offers Echo, reflection and health for the
// gateway called name. Its owner serves and stops it.
func NewServer(name string) *grpc.Server {
	s := grpc.NewServer(grpc.MaxRecvMsgSize(maxGatherText))
	RegisterEchoServer(s, &echo{name: name})
	healthpb.RegisterHealthServer(s, health.NewServer())
	reflection.Register(s)
	return s
}

// Say answers with the text it was sent.
func (e *echo) Say(ctx context.Context, in *SayRequest) (*SayResponse, error) {
	return e.reply(ctx, in.GetText()), nil
}

// Count counts from 1 to the number it was sent.
func (e *echo) Count(in *CountRequest, stream grpc.ServerStreamingServer[SayResponse]) error {
	interval := time.Duration(in.GetIntervalMillis()) * time.Millisecond
	if in.GetTo() > maxCount || interval > maxInterval {
		return status.Errorf(codes.InvalidArgument, "count to %d every %s: the demo counts to at most %d, at intervals of at most %s",
			in.GetTo(), interval, maxCount, maxInterval)
	}
	for i := range in.GetTo() {
		if i > 0 && interval > 0 {
			select {
			case <-time.After(interval):
			case <-stream.Context().Done():
				return status.FromContextError(stream.Context().Err()).Err()
			}
		}
		if err := stream.Send(e.reply(stream.Context(), strconv.Itoa(int(i)+1))); err != nil {
			return err
		}
	}
	return nil
}

// Gather answers once, with all texts it was sent.
func (e *echo) Gather(stream grpc.ClientStreamingServer[SayRequest, GatherResponse]) error {
	var text strings.Builder
	var count uint32
	for {
		in, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return stream.SendAndClose(&GatherResponse{Count: count, Text: text.String()})
		}
		if err != nil {
			return err
		}
		if text.Len()+len(in.GetText()) >= maxGatherText {
			return status.Errorf(codes.ResourceExhausted, "the demo gathers at most %d bytes of text", maxGatherText)
		}
		if count > 0 {
			text.WriteByte(' ')
		}
		count++
		text.WriteString(in.GetText())
	}
}

// Chat answers each text at once.
func (e *echo) Chat(stream grpc.BidiStreamingServer[SayRequest, SayResponse]) error {
	for {
		in, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := stream.Send(e.reply(stream.Context(), in.GetText())); err != nil {
			return err
		}
	}
}

// reply is text with what the gateway said of the caller.
func (e *echo) reply(ctx context.Context, text string) *SayResponse {
	md, _ := metadata.FromIncomingContext(ctx)
	return &SayResponse{
		Text:      text,
		Caller:    strings.Join(md.Get("sallyport-caller"), ", "),
		Gateway:   e.name,
		RequestId: strings.Join(md.Get("sallyport-request-id"), ", "),
	}
}
