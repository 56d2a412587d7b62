package app

import (
	"context"
	"fmt"
	"time"

	"sallyport/roles/control"
)

// apikeyNoun is the keys of callers without a certificate.
type apikeyNoun struct {
	Create apikeyCreate `cmd:"" help:"Make a key: prints the secret, this once."`
	Ls     apikeyLs     `cmd:"" help:"List the keys, without their secrets."`
	Revoke apikeyRevoke `cmd:"" help:"Make a key worthless at once."`
}

type apikeyCreate struct {
	Name string `arg:"" help:"What grants call it: apikey = NAME."`
	TTL  period `name:"ttl" placeholder:"720h" help:"How long it is good for; without it, until revoked."`
	coreFlags
	jsonFlag
}

func (apikeyCreate) Help() string {
	return `When a caller cannot have a client certificate. The secret alone goes to stdout; core keeps only its SHA-256, so it cannot be shown again. What the key may call is said by a [[grant]] with apikey = NAME in the policy.

Example:

    sallyport apikey create ci --ttl 720h > ci.key`
}

func (v *apikeyCreate) Run(c *cli) error {
	return v.core(c, func(ctx context.Context, core control.AdminClient) error {
		made, err := core.CreateAPIKey(ctx, &control.CreateAPIKeyRequest{Name: v.Name, TtlSeconds: v.TTL.seconds()})
		if err != nil {
			return err
		}
		if v.JSON {
			return c.printJSON(made)
		}
		fmt.Fprintln(c.out, made.GetSecret())
		until := "until it is revoked"
		if at := made.GetKey().GetExpiresUnix(); at != 0 {
			until = "until " + clock(at)
		}
		c.say("API key %s is good %s. It is shown this once. Callers send it as: authorization: Bearer SECRET", v.Name, until)
		return nil
	})
}

type apikeyLs struct {
	coreFlags
	jsonFlag
}

func (apikeyLs) Help() string {
	return `Example:

    sallyport apikey ls`
}

func (v *apikeyLs) Run(c *cli) error {
	return v.core(c, func(ctx context.Context, core control.AdminClient) error {
		list, err := core.ListAPIKeys(ctx, &control.ListAPIKeysRequest{})
		if err != nil {
			return err
		}
		if v.JSON {
			return c.printJSON(list)
		}
		now := time.Now()
		t := c.table("NAME", "PREFIX", "STATE", "CREATED", "EXPIRES")
		for _, k := range list.GetKeys() {
			state, expires := "good", "never"
			if k.GetExpiresUnix() != 0 {
				if expires = left(k.GetExpiresUnix(), now); expires == "expired" {
					state = "expired"
				}
			}
			if k.GetRevokedUnix() != 0 {
				state = "revoked"
			}
			t.row(k.GetName(), k.GetPrefix(), state, ago(k.GetCreatedUnix(), now), expires)
		}
		return t.flush("no API key yet: sallyport apikey create NAME")
	})
}

type apikeyRevoke struct {
	Name string `arg:"" help:"The key."`
	coreFlags
	jsonFlag
}

func (apikeyRevoke) Help() string {
	return `When a key has leaked or is no longer needed.

Example:

    sallyport apikey revoke ci`
}

func (v *apikeyRevoke) Run(c *cli) error {
	return v.core(c, func(ctx context.Context, core control.AdminClient) error {
		key, err := core.RevokeAPIKey(ctx, &control.RevokeAPIKeyRequest{Name: v.Name})
		if err != nil {
			return err
		}
		if v.JSON {
			if err := c.printJSON(key); err != nil {
				return err
			}
			return unenforced(key.GetRevocation())
		}
		c.say("API key %s is revoked.", v.Name)
		return c.enforced(key.GetRevocation())
	})
}
