package app

import (
	"fmt"
	"net/netip"

	"sallyport/firewall"
)

type firewallCheck struct {
	firewallSource
	jsonFlag
}

func (firewallCheck) Help() string {
	return `When you want to know that the kernel does what is meant. Compares each table with the rules that the same flags would load and prints every difference in a line, then what was refused since they were loaded. Exit status 1 if there is a difference. As root, or with CAP_NET_ADMIN.

Example:

    sallyport firewall check --role core --from /run/sallyport/firewall.json`
}

func (v *firewallCheck) Run(c *cli) error {
	rules, err := v.rules(c)
	if err != nil {
		return err
	}
	nft, err := firewall.FindNFT()
	if err != nil {
		return firewallProblem(err)
	}
	list, differences := []object{}, 0
	for _, r := range rules {
		k, err := nft.Kernel(c.ctx, r.Role())
		if err != nil {
			return firewallProblem(err)
		}
		drift := r.Drift(k)
		differences += len(drift)
		refused, stray := k.CounterOf()
		list = append(list, object{{"role", r.Role()}, {"table", firewall.Table(r.Role())}, {"ports", r.Ports()},
			{"same", len(drift) == 0}, {"differences", append([]string{}, drift...)}, {"refused", refused}, {"stray", stray}, {"refused_lately", append([]netip.Addr{}, k.Refused()...)}})
		if v.JSON {
			continue
		}
		for _, line := range drift {
			fmt.Fprintln(c.out, line)
		}
		if len(drift) == 0 {
			fmt.Fprintf(c.out, "%s: as meant, %s\n", r.Role(), r.Summary())
		}
		if k != nil {
			fmt.Fprintf(c.out, "%s: refused %d packets, %d bytes; stray %d packets, %d bytes\n", r.Role(), refused.Packets, refused.Bytes, stray.Packets, stray.Bytes)
			if list := k.Refused(); len(list) > 0 {
				fmt.Fprintf(c.out, "%s: refused of late: %s\n", r.Role(), firewall.Listed(list))
			}
		}
	}
	if v.JSON {
		if err := c.printJSON(list); err != nil {
			return err
		}
	}
	if differences > 0 {
		return quietly(1)
	}
	return nil
}
