package relay

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
)

// records writes TLS 1.3 records by hand, such as no library sends.
type records struct {
	t      testing.TB
	nc     net.Conn
	secret []byte
	aead   cipher.AEAD
	iv     []byte
	seq    uint64
}

// newRecords makes the client's side of a TLS connection and takes its keys.
// Nothing is written by way of the tls.Conn from then on.
func newRecords(t testing.TB, nc net.Conn) *records {
	t.Helper()
	var log bytes.Buffer
	tc := tls.Client(nc, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, KeyLogWriter: &log})
	if err := tc.Handshake(); err != nil {
		t.Fatal(err)
	}
	if suite := tc.ConnectionState().CipherSuite; suite != tls.TLS_AES_128_GCM_SHA256 {
		t.Skipf("cipher suite %#x", suite)
	}
	r := &records{t: t, nc: nc}
	for line := range strings.Lines(log.String()) {
		if words := strings.Fields(line); words[0] == "CLIENT_TRAFFIC_SECRET_0" {
			secret, _ := hex.DecodeString(words[2])
			r.use(secret)
		}
	}
	return r
}

func (r *records) expand(label string, n int) []byte {
	label = "tls13 " + label
	info := append([]byte{byte(n >> 8), byte(n), byte(len(label))}, label...)
	key, err := hkdf.Expand(sha256.New, r.secret, string(append(info, 0)), n)
	if err != nil {
		r.t.Fatal(err)
	}
	return key
}

// use takes the keys of a secret.
func (r *records) use(secret []byte) {
	r.secret, r.seq = secret, 0
	block, err := aes.NewCipher(r.expand("key", 16))
	if err != nil {
		r.t.Fatal(err)
	}
	r.iv = r.expand("iv", 12)
	r.aead, _ = cipher.NewGCM(block)
}

// update is a KeyUpdate that asks for another.
func (r *records) update() []byte {
	p := r.seal(22, []byte{24, 0, 0, 1, 1})
	r.use(r.expand("traffic upd", 32))
	return p
}

// record seals p as one record of application data.
func (r *records) record(p []byte) []byte { return r.seal(23, p) }

func (r *records) seal(kind byte, p []byte) []byte {
	nonce := bytes.Clone(r.iv)
	for i, b := range binary.BigEndian.AppendUint64(nil, r.seq) {
		nonce[4+i] ^= b
	}
	r.seq++
	inner := append(bytes.Clone(p), kind)
	head := []byte{23, 3, 3, byte((len(inner) + 16) >> 8), byte(len(inner) + 16)}
	return append(head, r.aead.Seal(nil, nonce, inner, head)...)
}

// TestRecordWithoutData has a caller who sends, right behind a request, a TLS
// record in which there is nothing, and then no more. The reader that took the
// request waited for what would follow before it passed the request on, and
// with it everything that anybody else had for the same link.
func TestRecordWithoutData(t *testing.T) {
	up, out, _ := rawFrom(t, &Options{})
	forward := HandlerFunc(func(c *Call) { _ = c.Forward(out, c.Header(), ForwardOptions{}) })
	ours, theirs := tcpPair(t)
	c := NewServer(tls.Server(Socket(ours), &tls.Config{Certificates: testTLS().Certificates, NextProtos: []string{"h2"}}), &Options{Edge: true}, forward)
	run(t, c)
	hostile := newRecords(t, theirs)
	hello := newRaw(t, theirs)
	request := hello.block(goodRequest...)
	head := appendHeaderBlock(nil, 1, request, true, minFrameSize)
	_, _ = theirs.Write(hostile.record(append([]byte(preface), appendSettings(nil)...)))
	<-c.Ready()
	time.Sleep(50 * time.Millisecond)
	_, _ = theirs.Write(append(hostile.record(head), hostile.record(nil)...))
	up.expect("HEADERS 1")

	r, _, _ := rawTo(t, &Options{Edge: true}, forward)
	r.request(1, "/t.S/M", true)
	up.expect("HEADERS 3")
}

// logLines counts what is logged.
type logLines struct{ n atomic.Int64 }

func (l *logLines) Write(p []byte) (int, error) { l.n.Add(1); return len(p), nil }

// TestGoAwayAgainAndAgain has a peer say that it goes, a thousand times. That
// was a thousand lines in our log.
func TestGoAwayAgainAndAgain(t *testing.T) {
	lines := new(logLines)
	up, out, _ := rawFrom(t, &Options{Log: slog.New(slog.NewTextHandler(lines, nil))})
	in, _, _ := rawTo(t, &Options{Edge: true}, HandlerFunc(func(c *Call) { _ = c.Forward(out, c.Header(), ForwardOptions{}) }))
	in.request(1, "/t.S/M", false)
	up.expect("HEADERS 1")
	for i := range 1000 {
		up.must(up.fr.WriteGoAway(1, http2.ErrCode(1+i%12), []byte("x")))
	}
	up.must(up.fr.WritePing(false, [8]byte{}))
	up.expect("PING ack")
	if n := lines.n.Load(); n != 1 {
		t.Errorf("%d lines", n)
	}
}

