package app

import (
	"fmt"
	"io"
	"strings"

	"github.com/alecthomas/kong"
)

// groups are the parts of the help, in order, each with when to reach for it.
var groups = []kong.Group{
	{Key: "try", Title: "try", Description: "does a call go through?"},
	{Key: "topology", Title: "topology", Description: "which gateways and proxies belong to this core, and who serves what"},
	{Key: "access", Title: "access", Description: "who may call which method"},
	{Key: "certificates", Title: "certificates", Description: "for callers and for services; components get theirs by themselves"},
	{Key: "firewall", Title: "firewall", Description: "the kernel lets only the peers to a gRPC port"},
	{Key: "look", Title: "look", Description: "what is going on"},
	{Key: "keep", Title: "keep", Description: "backups, settings and versions"},
}

// runGroups title the flags of running.
var runGroups = []kong.Group{
	{Key: "run", Title: "Every role"},
	{Key: "core and proxy", Title: "Core and proxy"},
	{Key: "core", Title: "Core"},
	{Key: "proxy", Title: "Proxy"},
	{Key: "proxy and gateway", Title: "Proxy and gateway"},
	{Key: "gateway", Title: "Gateway"},
}

const topText = `Sallyport puts private gRPC services on the internet, and connects them to each other,
without an inbound port into the private network: one binary, three roles, mutual TLS on every hop.

run — start here
  sallyport --role all                   core, proxy and gateway in this process, with a demo service
  sallyport --role core                  the authority: CA, registry, policy, routing
  sallyport --role proxy --join TOKEN    the public edge; the whole line comes from: proxy add
  sallyport --role gateway --join TOKEN  beside the services; the whole line comes from: gateway add
  sallyport --role ROLE --help           the flags of running
`

// topHelp is what --help prints: the verbs by group.
func (c *cli) topHelp(w io.Writer) {
	model := c.parser(&grammar{}, "sallyport", "").Model
	fmt.Fprint(w, topText)
	width := 0
	for _, verb := range model.Leaves(true) {
		width = max(width, len(usage(verb)))
	}
	for _, g := range groups {
		fmt.Fprintf(w, "\n%s — %s\n", g.Title, g.Description)
		for _, verb := range model.Leaves(true) {
			if group(verb) == g.Key {
				fmt.Fprintf(w, "  %-*s  %s\n", width, usage(verb), verb.Help)
			}
		}
	}
	fmt.Fprint(w, `
Every verb has an example: sallyport VERB --help. Verbs find the running core by --data-dir or
SALLYPORT_DATA_DIR. Data goes to stdout, messages to stderr; --json for scripts.
Exit status: 0 done, 1 failed, 2 asked wrongly.
`)
}

// usage is a verb with its arguments, without flags.
func usage(verb *kong.Node) string {
	words := []string{strings.TrimPrefix(verb.Path(), "sallyport ")}
	for _, a := range verb.Positional {
		word := strings.ToUpper(a.Name)
		if !a.Required {
			word = "[" + word + "]"
		}
		words = append(words, word)
	}
	return strings.Join(words, " ")
}

// group is the help group of a verb, its own or its noun's.
func group(n *kong.Node) string {
	for ; n != nil; n = n.Parent {
		if n.Group != nil {
			return n.Group.Key
		}
	}
	return ""
}
