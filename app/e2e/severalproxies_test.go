package e2e

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"
)

// TestSeveralProxies: two proxies under names of their own, 500 open streams at
// each, SIGTERM to one: its streams finish, or are ended with UNAVAILABLE by the
// time it exits, and the other one takes calls all the time. There, a second
// SIGTERM does not wait.
func TestSeveralProxies(t *testing.T) {
	t.Parallel()
	d := deploy(t, interopPolicy)
	d.addGateway("office", nil, "SALLYPORT_UPSTREAM=interop="+startInteropServer(t))
	d.waitRouted("grpc.testing.TestService", "office")
	other, public := d.inviteProxy("dmz2")
	other.env = append(other.env, "SALLYPORT_DRAIN_TIMEOUT=4s")
	other.start(t)
	d.waitReady("dmz2")
	for _, name := range []string{"dmz1", "dmz2"} {
		d.waitState("proxy", name, "connected")
	}
	// An edge lets a connection have 250 streams.
	open := func(public string) (streams []testgrpc.TestService_FullDuplexCallClient) {
		for range 4 {
			client := d.clientAt(public)
			callsGoThrough(t, client, "at "+public)
			streams = append(streams, openStreams(t, client, 125)...)
		}
		return streams
	}
	staying, leaving := open(d.public), open(public)
	load := startLoad(d.clientAt(d.public), 4)
	late := d.clientAt(public)

	other.cmd.Process.Signal(syscall.SIGTERM)
	eventually(t, 15*time.Second, "the proxy says that it drains", func() error {
		resp, err := http.Get("http://" + d.health["dmz2"] + "/readyz")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if body, _ := io.ReadAll(resp.Body); resp.StatusCode == 200 {
			return errors.New(string(body))
		}
		return nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	_, err := late.EmptyCall(ctx, &testgrpc.Empty{})
	cancel()
	wantStatus(t, "a new call at the proxy that drains", err, codes.Unavailable)

	// Half of its streams come to their own end meanwhile, the rest do not.
	var all sync.WaitGroup
	for i, s := range leaving {
		all.Go(func() {
			finishes := i%2 == 0
			if finishes {
				if err := exchange(s); err != nil {
					t.Errorf("stream %d, in the drain: %v", i, err)
				}
				s.CloseSend()
			}
			_, err := s.Recv()
			switch state := status.Convert(err); {
			case finishes && errors.Is(err, io.EOF):
			case !finishes && state.Code() == codes.Unavailable && strings.Contains(state.Message(), "proxy dmz2"):
			default:
				t.Errorf("stream %d, which finishes: %v, ended with %v", i, finishes, err)
			}
		})
	}
	all.Wait()
	select {
	case <-other.done:
		if !other.state.Success() {
			t.Errorf("the proxy ended with %v", other.state)
		}
	case <-time.After(20 * time.Second):
		t.Error("all its streams have ended, and the proxy has not")
	}
	for i, s := range staying {
		if err := exchange(s); err != nil {
			t.Fatalf("stream %d at the other proxy: %v", i, err)
		}
	}
	load.stop()
	load.wantAll(t, "calls at the other proxy")
	d.waitState("proxy", "dmz2", "lost")

	d.proxy.cmd.Process.Signal(syscall.SIGTERM)
	eventually(t, 15*time.Second, "the other proxy drains", func() error {
		if !strings.Contains(d.proxy.log.String(), "draining") {
			return errors.New("its log does not say so")
		}
		return nil
	})
	select {
	case <-d.proxy.done:
		t.Error("it did not wait for 500 open streams")
	default:
	}
	time.Sleep(100 * time.Millisecond) // or it is taken for an echo of the first
	d.proxy.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-d.proxy.done:
		if d.proxy.state.ExitCode() != 1 {
			t.Errorf("ended with %v", d.proxy.state)
		}
	case <-time.After(20 * time.Second): // of 30 that the drain has
		t.Error("the second signal was waited with")
	}
}