// TestEndlessInformation has a service that answers one call with 1xx without
// end. No window bounds them, and everybody's responses share the link on which
// they were passed on.
func TestEndlessInformation(t *testing.T) {
	m := new(Metrics)
	up, out, _ := rawFrom(t, &Options{})
	r, _, _ := rawTo(t, &Options{Metrics: m}, HandlerFunc(func(c *Call) { _ = c.Forward(out, c.Header(), ForwardOptions{}) }))
	r.request(1, "/t.S/M", true)
	up.expect("HEADERS 1")
	for range 100 {
		up.headers(1, false, ":status", "103", "x", strings.Repeat("y", 1000))
	}
	up.expect("RST 1 ENHANCE_YOUR_CALM")
	passed := 0
	for got := r.say(); !strings.HasPrefix(got, "HEADERS 1 END"); got = r.say() {
		passed++
	}
	if passed != maxInformed {
		t.Errorf("%d were passed on", passed)
	}
	eventually(t, "the call ends", func() bool { return m.CallsOpen.Load() == 0 })
}

// TestLargeHeadersOfOpenCalls holds calls open whose headers cost a few bytes on
// the wire, because they stand in the compression table, and 60 KiB here.
func TestLargeHeadersOfOpenCalls(t *testing.T) {
	budget := NewBudget(64 << 20)
	h := HandlerFunc(func(*Call) {})
	r, _, _ := rawTo(t, &Options{Edge: true, Limits: Limits{ConnBuffer: 1 << 20}, Budget: budget}, h)
	var large []string
	for range 15 {
		large = append(large, "x-y", strings.Repeat("z", 4000))
	}
	for i := range 10 {
		r.request(uint32(2*i+1), "/t.S/M", false, large...)
	}
	r.expect("HEADERS 9 END :status=200 content-type=application/grpc grpc-status=8")
	for i := range 4 {
		r.expect(fmt.Sprintf("HEADERS %d END", 2*i+11), "RST")
	}
	// Small ones are not concerned, and what is gone makes room.
	r.request(101, "/t.S/Ok", true)
	for i := range 4 {
		r.frame(frameRST, 0, uint32(2*i+1), u32(8))
	}
	r.request(103, "/t.S/M", false, large...)
	r.frame(frameRST, 0, 101, u32(8))
	r.frame(frameRST, 0, 103, u32(8))
	eventually(t, "nothing is counted any more", func() bool { return budget.Used() == connCost })
}

// TestHeadersBehindFullSocket opens calls towards a peer that reads nothing:
// new ones are refused long before the connection, and with it the calls on it,
// would have to be given up.
func TestHeadersBehindFullSocket(t *testing.T) {
	up, out, _ := rawFrom(t, &Options{Limits: Limits{Backlog: 1 << 20}}, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1 << 20})
	var last error
	o := &Options{Limits: Limits{ConnBuffer: 1 << 30}}
	r, _, _ := rawTo(t, o, HandlerFunc(func(c *Call) {
		if last = c.Forward(out, c.Header(), ForwardOptions{}); last != nil {
			c.Reject(14, "no place")
		}
	}))
	_ = up
	value := strings.Repeat("z", 15000)
	for i := range 2000 {
		r.request(uint32(2*i+1), "/t.S/M", true, "x-request-id", value)
	}
	r.request(5001, "/t.S/M", true)
	r.expect("HEADERS 5001 END :status=200 content-type=application/grpc grpc-status=14", "HEADERS", "RST")
	if !errors.Is(last, ErrNotAccepting) {
		t.Error(last)
	}
	if out.over() {
		t.Error("the connection was given up")
	}
}

// TestStrangersDoNotFillTheLog has nobody in particular call a public method
// that fails, with a name of 60 KB. Each was a line of 60 KB.
func TestStrangersDoNotFillTheLog(t *testing.T) {
	var out bytes.Buffer
	a := NewAccessLog(slog.New(slog.NewTextHandler(&out, nil)), "failures")
	for range 10_000 {
		a.Write(CallRecord{Method: "/a.B/" + strings.Repeat("c", 60_000), Code: codes.Canceled})
	}
	if n := out.Len(); n > 200_000 {
		t.Errorf("%d bytes", n)
	}
	out.Reset()
	for range 1000 {
		a.Write(CallRecord{Method: "/a.B/C", Caller: "apikey:ci", Code: codes.NotFound})
	}
	if n := strings.Count(out.String(), "\n"); n != 1000 {
		t.Errorf("%d lines for a caller who is known", n)
	}
}

