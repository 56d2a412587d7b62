package e2e

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/types/descriptorpb"

	"sallyport/roles/gateway/demo"
)

// webEcho is the demo service as a browser test needs it: it fails when told to.
type webEcho struct{ demo.UnimplementedEchoServer }

func (webEcho) Say(ctx context.Context, in *demo.SayRequest) (*demo.SayResponse, error) {
	if in.Text == "fail" {
		s, err := status.New(codes.FailedPrecondition, "it was told to fäil").WithDetails(&demo.SayRequest{Text: "the detail"})
		if err != nil {
			return nil, err
		}
		return nil, s.Err()
	}
	md, _ := metadata.FromIncomingContext(ctx)
	return &demo.SayResponse{Text: in.Text, Caller: strings.Join(md.Get("sallyport-caller"), ",")}, nil
}

func (webEcho) Count(in *demo.CountRequest, stream grpc.ServerStreamingServer[demo.SayResponse]) error {
	for i := range in.To % 1000 {
		if err := stream.Send(&demo.SayResponse{Text: fmt.Sprint(i + 1)}); err != nil {
			return err
		}
		time.Sleep(time.Duration(in.IntervalMillis) * time.Millisecond)
	}
	if in.To > 1000 {
		return status.Error(codes.ResourceExhausted, "no more numbers")
	}
	return nil
}

const webPolicy = `
[methods]
"/sallyport.demo.v1.Echo/Say"   = ["echo"]
"/sallyport.demo.v1.Echo/Count" = ["public"]

[[grant]]
apikey = "web"
permissions = ["echo"]
`

// TestBrowsers: Chromium on a page with the npm clients for gRPC-Web, over
// HTTP/2 and over HTTP/1.1, from origins that may call and one that may not.
func TestBrowsers(t *testing.T) {
	chromium, certutil := tool(t, "chromium", "chromium-browser", "google-chrome"), tool(t, "certutil")
	script := bundle(t)

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	upstream := grpc.NewServer()
	demo.RegisterEchoServer(upstream, webEcho{})
	reflection.Register(upstream)
	go upstream.Serve(listener)
	t.Cleanup(upstream.Stop)

	d := deploy(t, webPolicy)
	key := strings.TrimSpace(run(t, d.coreEnv, "apikey", "create", "web"))
	site := newSite(t, d.public, key, script)
	// As an operator would: the setting, and a restart.
	d.proxy.stop(t, 20*time.Second)
	d.proxy.env = append(d.proxy.env, "SALLYPORT_CORS_ORIGIN=http://127.0.0.1:"+site.port+",http://*.localhost:"+site.port)
	d.proxy.start(t)
	d.waitReady("proxy")
	d.addGateway("office", nil, "SALLYPORT_UPSTREAM=echo="+listener.Addr().String())
	d.waitRouted("sallyport.demo.v1.Echo", "office")

	home := t.TempDir()
	db := filepath.Join(home, ".pki", "nssdb")
	if err := os.MkdirAll(db, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"-N", "--empty-password"}, {"-A", "-t", "C,,", "-n", "sallyport", "-i", d.caFile}} {
		if out, err := exec.Command(certutil, append([]string{"-d", "sql:" + db}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("certutil %v: %v\n%s", args, err, out)
		}
	}
	want := map[string]string{"fetch: GET": "404", "fetch: with credentials": "unreadable", "fetch: without": "200"}
	for _, client := range []string{"connect-web", "grpc-web text", "grpc-web binary"} {
		say := func(name, code, text string) {
			if client != "connect-web" {
				code = map[string]string{"FailedPrecondition": "FAILED_PRECONDITION", "ResourceExhausted": "RESOURCE_EXHAUSTED", "Unauthenticated": "UNAUTHENTICATED"}[code]
			}
			want[client+": "+name] = code + ": " + text
		}
		want[client+": unary"] = "hello for apikey:web (request id)"
		want[client+": stream"] = "1 2 3 4 5 (request id)"
		want[client+": large"] = "300000 for apikey:web (request id)"
		say("error with details", "FailedPrecondition", "it was told to fäil [the detail]")
		say("error after messages", "ResourceExhausted", "no more numbers")
		say("no credentials", "Unauthenticated", "")
		say("bad credentials", "Unauthenticated", "")
	}
	for _, version := range []string{"HTTP/2", "HTTP/1.1"} {
		t.Run(strings.ReplaceAll(version, "/", ""), func(t *testing.T) {
			var flags []string
			if version == "HTTP/1.1" {
				flags = []string{"--disable-http2"}
			}
			before := d.webCalls(t, strings.TrimPrefix(version, "HTTP/"))
			got := site.visit(t, chromium, home, flags...)
			if n := d.webCalls(t, strings.TrimPrefix(version, "HTTP/")) - before; n < 24 {
				t.Errorf("%v calls came over %s", n, version)
			}
			main := got["http://127.0.0.1:"+site.port]
			for name, w := range want {
				if g := main[name]; g == "" || !strings.HasPrefix(g, w) {
					t.Errorf("%s: got %q, want %q", name, g, w)
				}
				if strings.Contains(name, "credentials") && strings.Contains(name, "web") && !strings.HasSuffix(main[name], "(request id)") {
					t.Errorf("%s: a denial without a request id: %q", name, main[name])
				}
			}
			for client, g := range got["http://app.localhost:"+site.port] {
				if g != "1 2 (request id)" {
					t.Errorf("from an origin below a domain, %s: %q", client, g)
				}
			}
			for client, g := range got["http://localhost:"+site.port] {
				if g == "" || strings.Contains(g, "1") || strings.Contains(g, "request id") || !strings.Contains(g, ": ") {
					t.Errorf("from an origin that may not call, %s: %q", client, g)
				}
			}
			if n := len(got["http://app.localhost:"+site.port]) + len(got["http://localhost:"+site.port]); n != 6 {
				t.Errorf("%d results of other origins: %v", n, got)
			}
		})
	}
}

