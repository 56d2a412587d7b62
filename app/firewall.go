package app

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"sallyport/configs"
	"sallyport/firewall"
)

// firewallNoun is the kernel's rules for the gRPC ports of core and proxy.
type firewallNoun struct {
	Render  firewallRender  `cmd:"" help:"Print the nftables rules that limit a gRPC port to its peers."`
	Apply   firewallApply   `cmd:"" help:"Load them, once or whenever the peers change."`
	Confirm firewallConfirm `cmd:"" help:"Keep the rules that apply --confirm has loaded."`
	Check   firewallCheck   `cmd:"" help:"Compare what the kernel has with what is meant."`
	Remove  firewallRemove  `cmd:"" help:"Remove them: the kernel limits nothing any more."`
	Guard   firewallGuard   `cmd:"" hidden:"" help:"What apply --confirm starts: restores the former rules."`
}

// firewallSource says which rules: whose peers, and which ports.
type firewallSource struct {
	Role          []string `placeholder:"ROLE" help:"core, proxy, or both with a comma (default what the file has)."`
	From          string   `type:"path" placeholder:"FILE" help:"The file in which core or proxy keeps its peers (default firewall.json in the data directory)."`
	Peer          []string `placeholder:"ADDRESS" help:"Instead of a file: an IP address, a CIDR, a DNS name, or any. Repeatable."`
	Port          []string `placeholder:"[ROLE=]PORT" help:"Where the role's gRPC port is (default core=50055, proxy=50051)."`
	PublishedPort []string `name:"published-port" placeholder:"[ROLE=]PORT" help:"A port of this host that is mapped to it, such as docker run -p publishes. Repeatable."`
	DataDir       string   `name:"data-dir" from:"env" type:"path" placeholder:"DIR" help:"Where firewall.json lies (SALLYPORT_DATA_DIR)."`
}

func (s *firewallSource) file(c *cli) string {
	switch {
	case s.From != "":
		return s.From
	case s.DataDir != "":
		return filepath.Join(s.DataDir, firewall.FileName)
	}
	return filepath.Join(configs.DataDir(c.environ, os.Getuid()), firewall.FileName)
}

// roles are those that were named, in order, each once; nil if none was.
func (s *firewallSource) roles() ([]configs.Role, error) {
	return firewallRoles(s.Role)
}

func firewallRoles(words []string) ([]configs.Role, error) {
	var roles []configs.Role
	for _, role := range firewall.Roles() {
		if slices.Contains(words, string(role)) {
			roles = append(roles, role)
		}
	}
	for _, w := range words {
		if !slices.Contains(roles, configs.Role(w)) {
			return nil, wrong(fmt.Sprintf("firewall: --role %q has no gRPC port to limit", w), "the roles are core and proxy")
		}
	}
	return roles, nil
}

// ports are the ports of a role: its own and the published ones.
func (s *firewallSource) ports(role configs.Role, alone bool) ([]uint16, error) {
	own, err := portsFor(role, alone, "--port", s.Port)
	if err != nil {
		return nil, err
	}
	if len(own) == 0 {
		own = []uint16{firewall.DefaultPort(role)}
	}
	published, err := portsFor(role, alone, "--published-port", s.PublishedPort)
	return append(own, published...), err
}

func portsFor(role configs.Role, alone bool, flag string, texts []string) (ports []uint16, err error) {
	for _, text := range texts {
		who, number, named := strings.Cut(text, "=")
		if !named {
			if number = who; !alone {
				return nil, wrong("firewall: "+flag+" "+text+" does not say which role has it", "write "+flag+" core="+text+" or "+flag+" proxy="+text)
			}
			who = string(role)
		}
		n, err := strconv.ParseUint(number, 10, 16)
		if _, bad := firewallRoles([]string{who}); err != nil || n == 0 || bad != nil {
			return nil, wrong(fmt.Sprintf("firewall: %s %q is no port", flag, text), "write a number from 1 to 65535, or core=50055")
		}
		if configs.Role(who) == role {
			ports = append(ports, uint16(n))
		}
	}
	return ports, nil
}

// data is the peers of each role, from flags or from the file.
func (s *firewallSource) data(c *cli) (firewall.Data, error) {
	if len(s.Peer) == 0 {
		d, err := firewall.ReadData(s.file(c))
		if err != nil {
			return d, failed(err.Error(), "core and proxy write that file: say where with --from FILE or --data-dir DIR\nor name the peers: --role core --peer 192.0.2.7")
		}
		return d, nil
	}
	roles, err := s.roles()
	switch {
	case err != nil:
		return firewall.Data{}, err
	case s.From != "":
		return firewall.Data{}, wrong("firewall: peers are named by --peer and by --from", "leave one of them out")
	case len(roles) != 1:
		return firewall.Data{}, wrong("firewall: whose peers are they?", "give --role core for the gateways' addresses, or --role proxy for core's")
	}
	set, err := firewall.ParsePeers(s.Peer)
	if err != nil {
		return firewall.Data{}, wrong("firewall: "+err.Error(), "")
	}
	if names := set.Names(); len(names) > 0 {
		ctx, cancel := context.WithTimeout(c.ctx, 10*time.Second)
		defer cancel()
		set, err = set.Resolve(ctx, func(ctx context.Context, name string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", name)
		})
		if err != nil {
			return firewall.Data{}, failed("firewall: "+err.Error(), "use an address, or look at this host's resolver")
		}
		c.say("%s was looked up now; these rules do not follow when its address changes.", strings.Join(names, ", "))
	}
	return firewall.Data{}.With(roles[0], &firewall.Entry{Peers: set}), nil
}

