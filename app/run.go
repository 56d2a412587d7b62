package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"sallyport/configs"
	"sallyport/firewall"
	"sallyport/roles/core"
	"sallyport/roles/gateway"
	"sallyport/roles/proxy"
)

// runHelp is shown by --role ROLE --help.
const runHelp = `Runs one or more roles until SIGTERM or SIGINT, which drain: new calls are refused, calls under way finish (--drain-timeout). A second signal exits at once. SIGHUP reads the settings again.

Every flag is also an environment variable (SALLYPORT_GRPC_ADDRESS) and a key of the settings file (grpc_address); a flag wins over the environment, the environment over the file.`

// runRoles is sallyport --role ROLE.
func (c *cli) runRoles(args []string) error {
	var flags configs.Flags
	parser := c.parser(&flags, "sallyport --role ROLE", runHelp, kong.ExplicitGroups(runGroups))
	if _, err := parser.Parse(args); err != nil {
		return c.runParseError(args, err)
	}
	settings, _, err := c.settings(flags)
	if err != nil {
		return err
	}
	p := &process{c: c, flags: flags, settings: settings, metrics: newMetrics()}
	p.log = c.logger(settings.Process, &p.level)
	for _, w := range settings.Warnings {
		p.log.Warn(w)
	}
	return p.run(c.ctx)
}

// runParseError helps whoever wrote flags before a verb.
func (c *cli) runParseError(args []string, err error) error {
	nouns := map[string]bool{}
	for _, n := range c.parser(&grammar{}, "sallyport", "").Model.Children {
		nouns[n.Name] = true
	}
	for i, a := range args {
		if nouns[a] {
			rest := append(append([]string{}, args[i:]...), args[:i]...)
			return wrong(err.Error(), "flags come after the verb: sallyport "+shellJoin(rest))
		}
	}
	return wrong(err.Error(), "see sallyport --role ROLE --help for the flags of running, sallyport --help for the verbs")
}

// process is roles that run together.
type process struct {
	c        *cli
	flags    configs.Flags
	settings *configs.Settings
	level    slog.LevelVar
	log      *slog.Logger
	metrics  *prometheus.Registry
	ready    *readiness
	memory   *memory
	coreUp   atomic.Pointer[core.Info] // the running core, once it is up
}

// run starts the health listener and the roles, and waits for their end. The
// edge drains before what it relays to, so that calls under way find their
// way; the health listener answers until the last role is gone.
func (p *process) run(ctx context.Context) error {
	names := make([]string, 0, len(p.settings.Roles))
	for _, r := range p.settings.Roles {
		names = append(names, string(r))
	}
	p.ready = newReadiness(names)
	p.memory = newMemory(p.settings.Process.MemoryBudget, p.metrics)
	health, err := listenHealth(ctx, p.settings.Process.HealthAddress, p.ready, p.metrics, p.log)
	if err != nil {
		return err
	}
	watching, stopWatching := context.WithCancel(context.WithoutCancel(ctx))
	watchers, watching := errgroup.WithContext(watching)
	watchers.Go(func() error { return health.Run(watching) })
	watchers.Go(func() error { p.reloads(watching); return nil })
	watchers.Go(func() error { return p.memory.run(watching) })
	err = p.runAll(ctx)
	stopWatching()
	if lost := watchers.Wait(); err == nil {
		err = lost
	}
	if err == nil {
		p.log.Info("stopped")
	}
	return err
}

// runAll runs the roles in one group: when one fails, all end.
func (p *process) runAll(ctx context.Context) error {
	group, alive := errgroup.WithContext(context.WithoutCancel(ctx))
	inner, stopInner := context.WithCancel(alive)
	edge, stopEdge := context.WithCancel(alive)
	defer stopInner()
	defer stopEdge()
	s := p.settings
	files := p.firewallFiles()

	coreUp := make(chan core.Info, 1)
	if s.Core != nil {
		group.Go(func() error {
			return p.ended(inner, "core", core.Run(inner, *s.Core, core.Deps{
				Log: p.logOf("core"), Version: version(), Registry: p.metrics, Budget: p.memory.calls, Ready: p.readyOf("core"),
				Started: func(i core.Info) { p.coreUp.Store(&i); coreUp <- i }, Firewall: files[configs.RoleCore],
			}))
		})
	}
	edgeDone := make(chan struct{})
	adopted := p.ready.hold("core", "starting")
	group.Go(func() error {
		defer close(edgeDone)
		var up *core.Info
		if s.Core != nil {
			select {
			case i := <-coreUp:
				up = &i
			case <-edge.Done():
				return nil
			}
		}
		return p.runOthers(edge, inner, group, up, adopted, files[configs.RoleProxy])
	})
	group.Go(func() error {
		select {
		case <-ctx.Done():
		case <-alive.Done():
			return nil
		}
		p.log.Info("draining", "at_most", s.Process.DrainTimeout.String())
		p.ready.drain()
		stopEdge()
		<-edgeDone
		stopInner()
		return nil
	})
	if s.Process.All {
		group.Go(func() error { p.banner(edge); return nil })
	}
	return group.Wait()
}

