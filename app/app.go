// Package app is the command line of Sallyport.
//
// "sallyport --role ROLE" runs roles; everything else is a noun and a verb, one
// file per noun. Verbs that need the running core speak to it over admin.sock
// in its data directory, as the operator's own uid; the others work with
// nothing running. Data goes to stdout and messages to stderr, so that output
// can be piped; --json is there wherever data is printed. The exit status is 0
// when it was done, 1 when it failed, 2 when it was asked wrongly. A message
// says what happened, to what, and what to do next.
//
// Nothing in here is global: Main is handed its arguments, its streams and its
// environment, and returns the exit status.
package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// grammar is every verb, in the order and the groups of the help.
type grammar struct {
	Call     callVerb     `cmd:"" group:"try" help:"Call a method through the edge: a small gRPC client over reflection."`
	Gateway  gatewayNoun  `cmd:"" group:"topology" help:"The gateways beside private services."`
	Proxy    proxyNoun    `cmd:"" group:"topology" help:"The proxies at the public edge."`
	Service  serviceNoun  `cmd:"" group:"topology" help:"The services that gateways announce."`
	Policy   policyNoun   `cmd:"" group:"access" help:"Who may call which method."`
	APIKey   apikeyNoun   `cmd:"" name:"apikey" group:"access" help:"Keys for callers without a certificate."`
	Cert     certNoun     `cmd:"" group:"certificates" help:"Certificates for callers and services."`
	CA       caNoun       `cmd:"" name:"ca" group:"certificates" help:"The embedded certificate authority."`
	Firewall firewallNoun `cmd:"" group:"firewall" help:"Which addresses the kernel lets to the gRPC ports."`
	Status   statusVerb   `cmd:"" group:"look" help:"What is connected, served and in flight."`
	Audit    auditNoun    `cmd:"" group:"look" help:"What was joined, issued, changed and denied."`
	Health   healthVerb   `cmd:"" group:"look" help:"Whether the process on this host is ready; for probes."`
	Backup   backupVerb   `cmd:"" group:"keep" help:"Write the whole state of core into one encrypted file, while it runs."`
	Restore  restoreVerb  `cmd:"" group:"keep" help:"Put a backup into a data directory."`
	Config   configNoun   `cmd:"" group:"keep" help:"The settings this machine would run with."`
	Version  versionVerb  `cmd:"" group:"keep" help:"The version of this binary."`
}

// cli is what every verb may use of the outside world.
type cli struct {
	ctx     context.Context
	in      io.Reader
	out     io.Writer
	err     io.Writer
	environ []string
	asked   map[string]string // secrets that were typed in, by prompt
}

// env returns a variable of the environment that Main was given.
func (c *cli) env(name string) string {
	for _, kv := range slices.Backward(c.environ) {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			return v
		}
	}
	return ""
}

// say writes a message, never data.
func (c *cli) say(format string, args ...any) {
	fmt.Fprintf(c.err, format+"\n", args...)
}

// exit carries kong's wish to leave (after --help) out of its parser.
type exit int

// Main runs one command line and returns its exit status. When ctx ends, roles
// drain and verbs stop.
func Main(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer, environ []string) (status int) {
	defer func() {
		switch e := recover().(type) {
		case nil:
		case exit:
			status = int(e)
		default:
			panic(e)
		}
	}()
	c := &cli{ctx: ctx, in: stdin, out: stdout, err: stderr, environ: environ}
	return c.report(c.dispatch(args))
}

// dispatch decides between running roles and a verb. A command line that
// begins with a flag, or is empty where the environment names roles, runs.
func (c *cli) dispatch(args []string) error {
	switch {
	case len(args) == 0 && c.env("SALLYPORT_ROLE") == "" && c.env("SALLYPORT_CONFIG") == "":
		c.topHelp(c.err)
		return wrong("nothing was asked for", "start with: sallyport --role all")
	case len(args) == 0:
		return c.runRoles(args)
	case args[0] == "--help" || args[0] == "-h" || args[0] == "help" && len(args) == 1:
		c.topHelp(c.out)
		return nil
	case args[0] == "help":
		return c.runVerb(append(slices.Clone(args[1:]), "--help"))
	case args[0] == "--version":
		return c.runVerb([]string{"version"})
	case strings.HasPrefix(args[0], "-"):
		return c.runRoles(args)
	}
	return c.runVerb(args)
}

// runVerb parses and runs a noun and its verb.
func (c *cli) runVerb(args []string) error {
	parser := c.parser(&grammar{}, "sallyport", "Private gRPC services on the internet, without an inbound port.", kong.Resolvers(environResolver{c}))
	k, err := parser.Parse(args)
	if err != nil {
		return c.parseError(err)
	}
	return k.Run(c)
}

// parser builds a kong parser that writes to our streams and leaves through
// Main.
func (c *cli) parser(into any, name, description string, more ...kong.Option) *kong.Kong {
	options := append([]kong.Option{
		kong.Name(name),
		kong.Description(description),
		kong.Writers(c.out, c.err),
		kong.Exit(func(status int) { panic(exit(status)) }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100}),
		kong.ExplicitGroups(groups),
	}, more...)
	return kong.Must(into, options...)
}

// parseError says what was wrong with a command line, and where its help is.
func (c *cli) parseError(err error) error {
	var p *kong.ParseError
	var u *problem
	if errors.As(err, &u) {
		return err
	}
	help := "sallyport --help"
	if errors.As(err, &p) && p.Context != nil {
		if at := p.Context.Selected(); at != nil {
			help = at.FullPath() + " --help"
		} else if cmd := p.Context.Command(); cmd != "" {
			help = "sallyport " + cmd + " --help"
		}
	}
	what := strings.Replace(err.Error(), "unexpected argument ", "unknown verb or argument ", 1)
	return wrong(what, "see "+help)
}

// report prints an error once and turns it into the exit status.
func (c *cli) report(err error) int {
	if err == nil {
		return 0
	}
	var quiet quietly
	if errors.As(err, &quiet) {
		return int(quiet)
	}
	list := &problems{}
	if !errors.As(err, &list) {
		list.all = []*problem{asProblem(err)}
	}
	status := 1
	for _, p := range list.all {
		c.say("sallyport: %s", masked(p.What))
		for line := range strings.Lines(masked(p.Remedy)) {
			c.say("  → %s", strings.TrimRight(line, "\n"))
		}
		if p.AskedWrongly {
			status = 2
		}
	}
	return status
}

// environResolver fills verbs' flags that carry the tag from:"env" from
// SALLYPORT_ and the flag's name in capitals. (kong's own env tag reads the
// process environment, not ours.)
type environResolver struct{ c *cli }

func (environResolver) Validate(*kong.Application) error { return nil }

func (r environResolver) Resolve(_ *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
	if flag.Tag.Get("from") != "env" {
		return nil, nil
	}
	if v := r.c.env(variable(flag.Name)); v != "" {
		return v, nil
	}
	return nil, nil
}

// variable is the environment variable of a flag.
func variable(flag string) string {
	return "SALLYPORT_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}
