package app

import (
	"context"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"sallyport/configs"
	"sallyport/firewall"
)

// runDirFlag is on every verb that changes the kernel's rules.
type runDirFlag struct {
	RunDir string `name:"run-dir" type:"path" placeholder:"DIR" help:"Where the lock lies and what waits for a confirmation (default /run/sallyport-firewall)."`
}

func (f runDirFlag) host() (firewall.Host, error) {
	nft, err := firewall.FindNFT()
	if err != nil {
		return firewall.Host{}, firewallProblem(err)
	}
	dir := f.RunDir
	if dir == "" {
		dir = firewall.RunDir
	}
	return firewall.Host{NFT: nft, Dir: dir, Guard: []string{"/proc/self/exe", "firewall", "guard"}}, nil
}

func roleWords(roles []configs.Role) string {
	words := make([]string, len(roles))
	for i, r := range roles {
		words[i] = string(r)
	}
	return strings.Join(words, " and ")
}

type firewallApply struct {
	Watch   bool          `help:"Stay, follow the file, and load the rules again within a second of a change. Needs --role."`
	Confirm time.Duration `placeholder:"DURATION" help:"Restore the former rules after so long, such as 60s, unless firewall confirm comes."`
	firewallSource
	runDirFlag
}

func (firewallApply) Help() string {
	return `When the kernel is to keep strangers from a gRPC port. As root, or with CAP_NET_ADMIN. nft checks the rules first; they replace their own table, whole and at once, and no other table is touched. The ports are taken from these flags and never from the file, which is the word of a service. What --watch does belongs into a unit; configs/examples has one.

Examples:

    sallyport firewall apply --role core --confirm 60s
    sallyport firewall apply --role core --from /run/sallyport/firewall.json --watch
    sallyport firewall apply --role proxy --peer 192.0.2.10`
}

func (v *firewallApply) Run(c *cli) error {
	if v.Confirm != 0 && (v.Confirm < time.Second || v.Confirm > time.Hour) {
		return wrong("firewall apply: --confirm "+v.Confirm.String()+" is no time to confirm in", "give 1s to 1h, such as 60s")
	}
	if v.Watch {
		return v.watch(c)
	}
	rules, err := v.rules(c)
	if err != nil {
		return err
	}
	host, err := v.host()
	if err != nil {
		return err
	}
	c.warned(rules)
	if v.Confirm == 0 {
		err = host.Apply(c.ctx, rules...)
	} else {
		err = host.ApplyUnlessLost(c.ctx, v.Confirm, rules...)
	}
	if err != nil {
		return firewallProblem(err)
	}
	for _, r := range rules {
		c.say("%s: loaded, %s.", r.Role(), r.Summary())
	}
	if v.Confirm != 0 {
		c.say("The former rules come back in %s, unless you say: %s", v.Confirm, shellJoin(v.again("confirm")))
	}
	return nil
}

// again is another verb for the same run directory.
func (f runDirFlag) again(verb string) []string {
	words := []string{"sallyport", "firewall", verb}
	if f.RunDir != "" {
		words = append(words, "--run-dir", f.RunDir)
	}
	return words
}

func (v *firewallApply) watch(c *cli) error {
	roles, err := v.roles()
	switch {
	case err != nil:
		return err
	case v.Confirm != 0:
		return wrong("firewall apply: --watch and --confirm do not go together", "try the rules with --confirm first, then watch")
	case len(v.Peer) > 0:
		return wrong("firewall apply: --watch follows a file, and peers are named", "leave out --peer, or --watch")
	case len(roles) == 0:
		return wrong("firewall apply: --watch does not say whose rules", "give --role core or --role proxy, so that the file of one cannot open the port of the other")
	}
	host, err := v.host()
	if err != nil {
		return err
	}
	w := firewall.Watcher{Host: host, File: v.file(c), Roles: roles, Ports: map[configs.Role][]uint16{},
		Every: 250 * time.Millisecond, Compare: 5 * time.Second,
		Say: func(bad bool, format string, args ...any) {
			if bad {
				format = "Warning: " + format
			}
			c.say(format, args...)
		}}
	for _, role := range roles {
		if w.Ports[role], err = v.ports(role, len(roles) == 1); err != nil {
			return err
		}
	}
	c.say("following %s for %s", w.File, roleWords(roles))
	return firewallProblem(w.Run(c.ctx))
}

type firewallConfirm struct{ runDirFlag }

func (firewallConfirm) Help() string {
	return `After firewall apply --confirm, when you can still reach this host: keeps the rules. If the time was over, the former rules are back, and this says so.

Example:

    sallyport firewall confirm`
}

func (v *firewallConfirm) Run(c *cli) error {
	host, err := v.host()
	if err != nil {
		return err
	}
	roles, err := host.Confirm(c.ctx)
	if err != nil {
		return firewallProblem(err)
	}
	c.say("Confirmed: the rules of %s stay.", roleWords(roles))
	return nil
}

type firewallRemove struct {
	Role []string `placeholder:"ROLE" help:"core, proxy, or both with a comma (default both)."`
	runDirFlag
}

func (firewallRemove) Help() string {
	return `When the kernel is to limit nothing any more. Removes the tables sallyport_core and sallyport_proxy and nothing else; the process goes on to refuse other addresses.

Example:

    sallyport firewall remove --role core`
}

func (v *firewallRemove) Run(c *cli) error {
	roles, err := firewallRoles(v.Role)
	if err != nil {
		return err
	}
	if roles == nil {
		roles = firewall.Roles()
	}
	host, err := v.host()
	if err != nil {
		return err
	}
	had, err := host.Remove(c.ctx, roles...)
	if err != nil {
		return firewallProblem(err)
	}
	if len(had) == 0 {
		c.say("The kernel has no rules of %s.", roleWords(roles))
		return nil
	}
	c.say("Removed the rules of %s.", roleWords(had))
	return nil
}

// firewallGuard is the process that apply --confirm starts before it loads.
type firewallGuard struct {
	Dir  string        `arg:""`
	Mark string        `arg:""`
	Wait time.Duration `arg:""`
}

func (v *firewallGuard) Run(c *cli) error {
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGPIPE)
	host, err := runDirFlag{v.Dir}.host()
	if err != nil {
		return err
	}
	ready := os.NewFile(3, "ready")
	return firewallProblem(host.Guarded(context.WithoutCancel(c.ctx), v.Mark, v.Wait, func() {
		ready.Write([]byte{1})
		ready.Close()
	}))
}