// TestRequestTrailersOnLinks has a neighbour send trailers of a request, which
// gRPC does not have. A server written with grpc-go takes them as a misuse of
// the stream's id and ends the connection, with everybody's calls on it.
func TestRequestTrailersOnLinks(t *testing.T) {
	s := &service{}
	address, _ := backend(t, func(g *grpc.Server) { testgrpc.RegisterTestServiceServer(g, s) })
	nc, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	out := NewClient(Socket(nc), &Options{})
	run(t, out)
	<-out.Ready()
	r, _, _ := rawTo(t, &Options{}, HandlerFunc(func(c *Call) { _ = c.Forward(out, c.Header(), ForwardOptions{}) }))
	r.request(1, "/grpc.testing.TestService/FullDuplexCall", false)
	r.request(3, "/grpc.testing.TestService/FullDuplexCall", false)
	r.headers(3, true, "x-forwarded-for", "192.0.2.1")
	r.expect("HEADERS 3", "HEADERS 1")
	select {
	case <-out.Done():
		t.Error("the connection to the service ended")
	case <-time.After(300 * time.Millisecond):
	}
}

// TestResponseOfEndedCall has a response begin in the moment in which its call
// ends for another reason, and go on. What followed was taken for a mistake of
// the peer's, and the link was given up with everybody's calls on it.
func TestResponseOfEndedCall(t *testing.T) {
	var held *Call
	up, out, _ := rawFrom(t, &Options{})
	r, _, _ := rawTo(t, &Options{Edge: true}, HandlerFunc(func(c *Call) { held = c; _ = c.Forward(out, c.Header(), ForwardOptions{}) }))
	r.request(1, "/t.S/M", true)
	up.expect("HEADERS 1")
	held.mu.Lock()
	held.done = true // by a cancellation that has not got as far as the link yet
	held.mu.Unlock()
	up.headers(1, false, ":status", "200", "content-type", "application/grpc")
	up.must(up.fr.WriteData(1, false, make([]byte, 100)))
	up.headers(1, true, "grpc-status", "0")
	up.expect("RST 1 CANCEL")
	up.must(up.fr.WritePing(false, [8]byte{}))
	up.expect("PING ack")
}

// TestResetsOfManyCallers has a link carry what many callers do, each within its
// own limit. The link had one too, and its end was the end of everybody's calls;
// one caller alone could bring it about by calls that are answered before their
// request has ended.
func TestResetsOfManyCallers(t *testing.T) {
	r, _, _ := rawTo(t, &Options{}, answering)
	r.request(1, "/t.S/Hold", false)
	r.write(bytes.Repeat(appendRST(nil, 1, codeCancel), 50_000))
	r.request(3, "/t.S/Ok", true)
	r.expect("HEADERS 3 END")
}

// TestDeadlineWhileServing has a deadline pass while the handler looks at the
// call, which a caller can ask for and a busy machine grants. The outcome was
// told beside the handler, which notes things about the call without a lock.
func TestDeadlineWhileServing(t *testing.T) {
	var serving, beside atomic.Bool
	r, _, _ := rawTo(t, &Options{Edge: true, Limits: Limits{DeadlineGrace: time.Millisecond}}, HandlerFunc(func(c *Call) {
		serving.Store(true)
		c.OnDone(func(Outcome) { beside.Store(serving.Load()) })
		time.Sleep(300 * time.Millisecond)
		serving.Store(false)
	}))
	r.request(1, "/t.S/M", true, "grpc-timeout", "1n")
	r.expect("HEADERS 1 END :status=200 content-type=application/grpc grpc-status=4")
	if beside.Load() {
		t.Error("the outcome was told while the handler was at work")
	}
}

// TestKeyUpdatesUnread asks TLS for new keys without end and reads none of its
// answers, which were kept without end. A byte of a frame between them is
// progress enough for TLS.
func TestKeyUpdatesUnread(t *testing.T) {
	ours, theirs := tcpPair(t)
	_ = ours.(*net.TCPConn).SetWriteBuffer(4 << 10)
	_ = theirs.(*net.TCPConn).SetReadBuffer(4 << 10)
	sock := Socket(ours)
	c := NewServer(tls.Server(sock, &tls.Config{Certificates: testTLS().Certificates, NextProtos: []string{"h2"}}),
		&Options{Edge: true, Limits: Limits{Backlog: 1 << 10, Pings: 1 << 30}}, answering)
	ended := run(t, c)
	hostile := newRecords(t, theirs)
	defer theirs.Close()
	_, _ = theirs.Write(hostile.record(append([]byte(preface), appendSettings(nil)...)))
	<-c.Ready()
	unknown := appendFrameHeader(nil, 16000, 0x55, 0, 0)
	for i := range 300_000 {
		var b byte
		if at := i % (frameHeaderLen + 16000); at < frameHeaderLen {
			b = unknown[at]
		}
		_ = theirs.SetWriteDeadline(time.Now().Add(5 * time.Second))
		if _, err := theirs.Write(append(hostile.record([]byte{b}), hostile.update()...)); err != nil {
			break
		}
	}
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		s := sock.(*socket)
		s.mu.Lock()
		defer s.mu.Unlock()
		t.Errorf("%d bytes are kept for a peer that reads nothing", s.out.len())
	}
}
