package app

import (
	"context"
	"fmt"
	"strings"
	"time"

	"sallyport/roles/control"
)

// caRotate replaces root and intermediates, one step at a time.
type caRotate struct {
	Status      bool   `xor:"what" help:"Say how far it has come and what it waits for."`
	Skip        string `xor:"what" placeholder:"NAME" help:"Do not wait for that gateway or proxy: gateway/NAME, proxy/NAME, or NAME."`
	Rollback    bool   `xor:"what" help:"Go back to where it began; possible until the old CA is retired."`
	Compromised bool   `xor:"what" help:"The CA's key is in wrong hands: a fresh CA at once, and nothing of the old is trusted. Every component has to be added again."`
	Wait        period `placeholder:"7d" help:"How long to wait for those who are away before going on without them (default 7d)."`
	coreFlags
	jsonFlag
}

func (caRotate) Help() string {
	return `When the CA shall be replaced before it is due; at 5/6 of its life it happens by itself. First every component hears of the next root, then everything is issued anew, then the old root is retired; no call is dropped, and joining works throughout. A component that is away holds it up, named by --status, until --skip or --wait; it is led over when it comes back.

Examples:

    sallyport ca rotate
    sallyport ca rotate --status
    sallyport ca rotate --skip gateway/orders`
}

func (v *caRotate) Run(c *cli) error {
	request := &control.RotateCARequest{WaitSeconds: v.Wait.seconds()}
	switch {
	case v.Status:
		request.Action = control.RotateCARequest_ACTION_STATUS
	case v.Skip != "":
		request.Action = control.RotateCARequest_ACTION_SKIP
	case v.Rollback:
		request.Action = control.RotateCARequest_ACTION_ROLLBACK
	case v.Compromised:
		request.Action = control.RotateCARequest_ACTION_COMPROMISED
	}
	if v.Wait != 0 && request.Action != control.RotateCARequest_ACTION_UNSPECIFIED {
		return wrong("ca rotate: --wait belongs to beginning a rotation, or to changing how long the one under way waits", "give it alone: sallyport ca rotate --wait 3d")
	}
	return v.core(c, func(ctx context.Context, core control.AdminClient) (err error) {
		if v.Skip != "" {
			if request.Skip, err = componentNamed(ctx, core, "ca rotate: --skip", v.Skip); err != nil {
				return err
			}
		}
		r, err := core.RotateCA(ctx, request)
		if err != nil {
			return err
		}
		if v.JSON {
			err = c.printJSON(r)
		} else {
			c.rotation(r, time.Now())
		}
		for _, w := range r.GetWarnings() {
			c.say("%s", c.warning("attention: "+oneLine(w)))
		}
		switch request.Action {
		case control.RotateCARequest_ACTION_COMPROMISED:
			c.say("%s", c.warning("attention: every backup made until now holds the CA that is not trusted any more, and restored on a fresh host brings it back: make a new one (sallyport backup), and destroy those"))
		case control.RotateCARequest_ACTION_UNSPECIFIED:
			c.say("When it is done, make a new backup: on a fresh host, components do not believe the CA of one from before.")
		}
		return err
	})
}

// rotationPhases say what each phase means.
var rotationPhases = map[string]string{
	"steady":    "one root, which issues and is trusted",
	"published": "the next root is trusted too; the present one issues still",
	"activated": "the new root issues; the old one is trusted still",
}

// rotation prints how far a rotation has come.
func (c *cli) rotation(r *control.RotateCAResponse, now time.Time) {
	line := r.GetPhase()
	if means := rotationPhases[r.GetPhase()]; means != "" {
		line += ": " + means
	}
	if r.GetSinceUnix() != 0 {
		line += " (since " + ago(r.GetSinceUnix(), now) + ")"
	}
	fmt.Fprintln(c.out, strings.Replace(line, "since now", "just now", 1))
	for _, b := range r.GetBlockers() {
		fmt.Fprintln(c.out, "  waits for "+oneLine(b))
	}
	for _, s := range r.GetSkipped() {
		fmt.Fprintln(c.out, "  does not wait for "+oneLine(s))
	}
	if r.GetDeadlineUnix() != 0 && len(r.GetBlockers()) > 0 {
		fmt.Fprintln(c.out, "  waits until "+clock(r.GetDeadlineUnix())+" at most")
	}
	if r.GetNext() != "" {
		fmt.Fprintln(c.out, "next: "+oneLine(r.GetNext()))
	}
}

// componentNamed turns NAME into gateway/NAME or proxy/NAME.
func componentNamed(ctx context.Context, core control.AdminClient, what, name string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	list, err := core.ListComponents(ctx, &control.ListComponentsRequest{})
	if err != nil {
		return "", err
	}
	var found []string
	for _, m := range list.GetComponents() {
		if m.GetName() == name {
			found = append(found, m.GetRole()+"/"+m.GetName())
		}
	}
	switch len(found) {
	case 0:
		return "", failed(what+" "+name+": there is no gateway or proxy of that name", "see sallyport gateway ls and sallyport proxy ls")
	case 1:
		return found[0], nil
	}
	return "", wrong(what+" "+name+": there is a gateway and a proxy of that name", "say which: "+strings.Join(found, " or "))
}