// rules are what was asked for, ready to be rendered.
func (s *firewallSource) rules(c *cli) ([]firewall.Rules, error) {
	roles, err := s.roles()
	if err != nil {
		return nil, err
	}
	d, err := s.data(c)
	if err != nil {
		return nil, err
	}
	if roles == nil {
		for _, role := range firewall.Roles() {
			if d.Of(role) != nil {
				roles = append(roles, role)
			}
		}
		if roles == nil {
			return nil, failed(s.file(c)+" says nothing of core or proxy", "it is written when one of them runs")
		}
	}
	var out []firewall.Rules
	for _, role := range roles {
		e := d.Of(role)
		if e == nil {
			return nil, failed(fmt.Sprintf("%s says nothing of %s", s.file(c), role), "it is written when that role runs; leave --role out for what is there")
		}
		ports, err := s.ports(role, len(roles) == 1)
		if err != nil {
			return nil, err
		}
		r, err := firewall.NewRules(role, *e, ports...)
		if err != nil {
			return nil, failed(err.Error(), "")
		}
		out = append(out, r)
	}
	return out, nil
}

// warned says what should be known about rules before they are in force.
func (c *cli) warned(rules []firewall.Rules) {
	for _, r := range rules {
		for _, w := range r.Warnings() {
			c.say("Warning, %s: %s.", r.Role(), w)
		}
	}
}

type firewallRender struct {
	Output string `short:"o" placeholder:"FILE" type:"path" help:"Write them there instead of stdout."`
	Force  bool   `help:"Replace FILE."`
	Format string `placeholder:"FORMAT" default:"nft" enum:"nft,json" help:"nft for nftables, json for the security groups of a cloud (default nft)."`
	firewallSource
}

func (firewallRender) Help() string {
	return `When you want to see the rules, manage nftables yourself, or have another firewall: nothing is loaded, and nothing has to run. The file replaces its own table and touches no other: nft -f FILE. Empty means nobody; that any address may connect has to be written, as any.

Examples:

    sallyport firewall render --role core -o /etc/nftables.d/sallyport.nft
    sallyport firewall render --role proxy --peer 192.0.2.10 --published-port 8051
    sallyport firewall render --role core --format json`
}

func (v *firewallRender) Run(c *cli) error {
	rules, err := v.rules(c)
	if err != nil {
		return err
	}
	var text []byte
	if v.Format == "json" {
		text, err = firewall.RenderJSON(rules...)
	} else {
		var s string
		s, err = firewall.Render(rules...)
		text = []byte(s)
	}
	if err != nil {
		return err
	}
	c.warned(rules)
	if v.Output == "" {
		_, err = c.out.Write(text)
		return err
	}
	if err := writeFiles(v.Force, file{v.Output, text, 0o644}); err != nil {
		return err
	}
	c.say("wrote %s", v.Output)
	return nil
}

// firewallProblem translates what keeps rules from being loaded.
func firewallProblem(err error) error {
	var late *firewall.Restored
	switch {
	case err == nil:
		return nil
	case errors.Is(err, firewall.ErrNoNFT):
		return failed("firewall: "+err.Error(), "install it: apt install nftables\nor render the rules for another firewall: sallyport firewall render --format json")
	case errors.Is(err, firewall.ErrNotPermitted), errors.Is(err, os.ErrPermission):
		return failed("firewall: "+err.Error(), "run it as root")
	case errors.Is(err, firewall.ErrUnconfirmed):
		return failed("firewall: nothing was changed: "+err.Error(), "keep them with: sallyport firewall confirm\nor wait until the former ones are back")
	case errors.Is(err, firewall.ErrWatched):
		return failed("firewall: nothing was changed: "+err.Error(), "stop it first, such as with: systemctl stop sallyport-firewall@core (or @proxy)")
	case errors.As(err, &late) && late.Err != "":
		return failed("firewall: "+late.Error(), "see what the kernel has: sallyport firewall check")
	case errors.As(err, &late):
		return failed("firewall: "+late.Error(), "look at why (sallyport firewall check), and apply again")
	case errors.Is(err, firewall.ErrNothingPending):
		return failed("firewall: "+err.Error(), "they do after: sallyport firewall apply --confirm 60s")
	}
	return failed("firewall: "+err.Error(), "")
}
