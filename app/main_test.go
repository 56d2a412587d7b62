package app

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"
)

var update = flag.Bool("update", false, "rewrite the golden files with what is printed now")

func TestMain(m *testing.M) {
	testscript.Main(leakChecked{m}, map[string]func(){"sallyport": sallyport})
}

// leakChecked fails the tests when one of them left a goroutine behind.
type leakChecked struct{ m *testing.M }

func (l leakChecked) Run() int {
	code := l.m.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	return code
}

// leaked is the exit status of a command that left a goroutine behind.
const leaked = 70

// sallyport is the program as scripts run it: main with a look at what was
// left behind.
func sallyport() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status := Main(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.Environ())
	stop()
	if err := goleak.Find(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		status = leaked
	}
	os.Exit(status)
}

// TestScripts runs testdata/script: the program as people use it.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("testdata", "script", "*.txtar"))
	if err != nil {
		t.Fatal(err)
	}
	if testing.Short() {
		// As CI runs the race detector, under which deriving a key from a
		// passphrase takes many seconds, and does one thing at a time.
		files = slices.DeleteFunc(files, func(f string) bool {
			return slices.Contains([]string{"ca_dir.txtar", "ca_import.txtar", "ca_sign.txtar", "lifecycle.txtar", "sealed.txtar"}, filepath.Base(f))
		})
	}
	testscript.Run(t, testscript.Params{
		Files:               files,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		UpdateScripts:       *update,
		Setup: func(e *testscript.Env) error {
			e.Setenv("SALLYPORT_DATA_DIR", filepath.Join(e.WorkDir, "data"))
			e.Setenv("SALLYPORT_HEALTH_ADDRESS", freePort())
			e.Setenv("XDG_STATE_HOME", filepath.Join(e.WorkDir, "state"))
			return nil
		},
		// A script that needs a tool is skipped without it, and fails where
		// nothing may be skipped: [!exec:openssl] [!required] skip.
		Condition: func(name string) (bool, error) {
			if name != "required" {
				return false, fmt.Errorf("unknown condition %q", name)
			}
			return os.Getenv("SALLYPORT_TEST_REQUIRE") == "all", nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"ports":  scriptPorts,
			"ready":  scriptReady,
			"status": scriptStatus,
			"until":  scriptUntil,
			"tohave": scriptMode,
		},
	})
}

// scriptPorts sets variables to free addresses: ports CORE PROXY.
func scriptPorts(ts *testscript.TestScript, _ bool, args []string) {
	for _, name := range args {
		ts.Setenv(name, freePort())
	}
}

// scriptReady waits until the health address answers ready: ready ADDRESS.
func scriptReady(ts *testscript.TestScript, neg bool, args []string) {
	last := "nothing"
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		status, body, err := probe("http://" + args[0] + "/readyz")
		if err != nil {
			body = err.Error()
		}
		last = body
		if status == http.StatusOK {
			return
		}
	}
	ts.Fatalf("%s is not ready: %s", args[0], last)
}

// probe is one GET on a connection of its own.
func probe(url string) (status int, body string, err error) {
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	res, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	return res.StatusCode, string(text), err
}

// scriptStatus checks an exit status exactly: status 2 sallyport gateway ….
// Its output is in the files out and err.
func scriptStatus(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec("sh", "-c", shellJoin(args[1:])+" >out 2>err; echo $? >code")
	ts.Check(err)
	ts.Logf("%s%s", ts.ReadFile("out"), ts.ReadFile("err"))
	if got := strings.TrimSpace(ts.ReadFile("code")); got != strconv.Itoa(want) {
		ts.Fatalf("exit status %s, want %d", got, want)
	}
}

// scriptUntil repeats a command until its output contains a text: until TEXT
// sallyport ….
func scriptUntil(ts *testscript.TestScript, _ bool, args []string) {
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		ts.Exec("sh", "-c", shellJoin(args[1:])+" >out 2>&1 || true")
		if strings.Contains(ts.ReadFile("out"), args[0]) {
			return
		}
	}
	ts.Fatalf("never contained %q:\n%s", args[0], ts.ReadFile("out"))
}

// scriptMode checks permissions: tohave 0600 FILE.
func scriptMode(ts *testscript.TestScript, _ bool, args []string) {
	info, err := os.Stat(ts.MkAbs(args[1]))
	ts.Check(err)
	if got := fmt.Sprintf("%04o", info.Mode().Perm()); got != args[0] {
		ts.Fatalf("%s has mode %s, want %s", args[1], got, args[0])
	}
}

// freePort is a loopback address that was free a moment ago and was not given
// before, below the range from which outgoing connections take theirs.
func freePort() string {
	ports.Lock()
	defer ports.Unlock()
	for {
		if ports.next == 0 || ports.next > 31900 {
			ports.next = 22000 + os.Getpid()%8000
		}
		ports.next++
		address := "127.0.0.1:" + strconv.Itoa(ports.next)
		if l, err := net.Listen("tcp", address); err == nil {
			l.Close()
			return address
		}
	}
}

var ports struct {
	sync.Mutex
	next int
}

// run is one command line in this process, away from this machine's own data.
func run(t *testing.T, environ []string, stdin string, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	environ = append([]string{"SALLYPORT_DATA_DIR=" + t.TempDir()}, environ...)
	status = Main(t.Context(), args, strings.NewReader(stdin), &out, &err, environ)
	return status, out.String(), err.String()
}
