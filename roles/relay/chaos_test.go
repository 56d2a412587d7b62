package relay

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// pattern is what call n sends: nobody else's.
func pattern(n uint64, size int) *testgrpc.Payload {
	b := make([]byte, 8, size+8)
	binary.BigEndian.PutUint64(b, n)
	return &testgrpc.Payload{Body: bytes.Repeat(b, size/8+1)}
}

// TestChaos has honest callers call in every way beside hostile ones, while
// links come and go. Nobody gets what is another's, and nothing is left over.
func TestChaos(t *testing.T) {
	s := &service{
		unary: func(ctx context.Context, r *testgrpc.SimpleRequest) (*testgrpc.SimpleResponse, error) {
			md, _ := metadata.FromIncomingContext(ctx)
			_ = grpc.SetHeader(ctx, metadata.Pairs("x-mine", md.Get("x-mine")[0]))
			_ = grpc.SetTrailer(ctx, metadata.Pairs("x-mine-too", md.Get("x-mine")[0]))
			if rand.IntN(10) == 0 {
				return nil, status.Error(codes.NotFound, md.Get("x-mine")[0])
			}
			return &testgrpc.SimpleResponse{Payload: r.Payload}, nil
		},
	}
	address, _ := backend(t, func(g *grpc.Server) { testgrpc.RegisterTestServiceServer(g, s) }, grpc.MaxConcurrentStreams(40))
	entrance, all := chain(t, 3, address, hopConfig{tls: true, conns: 2})
	budget := DefaultBudget.Used()
	ctx, stop := context.WithTimeout(context.Background(), 3*time.Second)
	defer stop()
	var wg sync.WaitGroup
	var calls, good, wrong atomic.Uint64
	var clients []testgrpc.TestServiceClient
	for range 6 {
		client := testgrpc.NewTestServiceClient(dial(t, entrance, true))
		clients = append(clients, client)
		for range 6 {
			wg.Go(func() {
				for ctx.Err() == nil {
					n := calls.Add(1)
					mine := fmt.Sprint(n)
					one, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(ctx, "x-mine", mine), time.Duration(1+rand.IntN(400))*time.Millisecond)
					p := pattern(n, []int{10, 3000, 40_000, 200_000}[rand.IntN(4)])
					if rand.IntN(2) == 0 {
						var head, tail metadata.MD
						r, err := client.UnaryCall(one, &testgrpc.SimpleRequest{Payload: p}, grpc.Header(&head), grpc.Trailer(&tail))
						for _, v := range append(head["x-mine"], tail["x-mine-too"]...) {
							if v != mine {
								wrong.Add(1)
							}
						}
						switch {
						case err == nil && !bytes.Equal(r.Payload.Body, p.Body):
							wrong.Add(1)
						case err == nil:
							good.Add(1)
						case status.Code(err) == codes.NotFound && status.Convert(err).Message() != mine:
							wrong.Add(1)
						}
					} else if st, err := client.FullDuplexCall(one); err == nil {
						for range rand.IntN(8) {
							if st.Send(&testgrpc.StreamingOutputCallRequest{Payload: p}) != nil {
								break
							}
							if rand.IntN(3) == 0 {
								continue
							}
							r, err := st.Recv()
							if err != nil {
								break
							}
							if !bytes.Equal(r.Payload.Body, p.Body) {
								wrong.Add(1)
							}
						}
						if rand.IntN(2) == 0 {
							_ = st.CloseSend()
							for {
								r, err := st.Recv()
								if err == io.EOF {
									good.Add(1)
								}
								if err != nil {
									break
								}
								if !bytes.Equal(r.Payload.Body, p.Body) {
									wrong.Add(1)
								}
							}
						}
					}
					cancel()
				}
			})
		}
	}
	for range 3 {
		wg.Go(func() {
			for ctx.Err() == nil {
				hostile(ctx, t, entrance)
			}
		})
	}
	wg.Go(func() { // links end, in both ways, and are replaced
		for i := 0; ctx.Err() == nil; i++ {
			time.Sleep(300 * time.Millisecond)
			k := i % 2
			for n, c := range all[k].out.all() {
				if n == 0 {
					continue
				}
				if i%3 == 0 {
					c.Close(fmt.Errorf("chaos"))
				} else {
					c.Drain()
				}
				break
			}
			all[k].reverse(t, all[k+1])
		}
	})
	wg.Wait()
	t.Logf("%d calls, %d good", calls.Load(), good.Load())
	if wrong.Load() > 0 {
		t.Errorf("%d calls got what was not theirs", wrong.Load())
	}
	// No window was lost on the way: every connection still carries much.
	for i, client := range clients {
		for range 4 {
			p := pattern(uint64(i), 3<<20)
			r, err := client.UnaryCall(metadata.AppendToOutgoingContext(within(t, 10*time.Second), "x-mine", "last"), &testgrpc.SimpleRequest{Payload: p})
			if status.Code(err) != codes.NotFound && (err != nil || !bytes.Equal(r.Payload.Body, p.Body)) {
				t.Errorf("connection %d: %v", i, err)
			}
		}
	}
	settled(t, all)
	for _, h := range all {
		eventually(t, h.name+": nothing in flight", func() bool {
			n := h.out.InFlight()
			h.mu.Lock()
			defer h.mu.Unlock()
			for _, c := range h.ins {
				n += c.InFlight()
			}
			return n == 0
		})
	}
	eventually(t, "no bytes are held", func() bool { return DefaultBudget.Used() == budget })
}

