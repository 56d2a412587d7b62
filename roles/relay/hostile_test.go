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
	"net"
	"strings"
	"testing"
	"time"
)

// records writes TLS 1.3 records by hand, such as no library sends.
type records struct {
	t    testing.TB
	nc   net.Conn
	aead cipher.AEAD
	iv   []byte
	seq  uint64
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
	var secret []byte
	for line := range strings.Lines(log.String()) {
		if words := strings.Fields(line); words[0] == "CLIENT_TRAFFIC_SECRET_0" {
			secret, _ = hex.DecodeString(words[2])
		}
	}
	expand := func(label string, n int) []byte {
		label = "tls13 " + label
		info := append([]byte{byte(n >> 8), byte(n), byte(len(label))}, label...)
		key, err := hkdf.Expand(sha256.New, secret, string(append(info, 0)), n)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	block, err := aes.NewCipher(expand("key", 16))
	if err != nil {
		t.Fatal(err)
	}
	r := &records{t: t, nc: nc, iv: expand("iv", 12)}
	r.aead, _ = cipher.NewGCM(block)
	return r
}

// record seals p as one record of application data.
func (r *records) record(p []byte) []byte {
	nonce := bytes.Clone(r.iv)
	for i, b := range binary.BigEndian.AppendUint64(nil, r.seq) {
		nonce[4+i] ^= b
	}
	r.seq++
	inner := append(bytes.Clone(p), 23)
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
