package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"
)

// load keeps calls running. It remembers every status that is neither OK nor
// UNAVAILABLE, and of those that are UNAVAILABLE the first.
type load struct {
	ok, unavailable atomic.Int64
	mu              sync.Mutex
	wrong           []string
	lost            []string
	slowest         time.Duration
	cancel          context.CancelFunc
	wg              sync.WaitGroup
}

func startLoad(c testgrpc.TestServiceClient, callers int) *load {
	return startLoadOf(callers, func(ctx context.Context) error {
		ctx, stop := context.WithTimeout(ctx, 20*time.Second)
		defer stop()
		_, err := c.EmptyCall(ctx, &testgrpc.Empty{})
		return err
	})
}

// startLoadOf lets so many callers make one call after another.
func startLoadOf(callers int, call func(context.Context) error) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{cancel: cancel}
	for range callers {
		l.wg.Go(func() {
			for ctx.Err() == nil {
				began := time.Now()
				err := call(context.Background()) // what has begun is not cut
				l.count(began, err)
				if err != nil {
					time.Sleep(20 * time.Millisecond)
				}
			}
		})
	}
	return l
}

func (l *load) count(began time.Time, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.slowest = max(l.slowest, time.Since(began))
	said := fmt.Sprintf("%s: %v after %v", time.Now().UTC().Format("15:04:05.000"), err, time.Since(began).Round(time.Millisecond))
	switch status.Code(err) {
	case codes.OK:
		l.ok.Add(1)
	case codes.Unavailable:
		l.unavailable.Add(1)
		if len(l.lost) < 20 {
			l.lost = append(l.lost, said)
		}
	default:
		l.wrong = append(l.wrong, said)
	}
}

func (l *load) stop() { l.cancel(); l.wg.Wait() }

// wantAll fails the test unless there were calls and each of them was answered.
func (l *load) wantAll(t *testing.T, what string) {
	t.Helper()
	t.Logf("%s: %d, slowest %v", what, l.ok.Load(), l.slowest.Round(time.Millisecond))
	if l.ok.Load() == 0 || l.unavailable.Load() != 0 || len(l.wrong) != 0 {
		t.Errorf("%s: %d were answered, %d unavailable: %.10q; %d with another status: %.10q",
			what, l.ok.Load(), l.unavailable.Load(), l.lost, len(l.wrong), l.wrong)
	}
}

// paced leaves a little time between its calls.
type paced struct{ testgrpc.TestServiceClient }

func (p paced) EmptyCall(ctx context.Context, in *testgrpc.Empty, opts ...grpc.CallOption) (*testgrpc.Empty, error) {
	time.Sleep(10 * time.Millisecond)
	return p.TestServiceClient.EmptyCall(ctx, in, opts...)
}

// openStreams opens n streams and proves each by one exchange.
func openStreams(t *testing.T, c testgrpc.TestServiceClient, n int) []testgrpc.TestService_FullDuplexCallClient {
	t.Helper()
	var all []testgrpc.TestService_FullDuplexCallClient
	for range n {
		ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
		t.Cleanup(cancel)
		s, err := c.FullDuplexCall(ctx)
		if err == nil {
			err = exchange(s)
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	return all
}

// exchange sends one message and waits for the answer.
func exchange(s testgrpc.TestService_FullDuplexCallClient) error {
	err := s.Send(&testgrpc.StreamingOutputCallRequest{ResponseParameters: []*testgrpc.ResponseParameters{{Size: 10}}})
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	_, err = s.Recv() // says more than Send's io.EOF
	return err
}

// listen opens a stream on which the server sends so many messages, one every
// 50 ms, and reads it to its end.
func listen(ctx context.Context, c testgrpc.TestServiceClient, messages int) error {
	every := &testgrpc.ResponseParameters{Size: 100, IntervalUs: 50_000}
	request := &testgrpc.StreamingOutputCallRequest{}
	for range messages {
		request.ResponseParameters = append(request.ResponseParameters, every)
	}
	s, err := c.StreamingOutputCall(ctx, request)
	if err != nil {
		return err
	}
	for n := 0; ; n++ {
		switch _, err := s.Recv(); {
		case err == io.EOF && n != messages:
			return fmt.Errorf("%d of %d messages", n, messages)
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
	}
}