// webCalls is how many calls by gRPC-Web have come over a version of HTTP.
func (d *deployment) webCalls(t *testing.T, version string) (n float64) {
	t.Helper()
	answer, err := http.Get("http://" + d.health["proxy"] + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	if _, rest, ok := strings.Cut(string(text), "sallyport_edge_web_calls_total{http=\""+version+"\"} "); ok {
		_, _ = fmt.Sscan(rest, &n)
	}
	return n
}

// bundle makes one script of the page and the npm packages that it needs.
func bundle(t *testing.T) []byte {
	t.Helper()
	root := nodeRoot(t)
	for _, p := range []string{"esbuild", "grpc-web", "@connectrpc/connect-web", "@bufbuild/protobuf"} {
		_, err := os.Stat(filepath.Join(root, "node_modules", p))
		need(t, err == nil, p+" below SALLYPORT_NODE_ROOT")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	out := filepath.Join(t.TempDir(), "page.js")
	cmd := exec.CommandContext(ctx, "node", filepath.Join(root, "node_modules", "esbuild", "bin", "esbuild"), "testdata/web/page.js", "--bundle", "--format=iife", "--log-level=error", "--outfile="+out)
	cmd.Env = append(os.Environ(), "NODE_PATH="+filepath.Join(root, "node_modules"))
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("esbuild: %v\n%s", err, text)
	}
	script, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return script
}

// site is the web site whose pages call the edge.
type site struct {
	port    string
	results chan map[string]map[string]string
}

func newSite(t *testing.T, edge, key string, script []byte) *site {
	t.Helper()
	set, err := proto.Marshal(&descriptorpb.FileDescriptorSet{File: []*descriptorpb.FileDescriptorProto{protodesc.ToFileDescriptorProto(demo.File_roles_gateway_demo_echo_proto)}})
	if err != nil {
		t.Fatal(err)
	}
	s := &site{results: make(chan map[string]map[string]string, 16)}
	mux := http.NewServeMux()
	page := func(only bool, more string) string {
		settings, _ := json.Marshal(map[string]any{"edge": "https://" + edge, "key": key, "descriptors": base64.StdEncoding.EncodeToString(set), "only": only})
		return fmt.Sprintf("<!doctype html><script>window.settings = %s</script><script src=/page.js></script>%s", settings, more)
	}
	mux.HandleFunc("/page.js", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/javascript; charset=utf-8")
		w.Write(script)
	})
	mux.HandleFunc("/other", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, page(true, "")) })
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, page(false, fmt.Sprintf("<iframe src=http://localhost:%[1]s/other></iframe><iframe src=http://app.localhost:%[1]s/other></iframe>", s.port)))
	})
	mux.HandleFunc("/result", func(_ http.ResponseWriter, r *http.Request) {
		var got struct {
			Origin  string
			Results map[string]string
		}
		if err := json.NewDecoder(r.Body).Decode(&got); err != nil {
			t.Error(err)
		}
		s.results <- map[string]map[string]string{got.Origin: got.Results}
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	_, s.port, _ = net.SplitHostPort(server.Listener.Addr().String())
	return s
}

// visit opens the page in a browser and returns what each origin's page posted.
func (s *site) visit(t *testing.T, chromium, home string, flags ...string) map[string]map[string]string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, chromium, append(flags, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--remote-debugging-port=0",
		"--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
		"--user-data-dir="+t.TempDir(), "http://127.0.0.1:"+s.port+"/")...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	log := &buffer{}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cancel()
	all := map[string]map[string]string{}
	for range 3 {
		select {
		case r := <-s.results:
			for origin, results := range r {
				all[origin] = results
			}
		case <-ctx.Done():
			t.Fatalf("the browser posted %v, and no more\n%s", all, log.String())
		}
	}
	return all
}