// hostile is one connection that does what it pleases.
func hostile(ctx context.Context, t testing.TB, address string) {
	nc, err := net.DialTimeout("tcp", address, time.Second)
	if err != nil {
		return
	}
	defer nc.Close()
	tc := tls.Client(nc, testTLS())
	if tc.HandshakeContext(ctx) != nil {
		return
	}
	_ = tc.SetDeadline(time.Now().Add(3 * time.Second))
	go func() { _, _ = io.Copy(io.Discard, io.LimitReader(tc, int64(rand.IntN(1<<20)))) }()
	_, _ = tc.Write(append([]byte(preface), appendSettings(nil, setting{settingInitialWindow, uint32(rand.IntN(100_000))})...))
	r := newRaw(t, tc)
	for i := range 200 {
		id := uint32(2*i + 1)
		path := []string{"/grpc.testing.TestService/UnaryCall", "/grpc.testing.TestService/FullDuplexCall", "/none.Such/X"}[rand.IntN(3)]
		r.request(id, path, rand.IntN(3) == 0, "x-mine", "hostile", "grpc-timeout", fmt.Sprintf("%dm", rand.IntN(300)), "grpc-encoding", "identity")
		for range rand.IntN(6) {
			k := uint32(2*rand.IntN(i+1) + 1)
			switch rand.IntN(9) {
			case 0, 1, 2:
				_ = r.fr.WriteDataPadded(k, rand.IntN(2) == 0, make([]byte, rand.IntN(16_000)), make([]byte, rand.IntN(200)))
			case 3:
				r.frame(frameRST, 0, k, u32(uint32(rand.IntN(10))))
			case 4:
				r.frame(frameWindowUpdate, 0, k, u32(uint32(rand.IntN(50_000))))
			case 5:
				r.frame(frameWindowUpdate, 0, 0, u32(uint32(1+rand.IntN(50_000))))
			case 6:
				r.headers(k, true, "x-trailer", "y")
			case 7:
				r.write(appendSettings(nil, setting{settingInitialWindow, uint32(rand.IntN(1 << 20))}))
			case 8:
				_ = r.fr.WriteData(k, false, []byte{0, 0, 0, 0, 5, 1, 2, 3, 4, 5})
			}
		}
		if rand.IntN(60) == 0 || ctx.Err() != nil {
			return
		}
		time.Sleep(time.Millisecond)
	}
}
