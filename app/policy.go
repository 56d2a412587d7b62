package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"sallyport/roles/control"
	"sallyport/roles/policy"
)

// policyNoun is who may call which method.
type policyNoun struct {
	Check   policyCheck   `cmd:"" help:"Check a policy file, and compare it with the announced services."`
	Apply   policyApply   `cmd:"" help:"Put a policy file into force."`
	Show    policyShow    `cmd:"" help:"Print the policy in force."`
	Explain policyExplain `cmd:"" help:"Say which row and grant decide about a caller and a method."`
}

type policyCheck struct {
	File   string `arg:"" optional:"" help:"The policy file; - is stdin. Default: the policy in force."`
	Strict bool   `help:"A row that no service has is an error."`
	coreFlags
	jsonFlag
}

func (policyCheck) Help() string {
	return `Before a policy is applied. A mistake in the file is found with nothing running; with the running core its rows are compared with what gateways announce: a row that no service has (a typo?) is a warning, a method without a row is listed as denied.

Example:

    sallyport policy check policy.toml`
}

func (v *policyCheck) Run(c *cli) error {
	var text []byte
	if v.File != "" {
		var err error
		if text, err = readPolicy(c, v.File); err != nil {
			return err
		}
	}
	err := v.core(c, func(ctx context.Context, core control.AdminClient) error {
		found, err := core.CheckPolicy(ctx, &control.CheckPolicyRequest{Policy: text, Strict: v.Strict})
		if err != nil {
			return err
		}
		return c.checked("policy check", v.JSON, found)
	})
	var away *coreAway
	switch {
	case !errors.As(err, &away) || v.File == "":
		return err
	case v.Strict:
		return failed("policy check: with --strict the announced services have to be known, and "+away.What, "leave --strict out to check the file alone\n"+away.Remedy)
	case v.JSON:
		return c.printJSON(&control.CheckPolicyResponse{})
	}
	c.say("%s: well-formed. Not compared with services, because %s", v.File, away.What)
	return nil
}

// readPolicy reads a policy file and makes sure that it parses, so that
// mistakes carry the line of the file at hand.
func readPolicy(c *cli, file string) ([]byte, error) {
	text, err := c.read(file)
	if err != nil {
		return nil, failed("policy: "+err.Error(), "")
	}
	if _, err := policy.Parse(file, text); err != nil {
		return nil, failed(err.Error(), "")
	}
	return text, nil
}

// read reads a file, or stdin for "-".
func (c *cli) read(file string) ([]byte, error) {
	const limit = 16 << 20
	if file == "-" {
		return io.ReadAll(io.LimitReader(c.in, limit))
	}
	info, err := os.Stat(file)
	if err == nil && info.Mode().IsRegular() && info.Size() > limit {
		return nil, fmt.Errorf("%s is too large", file)
	}
	return os.ReadFile(file)
}

// checked prints what core found. Findings are data.
func (c *cli) checked(verb string, asJSON bool, found *control.CheckPolicyResponse) error {
	if asJSON {
		if err := c.printJSON(found); err != nil {
			return err
		}
	} else {
		for _, kind := range []struct {
			name string
			rows []string
		}{{"error", found.GetErrors()}, {"warning", found.GetWarnings()}, {"denied to everybody", found.GetDenied()}} {
			for _, row := range kind.rows {
				fmt.Fprintf(c.out, "%s: %s\n", kind.name, oneLine(row))
			}
		}
	}
	if n := len(found.GetErrors()); n > 0 {
		return failed(fmt.Sprintf("%s: %d %s, so it is not applied", verb, n, plural(n, "error")), "")
	}
	if !asJSON {
		c.say("no errors, %d %s, %d announced %s denied to everybody",
			len(found.GetWarnings()), plural(len(found.GetWarnings()), "warning"), len(found.GetDenied()), plural(len(found.GetDenied()), "method"))
	}
	return nil
}

func plural(n int, word string) string {
	if n == 1 {
		return word
	}
	return word + "s"
}

type policyApply struct {
	File   string `arg:"" help:"The policy file; - is stdin."`
	Strict bool   `help:"Refuse a policy with a row that no service has."`
	coreFlags
	jsonFlag
}

func (policyApply) Help() string {
	return `When the policy has changed. It holds on every component within seconds, for calls under way too. (Core can also watch a file: --role core --policy FILE.)

Example:

    sallyport policy apply policy.toml`
}

func (v *policyApply) Run(c *cli) error {
	text, err := readPolicy(c, v.File)
	if err != nil {
		return err
	}
	return v.core(c, func(ctx context.Context, core control.AdminClient) error {
		found, err := core.ApplyPolicy(ctx, &control.ApplyPolicyRequest{Policy: text, Strict: v.Strict})
		if err != nil {
			return err
		}
		if err := c.checked("policy apply", v.JSON, found); err != nil {
			return err
		}
		if !v.JSON {
			c.say("policy %d is in force.", found.GetVersion())
		}
		return nil
	})
}