// runOthers starts what may need the core of this process, and returns when
// the proxy has ended.
func (p *process) runOthers(edge, inner context.Context, group *errgroup.Group, up *core.Info, adopted func(), file *firewall.File) error {
	s := p.settings
	if up != nil {
		if err := p.adoptOwn(edge, *up); err != nil {
			return err
		}
		adopted()
		group.Go(func() error { return p.followRoots(inner, core.Admin(*up)) })
	}
	if s.Gateway != nil {
		group.Go(func() error {
			return p.ended(inner, "gateway", gateway.Run(inner, *s.Gateway, gateway.Deps{
				Log: p.logOf("gateway"), Version: version(), Registry: p.metrics, Budget: p.memory.calls, Ready: p.readyOf("gateway"),
				Started: func(i gateway.Info) {
					p.logOf("gateway").Info("gateway is up", "name", i.Name, "core", i.Core, "serves", servedBy(s.Gateway))
				},
			}))
		})
	}
	if s.Proxy == nil {
		return nil
	}
	return p.ended(edge, "proxy", proxy.Run(edge, *s.Proxy, proxy.Deps{
		Log: p.logOf("proxy"), Version: version(), Registry: p.metrics, Budget: p.memory.calls, Ready: p.readyOf("proxy"), Firewall: file,
		Started: func(i proxy.Info) {
			p.logOf("proxy").Info("proxy is up", "public", i.PublicAddress, "grpc", i.GRPCAddress)
		},
	}))
}

// firewallFiles are the data files that the roles write, one shared where both
// write the same.
func (p *process) firewallFiles() map[configs.Role]*firewall.File {
	paths := map[configs.Role]string{}
	if s := p.settings.Core; s != nil {
		paths[configs.RoleCore] = s.FirewallFile
	}
	if s := p.settings.Proxy; s != nil {
		paths[configs.RoleProxy] = s.FirewallFile
	}
	files := map[configs.Role]*firewall.File{}
	if c, e := paths[configs.RoleCore], paths[configs.RoleProxy]; c == e && c != "" {
		files[configs.RoleCore] = firewall.NewFile(c, configs.RoleCore, configs.RoleProxy)
		files[configs.RoleProxy] = files[configs.RoleCore]
		return files
	}
	for role, path := range paths {
		if path != "" {
			files[role] = firewall.NewFile(path, role)
		}
	}
	return files
}

// ended is how a role's end counts: one that was not asked to end has failed.
func (p *process) ended(ctx context.Context, role string, err error) error {
	p.ready.set(role, errors.New("it has ended"))
	switch {
	case ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)):
		return nil
	case err == nil:
		return failed(role+" ended by itself", "look at the log above")
	}
	why := *asProblem(err)
	if why.Remedy == "" && errors.Is(err, syscall.EADDRINUSE) {
		why.Remedy = "another process has the port: choose another one with that flag"
	}
	return &problem{What: role + ": " + why.What, Remedy: why.Remedy, cause: err}
}

// logOf marks the lines of a role where there are several.
func (p *process) logOf(role string) *slog.Logger {
	if len(p.settings.Roles) == 1 {
		return p.log
	}
	return p.log.With("part", role)
}

// readyOf reports a role's readiness. The log says when it comes and when it
// goes; why it has not come yet, roles say themselves.
func (p *process) readyOf(role string) func(error) {
	log := p.logOf(role)
	return func(err error) {
		was, is := p.ready.set(role, err)
		switch {
		case !was && is:
			log.Info("ready")
		case was && !is:
			log.Info("not ready", "why", err.Error())
		}
	}
}

// reloads reads the settings again at SIGHUP. What can change while running
// does; for the rest the log says that a restart is needed. Mistakes leave
// everything as it is. (Core watches its policy file by itself.)
func (p *process) reloads(ctx context.Context) {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	for {
		select {
		case <-ctx.Done():
			return
		case <-hup:
		}
		next, _, err := p.c.settings(p.flags)
		if err != nil {
			p.log.Error("the settings are kept as they were", "why", err)
			continue
		}
		p.level.Set(next.Process.LogLevel)
		if up := p.coreUp.Load(); up != nil && next.Core != nil {
			changed, err := up.Reload(*next.Core)
			if err != nil {
				p.log.Error("a changed secret is not in force", "why", err)
			}
			if len(changed) > 0 {
				p.log.Info("changed secrets are in force", "of", changed)
			}
		}
		if changed := p.changed(next); len(changed) > 0 {
			p.log.Warn("some settings take effect at the next start only", "of", changed)
		}
		p.log.Info("settings were read again", "log_level", next.Process.LogLevel.String())
	}
}

// changed names the parts of the settings that differ and need a restart.
func (p *process) changed(next *configs.Settings) []string {
	var parts []string
	differ := func(name string, a, b any) {
		if fmt.Sprintf("%+v", a) != fmt.Sprintf("%+v", b) {
			parts = append(parts, name)
		}
	}
	was, is := p.settings.Process, next.Process
	was.LogLevel = is.LogLevel
	differ("process", was, is)
	differ("core", deref(p.settings.Core), deref(next.Core))
	// A token that was spent at the start is nobody's change.
	if p.settings.Proxy != nil && next.Proxy != nil {
		next.Proxy.Join = p.settings.Proxy.Join
	}
	if p.settings.Gateway != nil && next.Gateway != nil {
		next.Gateway.Join = p.settings.Gateway.Join
		next.Gateway.Core = p.settings.Gateway.Core
	}
	differ("proxy", deref(p.settings.Proxy), deref(next.Proxy))
	differ("gateway", deref(p.settings.Gateway), deref(next.Gateway))
	return parts
}

func deref[T any](p *T) any {
	if p == nil {
		return nil
	}
	return *p
}

// dataDir is where the process keeps what clients on this host need.
func (p *process) dataDir() string {
	switch s := p.settings; {
	case s.Core != nil:
		return s.Core.DataDir
	case s.Proxy != nil:
		return s.Proxy.DataDir
	default:
		return s.Gateway.DataDir
	}
}

// identityDir is where a component keeps its identity.
func identityDir(dataDir, role string) string { return filepath.Join(dataDir, role) }

// bannerPatience is how long the banner waits for the roles to be ready.
const bannerPatience = 10 * time.Second
