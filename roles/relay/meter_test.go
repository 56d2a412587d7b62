package relay

import (
	"encoding/binary"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// framed is messages of the given sizes as they are on the wire.
func framed(sizes ...int) (b []byte) {
	for _, n := range sizes {
		b = append(b, 0)
		b = binary.BigEndian.AppendUint32(b, uint32(n))
		b = append(b, make([]byte, n)...)
	}
	return b
}

// TestMeterFindsMessages however the bytes are cut.
func TestMeterFindsMessages(t *testing.T) {
	wire := framed(0, 7, 0, 0, 300, 1)
	for _, step := range []int{1, 2, 3, 4, 5, 6, 7, 11, 64, len(wire)} {
		count := 0
		m := &Meter{Message: func() *Rejection { count++; return nil }}
		for p := range slices.Chunk(wire, step) {
			if m.up(p) != nil {
				t.Fatal("rejected")
			}
		}
		if count != 6 || m.request.left != 0 || m.request.n != 0 {
			t.Errorf("cut by %d: %d messages, %+v", step, count, m.request)
		}
		for limit, want := range map[uint64]bool{299: true, 300: false} {
			large := 0
			m := &Meter{MaxMessage: limit, Large: func(size uint64, _ bool) Rejection {
				large = int(size)
				return Rejection{Code: codes.ResourceExhausted}
			}}
			var found *Rejection
			for p := range slices.Chunk(wire, step) {
				if found = m.down(p); found != nil {
					break
				}
			}
			if (found != nil) != want || want && large != 300 {
				t.Errorf("cut by %d with at most %d: %v, %d", step, limit, found, large)
			}
		}
	}
}

// FuzzMeter compares with reading it all at once.
func FuzzMeter(f *testing.F) {
	f.Add(framed(3, 0, 70), uint8(4), uint16(10))
	f.Add([]byte{1, 0xff, 0xff, 0xff, 0xff, 0}, uint8(1), uint16(0))
	f.Fuzz(func(t *testing.T, wire []byte, step uint8, limit uint16) {
		want, over := 0, false
		for p := wire; len(p) >= 5; {
			n := binary.BigEndian.Uint32(p[1:])
			if limit > 0 && n > uint32(limit) {
				over = true
				break
			}
			want++
			if uint64(len(p)) < 5+uint64(n) {
				break
			}
			p = p[5+n:]
		}
		got := 0
		m := &Meter{MaxMessage: uint64(limit), Large: func(uint64, bool) Rejection { return Rejection{} }, Message: func() *Rejection { got++; return nil }}
		ended := false
		for p := range slices.Chunk(wire, int(step)+1) {
			if m.up(p) != nil {
				ended = true
				break
			}
		}
		if got != want || ended != over {
			t.Fatalf("%d messages, over %v; want %d, %v", got, ended, want, over)
		}
	})
}

func metered(m func() *Meter) hopConfig {
	return hopConfig{handler: func(c *Call, h *hop) {
		c.Meter(m())
		h.forward(c)
	}}
}

func large(size uint64, response bool) Rejection {
	if response {
		return Rejection{Code: codes.ResourceExhausted, Message: "the answer is too large", Reason: "large"}
	}
	return Rejection{Code: codes.ResourceExhausted, Message: "the message is too large", Reason: "large"}
}

// TestMessageCap: a message that is too large ends its call, either way, before
// the bytes have come; others go on.
func TestMessageCap(t *testing.T) {
	var got atomic.Int64
	s := &service{stream: func(st testgrpc.TestService_FullDuplexCallServer) error {
		for {
			r, err := st.Recv()
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
			got.Add(int64(len(r.GetPayload().GetBody())))
			size := 1
			if len(r.GetResponseParameters()) > 0 {
				size = int(r.GetResponseParameters()[0].GetSize())
			}
			if err := st.Send(&testgrpc.StreamingOutputCallResponse{Payload: payload(size)}); err != nil {
				return err
			}
		}
	}}
	client, all, _ := serviceChain(t, 3, s, metered(func() *Meter { return &Meter{MaxMessage: 100 << 10, Large: large} }))
	if r, err := client.UnaryCall(within(t, 10*time.Second), &testgrpc.SimpleRequest{Payload: payload(99 << 10)}); err != nil || len(r.GetPayload().GetBody()) != 99<<10 {
		t.Errorf("a message below the cap: %v", err)
	}
	if _, err := client.UnaryCall(within(t, 10*time.Second), &testgrpc.SimpleRequest{Payload: payload(1 << 20)}); status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "the message is too large") {
		t.Errorf("a message above the cap: %v", err)
	}
	st, err := client.FullDuplexCall(within(t, 10*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	for range 10 {
		if err := st.Send(&testgrpc.StreamingOutputCallRequest{Payload: payload(90 << 10)}); err != nil {
			t.Fatal(err)
		}
		if _, err := st.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	before := got.Load()
	_ = st.Send(&testgrpc.StreamingOutputCallRequest{Payload: payload(101 << 10)})
	if _, err := st.Recv(); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a large message in a stream: %v", err)
	}
	if got.Load() != before {
		t.Error("the large message reached the service")
	}
	if st, err = client.FullDuplexCall(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	_ = st.Send(&testgrpc.StreamingOutputCallRequest{ResponseParameters: []*testgrpc.ResponseParameters{{Size: 200 << 10}}})
	if r, err := st.Recv(); status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "the answer is too large") {
		t.Errorf("a large answer: %d bytes, %v", len(r.GetPayload().GetBody()), err)
	}
	settled(t, all)
}

// TestMessagesAreCounted: the call ends with the message that is one too many,
// and the service has had those before.
func TestMessagesAreCounted(t *testing.T) {
	var had atomic.Int64
	s := &service{stream: func(st testgrpc.TestService_FullDuplexCallServer) error {
		for {
			if _, err := st.Recv(); err != nil {
				return nil
			}
			had.Add(1)
			if err := st.Send(&testgrpc.StreamingOutputCallResponse{}); err != nil {
				return err
			}
		}
	}}
	client, all, _ := serviceChain(t, 2, s, metered(func() *Meter {
		n := 0
		return &Meter{Message: func() *Rejection {
			if n++; n <= 5 {
				return nil
			}
			return &Rejection{Code: codes.ResourceExhausted, Message: "too many", Reason: "rate", Extra: []Field{{Name: "x-detail", Value: "1"}}}
		}}
	}))
	st, err := client.FullDuplexCall(within(t, 10*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 6 {
		_ = st.Send(&testgrpc.StreamingOutputCallRequest{})
		_, err := st.Recv()
		if i < 5 && err != nil {
			t.Fatal(err)
		}
		if i == 5 && (status.Code(err) != codes.ResourceExhausted || len(st.Trailer()["x-detail"]) != 1) {
			t.Errorf("%v, %v", err, st.Trailer())
		}
	}
	if n := had.Load(); n != 5 {
		t.Errorf("the service had %d messages", n)
	}
	settled(t, all)
}

// TestMeterOnWhatCameBefore: a call that waits is metered from its first byte.
func TestMeterOnWhatCameBefore(t *testing.T) {
	calls := make(chan *Call, 1)
	client, all, _ := serviceChain(t, 1, &service{}, hopConfig{handler: func(c *Call, _ *hop) { calls <- c }})
	got := make(chan error, 1)
	go func() {
		_, err := client.UnaryCall(within(t, 10*time.Second), &testgrpc.SimpleRequest{Payload: payload(1 << 20)})
		got <- err
	}()
	c := <-calls
	eventually(t, "some of it is there", func() bool { return c.up.Load() >= 64<<10 })
	c.Meter(&Meter{MaxMessage: 1 << 10, Large: large})
	if err := <-got; status.Code(err) != codes.ResourceExhausted {
		t.Error(err)
	}
	settled(t, all)
}

// TestCap: the call ends at the cap, whatever the caller's deadline, and the
// service is told it.
func TestCap(t *testing.T) {
	told := make(chan string, 4)
	s := &service{stream: func(st testgrpc.TestService_FullDuplexCallServer) error {
		md, _ := metadata.FromIncomingContext(st.Context())
		d, _ := st.Context().Deadline()
		if _, capped := md["x-capped"]; capped && time.Until(d) > time.Minute {
			told <- "too late"
		} else {
			told <- "ok"
		}
		<-st.Context().Done()
		return nil
	}}
	cfg := hopConfig{handler: func(c *Call, h *hop) {
		c.Cap(300*time.Millisecond, "it took longer than 300ms")
		header := append(CapTimeout(c.Header(), 300*time.Millisecond), Field{Name: "x-capped", Value: "1"})
		if err := c.Forward(h.out.Pick(), header, ForwardOptions{}); err != nil {
			t.Error(err)
		}
	}}
	client, all, _ := serviceChain(t, 2, s, cfg)
	st, err := client.FullDuplexCall(within(t, 30*time.Second), grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := st.Recv(); status.Code(err) != codes.DeadlineExceeded {
		t.Error(err)
	} else if m := status.Convert(err).Message(); m != "it took longer than 300ms" {
		t.Errorf("%q", m)
	}
	if got := <-told; got != "ok" {
		t.Error("the service was told another deadline:", got)
	}
	settled(t, all)
}

func TestCapTimeout(t *testing.T) {
	for own, c := range map[string]struct {
		d    time.Duration
		want string
	}{
		"":     {time.Minute, "61S"},
		"1S":   {time.Minute, "1S"},
		"2M":   {time.Minute, "61S"},
		"1H":   {5 * time.Minute, "301S"},
		"9H":   {time.Hour * 30, "9H"},
		"999H": {time.Hour * 30, "108001S"},
		"60S":  {time.Minute, "60S"},
	} {
		in := []Field{{Name: "a", Value: "b"}}
		if own != "" {
			in = append(in, Field{Name: "grpc-timeout", Value: own})
		}
		before := slices.Clone(in)
		out := CapTimeout(in, c.d)
		d, ok := parseTimeout(out[len(out)-1].Value)
		want, _ := parseTimeout(c.want)
		if !ok || d != want || !slices.Equal(in, before) {
			t.Errorf("%q capped at %v: %v", own, c.d, out)
		}
	}
}
