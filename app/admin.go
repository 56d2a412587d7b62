package app

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"sallyport/configs"
	"sallyport/roles/control"
)

// adminTimeout bounds a verb; core answers from its own state.
const adminTimeout = 30 * time.Second

// coreFlags are on every verb that asks the running core.
type coreFlags struct {
	DataDir string `name:"data-dir" from:"env" placeholder:"DIR" help:"Data directory of the running core (SALLYPORT_DATA_DIR)."`
}

// dir is the data directory that the verb looks in.
func (f coreFlags) dir(c *cli) string {
	if f.DataDir != "" {
		return f.DataDir
	}
	return configs.DataDir(c.environ, os.Getuid())
}

// core asks the running core: connects to its admin socket, lets ask speak
// to it and translates what comes back.
func (f coreFlags) core(c *cli, ask func(context.Context, control.AdminClient) error) error {
	return f.coreFor(c, adminTimeout, ask)
}

// coreFor is core for verbs that may take longer.
func (f coreFlags) coreFor(c *cli, atMost time.Duration, ask func(context.Context, control.AdminClient) error) error {
	socket := filepath.Join(f.dir(c), "admin.sock")
	if err := reachable(socket); err != nil {
		return err
	}
	conn, err := grpc.NewClient("passthrough:///core",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithNoProxy(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return dialSocket(ctx, socket) }))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(c.ctx, atMost)
	defer cancel()
	return fromCore(ask(ctx, control.NewAdminClient(conn)))
}

// coreAway is the problem that there is no running core to ask.
type coreAway struct{ *problem }

func (a *coreAway) Unwrap() error { return a.problem }

// reachable says, before gRPC wraps it, why nobody answers at a socket.
func reachable(socket string) error {
	nc, err := dialSocket(context.Background(), socket)
	if err == nil {
		return nc.Close()
	}
	remedy := "start it with: sallyport --role core\nor say where its data directory is: --data-dir DIR or SALLYPORT_DATA_DIR"
	switch {
	case errors.Is(err, fs.ErrNotExist):
		const system = "/var/lib/sallyport/admin.sock"
		if _, err := os.Stat(system); socket != system && !errors.Is(err, fs.ErrNotExist) {
			remedy = "one may run as a system service: try with sudo, or --data-dir /var/lib/sallyport\n" + remedy
		}
		return &coreAway{failed("core is not running: there is no "+socket, remedy)}
	case errors.Is(err, syscall.ECONNREFUSED):
		return &coreAway{failed("core is not running: nobody answers at "+socket, remedy)}
	case errors.Is(err, fs.ErrPermission):
		return failed("core's socket "+socket+" belongs to somebody else", "run this as the user that core runs as, or as root")
	}
	return failed(fmt.Sprintf("core's socket %s: %v", socket, err), remedy)
}

// dialSocket connects to a unix socket whose path may be longer than the
// kernel takes in an address: then through its directory's descriptor.
func dialSocket(ctx context.Context, path string) (net.Conn, error) {
	var d net.Dialer
	if len(path) < 104 {
		return d.DialContext(ctx, "unix", path)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return d.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)))
}
