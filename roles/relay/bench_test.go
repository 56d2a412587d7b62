package relay

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
)

// The benchmarks run what stands in the middle as a process of its own, this
// test binary again, and ask it for its CPU time. Relay and a transparent proxy
// made of grpc-go take turns within one run, so that the ratio means something
// on a busy machine:
//
//	go test -run xxx -bench Middle -benchtime 1x ./roles/relay

const (
	middleEnv    = "SALLYPORT_BENCH_MIDDLE"
	benchKeyEnv  = "SALLYPORT_BENCH_KEY"
	benchCertEnv = "SALLYPORT_BENCH_CERT"
)

// middle is the child process: "relay 3 upstream" or "grpc 1 upstream". It
// prints its address and then its CPU time for every line it reads.
func middle(spec string) {
	f := strings.Fields(spec)
	hops, _ := strconv.Atoi(f[1])
	t := &benchTB{}
	var entrance string
	switch f[0] {
	case "relay":
		entrance, _ = chain(t, hops, f[2], hopConfig{tls: true, conns: 1, web: true})
	case "grpc":
		entrance = grpcProxies(t, hops, f[2])
	}
	fmt.Println(entrance)
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		fmt.Println(cpuTime().Microseconds())
	}
	os.Exit(0)
}

// benchTB is as much of testing.TB as building a chain takes.
type benchTB struct{ testing.TB }

func (*benchTB) Cleanup(func()) {}
func (*benchTB) Helper()        {}
func (*benchTB) Fatal(a ...any) { fmt.Fprintln(os.Stderr, a...); os.Exit(1) }

func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }
func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	b := v.(*mem.BufferSlice)
	b.Ref()
	return *b, nil
}
func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	data.Ref()
	*v.(*mem.BufferSlice) = data
	return nil
}

// grpcProxies builds the same chain of grpc-go clients and servers.
func grpcProxies(t testing.TB, hops int, upstream string) string {
	var codec encoding.CodecV2 = rawCodec{}
	address := upstream
	for i := range hops {
		creds := credentials.NewTLS(testTLS())
		if i == 0 {
			creds = insecure.NewCredentials()
		}
		cc, err := grpc.NewClient(address, grpc.WithTransportCredentials(creds), grpc.WithDefaultCallOptions(grpc.ForceCodecV2(codec)),
			grpc.WithInitialWindowSize(256<<10), grpc.WithInitialConnWindowSize(16<<20))
		if err != nil {
			t.Fatal(err)
		}
		s := grpc.NewServer(grpc.Creds(credentials.NewTLS(testTLS())), grpc.ForceServerCodecV2(codec), grpc.InitialWindowSize(256<<10), grpc.InitialConnWindowSize(16<<20),
			grpc.UnknownServiceHandler(func(_ any, in grpc.ServerStream) error { return proxyCall(cc, in) }))
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go func() { _ = s.Serve(l) }()
		address = l.Addr().String()
	}
	return address
}

func proxyCall(cc *grpc.ClientConn, in grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(in)
	md, _ := metadata.FromIncomingContext(in.Context())
	ctx, cancel := context.WithCancel(metadata.NewOutgoingContext(in.Context(), md))
	defer cancel()
	out, err := cc.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
	if err != nil {
		return err
	}
	go func() {
		for {
			var m mem.BufferSlice
			if err := in.RecvMsg(&m); err != nil {
				_ = out.CloseSend()
				return
			}
			err := out.SendMsg(&m)
			m.Free()
			if err != nil {
				return
			}
		}
	}()
	for first := true; ; first = false {
		var m mem.BufferSlice
		err := out.RecvMsg(&m)
		if first {
			if h, err := out.Header(); err == nil {
				_ = in.SetHeader(h)
			}
		}
		if err != nil {
			in.SetTrailer(out.Trailer())
			if err == io.EOF {
				return nil
			}
			return err
		}
		err = in.SendMsg(&m)
		m.Free()
		if err != nil {
			return err
		}
	}
}

// child is a running middle.
type child struct {
	cmd     *exec.Cmd
	in      io.WriteCloser
	out     *bufio.Scanner
	address string
	kind    string // content-type of the calls; empty: native
}

func startChild(b *testing.B, spec string) *child {
	cmd := exec.Command(os.Args[0])
	cert := testTLS().Certificates[0]
	key, err := x509.MarshalECPrivateKey(cert.PrivateKey.(*ecdsa.PrivateKey))
	if err != nil {
		b.Fatal(err)
	}
	cmd.Env = append(os.Environ(), middleEnv+"="+spec, benchKeyEnv+"="+base64.StdEncoding.EncodeToString(key),
		benchCertEnv+"="+base64.StdEncoding.EncodeToString(cert.Certificate[0]))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	c := &child{cmd: cmd, in: in, out: bufio.NewScanner(out)}
	if !c.out.Scan() {
		b.Fatal("the middle did not start")
	}
	c.address = c.out.Text()
	b.Cleanup(func() { _ = in.Close(); _ = cmd.Wait() })
	return c
}