type policyShow struct {
	Version uint64 `placeholder:"N" help:"An earlier version."`
	coreFlags
	jsonFlag
}

func (policyShow) Help() string {
	return `When you want to know what is in force, or to edit it.

Example:

    sallyport policy show > policy.toml`
}

func (v *policyShow) Run(c *cli) error {
	return v.core(c, func(ctx context.Context, core control.AdminClient) error {
		shown, err := core.ShowPolicy(ctx, &control.ShowPolicyRequest{Version: v.Version})
		if err != nil {
			return err
		}
		if v.JSON {
			return c.printJSON(shown)
		}
		if _, err := c.out.Write(shown.GetPolicy()); err != nil {
			return err
		}
		if shown.GetVersion() == 0 {
			c.say("the built-in policy: nothing has been applied yet")
			return nil
		}
		c.say("policy %d, applied %s by %s", shown.GetVersion(), ago(shown.GetAppliedUnix(), time.Now()), shown.GetActor())
		return nil
	})
}

type policyExplain struct {
	Method   string   `arg:"" help:"package.Service/Method."`
	As       string   `placeholder:"CALLER" help:"spiffe://…, cn:NAME, apikey:NAME, ISSUER#SUBJECT or anonymous; a plain NAME is that client of this trust domain."`
	AsToken  string   `placeholder:"FILE" help:"The caller whose token (JWT) or API key this file holds; - is stdin. It is verified as in a call."`
	Claims   []string `placeholder:"WORD" help:"With --as ISSUER#SUBJECT: what the token's permission claims hold."`
	Via      string   `placeholder:"proxy:NAME|gateway:NAME" help:"Through which component the caller comes. Default: any."`
	ClientCA string   `name:"client-ca" placeholder:"NAME" help:"The foreign CA behind a cn: caller."`
	coreFlags
	jsonFlag
}

func (policyExplain) Help() string {
	return `When a call was denied, or allowed, and you want to know why: the row that decides, what it needs, what the caller holds and by which grants.

Example:

    sallyport policy explain acme.orders.v1.Orders/Get --as apikey:ci
    sallyport policy explain acme.orders.v1.Orders/Get --as 'https://login.example.org#anna' --claims orders:read
    sallyport policy explain acme.orders.v1.Orders/Get --as-token token.jwt`
}

func (v *policyExplain) Run(c *cli) error {
	service, method, ok := splitMethod(v.Method)
	if !ok {
		return wrong(fmt.Sprintf("policy explain: %q is not a method", v.Method), "write package.Service/Method")
	}
	var token string
	switch {
	case (v.As == "") == (v.AsToken == ""):
		return wrong("policy explain: it is not said who calls", "write --as CALLER, or --as-token FILE")
	case v.AsToken != "":
		text, err := c.read(v.AsToken)
		if err != nil {
			return failed("policy explain: "+err.Error(), "")
		}
		if token = strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(string(text)), "Bearer ")); token == "" {
			return failed("policy explain: "+v.AsToken+" holds no token", "")
		}
	}
	return v.core(c, func(ctx context.Context, core control.AdminClient) error {
		caller := v.As
		if caller != "" && caller != "anonymous" && !strings.Contains(caller, ":") {
			ca, err := core.ShowCA(ctx, &control.ShowCARequest{})
			if err != nil {
				return err
			}
			caller = "spiffe://" + ca.GetTrustDomain() + "/client/" + caller
		}
		why, err := core.ExplainPolicy(ctx, &control.ExplainPolicyRequest{
			Caller: caller, Method: "/" + service + "/" + method, Via: v.Via, ClientCa: v.ClientCA,
			Token: token, Claims: v.Claims,
		})
		if err != nil {
			return err
		}
		if v.JSON {
			return c.printJSON(why)
		}
		if why.GetRefused() != "" {
			fmt.Fprintf(c.out, "%s: the token is not accepted: %s: %s (%s)\n", c.paint(stateColour("denied"), "denied"), oneLine(why.GetRefused()), why.GetReason(), why.GetCode())
			return nil
		}
		if token != "" {
			caller = oneLine(why.GetCaller())
		}
		answer, may := "denied", "may not"
		if why.GetAllowed() {
			answer, may = "allowed", "may"
		}
		fmt.Fprintf(c.out, "%s: %s %s call /%s/%s: %s (%s)\n", c.paint(stateColour(answer), answer), caller, may, service, method, why.GetReason(), why.GetCode())
		for _, line := range []struct {
			name  string
			parts []string
		}{
			{"row", []string{why.GetRow()}},
			{"needs any of", why.GetNeeds()},
			{"caller holds", why.GetHolds()},
			{"by grants", why.GetGrants()},
			{"served by", why.GetGateways()},
		} {
			text := strings.Join(line.parts, ", ")
			if text == "" {
				text = "none"
			}
			fmt.Fprintf(c.out, "  %-13s %s\n", line.name+":", text)
		}
		return nil
	})
}
