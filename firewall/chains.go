package firewall

// The shape of a table: its chains and their rules, each as text and as nft
// lists it in JSON, so that what is loaded and what is compared stand together.

type chain struct {
	name  string
	hook  string // of a base chain, type filter, priority mangle, policy accept; empty: none
	rules []rule
}

type rule struct {
	why  string // the comment above it
	text string
	json string // its expressions as nft -j lists them
}

// mangle is the priority of the base chains: after conntrack (-200), so that
// replies are known, and before DNAT (-100), so that a published port shows the
// number and the source that the packet came with.
const mangle = -150

const (
	counterRefused = "refused" // packets of strangers to the ports
	counterStray   = "stray"   // packets from the ports of connections that conntrack does not know
)

// The sets of who was refused of late. They are bounded: what finds no place is
// dropped all the same, and only not named.
const (
	setRefused4, setRefused6 = "refused4", "refused6"
	refusedSize              = 64
	refusedFor               = "2m"
)

func (r Rules) counters() []string {
	if r.peers.any {
		return nil
	}
	return []string{counterRefused, counterStray}
}

// chains are those of the table. With any there is a hook that lets everything
// pass, so that the state is there to be seen, and compared.
func (r Rules) chains() []chain {
	enter := rule{"", "tcp dport @ports goto port",
		`[{"match":{"op":"==","left":{"payload":{"protocol":"tcp","field":"dport"}},"right":"@ports"}},{"goto":{"target":"port"}}]`}
	if r.peers.any {
		return []chain{
			{"port", "", []rule{{"any: nobody is refused", "accept", `[{"accept":null}]`}}},
			{"prerouting", "prerouting", []rule{enter}},
		}
	}
	return []chain{
		{"port", "", []rule{
			{"answers to a flow that this host began or masqueraded from this number",
				"ct direction reply accept",
				`[{"match":{"op":"==","left":{"ct":{"key":"direction"}},"right":"reply"}},{"accept":null}]`},
			{"this host itself",
				`iifname "lo" accept`,
				`[{"match":{"op":"==","left":{"meta":{"key":"iifname"}},"right":"lo"}},{"accept":null}]`},
			{"forwarded to another machine",
				"fib daddr type unicast accept",
				`[{"match":{"op":"==","left":{"fib":{"result":"type","flags":["daddr"]}},"right":"unicast"}},{"accept":null}]`},
			{"", "ip saddr @peers4 accept",
				`[{"match":{"op":"==","left":{"payload":{"protocol":"ip","field":"saddr"}},"right":"@peers4"}},{"accept":null}]`},
			{"", "ip6 saddr @peers6 accept",
				`[{"match":{"op":"==","left":{"payload":{"protocol":"ip6","field":"saddr"}},"right":"@peers6"}},{"accept":null}]`},
			{"who is refused is remembered for a while, so that it can be said",
				"update @refused4 { ip saddr }",
				`[{"set":{"op":"update","elem":{"payload":{"protocol":"ip","field":"saddr"}},"set":"@refused4"}}]`},
			{"", "update @refused6 { ip6 saddr }",
				`[{"set":{"op":"update","elem":{"payload":{"protocol":"ip6","field":"saddr"}},"set":"@refused6"}}]`},
			{"", `counter name "refused" drop`,
				`[{"counter":"refused"},{"drop":null}]`},
		}},
		{"prerouting", "prerouting", []rule{enter}},
		{"sent", "", []rule{
			{"", `oifname "lo" accept`,
				`[{"match":{"op":"==","left":{"meta":{"key":"oifname"}},"right":"lo"}},{"accept":null}]`},
			{"a flow that this host begins", "tcp flags syn accept",
				`[{"match":{"op":"in","left":{"payload":{"protocol":"tcp","field":"flags"}},"right":"syn"}},{"accept":null}]`},
			{"a connection that conntrack does not know: were it learned from this side,\n\t\t# the other side would count as the reply and pass. It goes on when a peer speaks.",
				`ct state new counter name "stray" drop`,
				`[{"match":{"op":"in","left":{"ct":{"key":"state"}},"right":"new"}},{"counter":"stray"},{"drop":null}]`},
		}},
		{"output", "output", []rule{
			{"", "tcp sport @ports goto sent",
				`[{"match":{"op":"==","left":{"payload":{"protocol":"tcp","field":"sport"}},"right":"@ports"}},{"goto":{"target":"sent"}}]`},
		}},
	}
}