func (c *child) cpu() float64 {
	_, _ = io.WriteString(c.in, "\n")
	c.out.Scan()
	n, _ := strconv.ParseFloat(c.out.Text(), 64)
	return n
}

// measure loads a middle for d and returns CPU microseconds per call, calls per
// second, and the median time of a call.
func (c *child) measure(b *testing.B, conns, callers, size int, d time.Duration) (cpu, rate float64, p50 time.Duration) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	total := 0
	var all []time.Duration
	before := c.cpu()
	start := time.Now()
	for i := range conns {
		wg.Go(func() {
			nc, err := tls.Dial("tcp", c.address, testTLS())
			if err != nil {
				b.Error(err)
				return
			}
			defer nc.Close()
			kind := c.kind
			if kind == "" {
				kind = contentTypeGRPC
			}
			n, took, err := bareCaller(nc, kind, callers/conns, size, start.Add(d))
			if err != nil {
				b.Error(i, err)
			}
			mu.Lock()
			total += n
			all = append(all, took...)
			mu.Unlock()
		})
	}
	wg.Wait()
	elapsed := time.Since(start)
	used := c.cpu() - before
	if total == 0 {
		b.Fatal("no call succeeded")
	}
	slices.Sort(all)
	return used / float64(total), float64(total) / elapsed.Seconds(), all[len(all)/2]
}

func BenchmarkMiddle(b *testing.B) {
	for _, load := range []struct {
		name                           string
		conns, callers, size, messages int
	}{
		{"c1", 1, 1, 100, 1},
		{"c16", 4, 16, 100, 1},
		{"c64", 4, 64, 100, 1},
		{"64x1", 64, 64, 100, 1},
		{"64KiB", 4, 16, 64 << 10, 1},
		{"stream", 4, 16, 1 << 10, 500},
	} {
		for _, hops := range []int{1, 3} {
			b.Run(fmt.Sprintf("%s/hops=%d", load.name, hops), func(b *testing.B) {
				upstream := bareService(b, load.size, load.messages, false)
				relay := startChild(b, fmt.Sprintf("relay %d %s", hops, upstream))
				other := startChild(b, fmt.Sprintf("grpc %d %s", hops, upstream))
				size := load.size
				if load.messages > 1 {
					size = 10
				}
				for b.Loop() {
					var ours, theirs, rate, rate2, lat, lat2 []float64
					for range 3 {
						c, r, p := relay.measure(b, load.conns, load.callers, size, time.Second)
						ours, rate, lat = append(ours, c), append(rate, r), append(lat, float64(p.Microseconds()))
						c, r, p = other.measure(b, load.conns, load.callers, size, time.Second)
						theirs, rate2, lat2 = append(theirs, c), append(rate2, r), append(lat2, float64(p.Microseconds()))
					}
					n := float64(load.messages)
					b.ReportMetric(median(ours)/n, "cpu-µs/msg")
					b.ReportMetric(median(theirs)/n, "grpc-cpu-µs/msg")
					b.ReportMetric(median(ours)/median(theirs), "ratio-cpu")
					b.ReportMetric(median(rate), "calls/s")
					b.ReportMetric(median(rate2), "grpc-calls/s")
					b.ReportMetric(median(lat), "p50-µs")
					b.ReportMetric(median(lat2), "grpc-p50-µs")
					b.ReportMetric(0, "ns/op")
				}
			})
		}
	}
}

// BenchmarkWeb measures gRPC-Web over HTTP/2 beside native gRPC, through the same
// relay in the same run.
func BenchmarkWeb(b *testing.B) {
	for _, load := range []struct {
		name                           string
		conns, callers, size, messages int
	}{
		{"c64", 4, 64, 100, 1},
		{"64KiB", 4, 16, 64 << 10, 1},
		{"stream", 4, 16, 1 << 10, 500},
	} {
		b.Run(load.name, func(b *testing.B) {
			relay := startChild(b, "relay 1 "+bareService(b, load.size, load.messages, false))
			size := load.size
			if load.messages > 1 {
				size = 10
			}
			kinds := []string{contentTypeGRPC, contentTypeWeb, contentTypeWeb + "-text"}
			for b.Loop() {
				cpu := make([][]float64, len(kinds))
				for range 3 {
					for i, kind := range kinds {
						relay.kind = kind
						c, _, _ := relay.measure(b, load.conns, load.callers, size, time.Second)
						cpu[i] = append(cpu[i], c)
					}
				}
				n, native := float64(load.messages), median(cpu[0])
				b.ReportMetric(native/n, "native-cpu-µs/msg")
				b.ReportMetric(median(cpu[1])/native, "web-ratio-cpu")
				b.ReportMetric(median(cpu[2])/native, "text-ratio-cpu")
				b.ReportMetric(0, "ns/op")
			}
		})
	}
}

func median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}
