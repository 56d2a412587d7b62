package app

import (
	"context"
	"strconv"
	"time"

	"sallyport/roles/control"
)

// auditNoun is core's record of what was done and what was denied.
type auditNoun struct {
	Ls      auditLs      `cmd:"" help:"List the newest rows of the audit log."`
	Denials auditDenials `cmd:"" help:"List refused calls, counted per minute."`
}

type auditLs struct {
	Limit  uint32 `default:"100" placeholder:"N" help:"How many rows."`
	Before uint64 `placeholder:"SEQUENCE" help:"Rows older than this one."`
	coreFlags
	jsonFlag
}

func (auditLs) Help() string {
	return `When you want to know who did it. Rows are chained by hash; a broken chain is said and makes the exit status 1.

Example:

    sallyport audit ls --limit 20`
}

func (v *auditLs) Run(c *cli) error {
	return v.core(c, func(ctx context.Context, core control.AdminClient) error {
		list, err := core.ListAudit(ctx, &control.ListAuditRequest{Limit: v.Limit, Before: v.Before})
		if err != nil {
			return err
		}
		if v.JSON {
			err = c.printJSON(list)
		} else {
			t := c.table("#", "TIME", "ACTOR", "ACTION", "SUBJECT", "DETAIL")
			for _, r := range list.GetRows() {
				t.row(strconv.FormatUint(r.GetSequence(), 10), time.Unix(0, r.GetUnixNano()).UTC().Format(time.RFC3339),
					r.GetActor(), r.GetAction(), r.GetSubject(), r.GetDetail())
			}
			err = t.flush("the audit log is empty")
		}
		if err == nil && !list.GetVerified() {
			return failed("the hash chain of the audit log is broken: "+list.GetBroken(), "somebody changed core.db outside of core: compare it with a backup")
		}
		return err
	})
}

type auditDenials struct {
	Limit uint32 `default:"100" placeholder:"N" help:"How many rows."`
	Since period `placeholder:"DURATION" help:"Only those of this long ago or later, such as 1h or 7d."`
	coreFlags
	jsonFlag
}

func (auditDenials) Help() string {
	return `When somebody is refused, or tries. Calls that were refused alike, by caller or source, method and
reason, are one row per minute; what is beyond 200 rows of one minute is counted in a row of its own.

Example:

    sallyport audit denials --since 1h`
}

func (v *auditDenials) Run(c *cli) error {
	return v.core(c, func(ctx context.Context, core control.AdminClient) error {
		in := &control.ListDenialsRequest{Limit: v.Limit}
		if s := v.Since.seconds(); s > 0 {
			in.SinceUnix = time.Now().Unix() - int64(s)
		}
		list, err := core.ListDenials(ctx, in)
		if err != nil {
			return err
		}
		if v.JSON {
			return c.printJSON(list)
		}
		t := c.table("MINUTE", "CALLER", "METHOD", "STATUS", "COUNT", "WHY")
		for _, r := range list.GetRows() {
			t.row(time.Unix(r.GetMinuteUnix(), 0).UTC().Format(time.RFC3339), r.GetCaller(), r.GetMethod(), r.GetCode(),
				strconv.FormatUint(r.GetCount(), 10), r.GetReason())
		}
		return t.flush("no call was refused")
	})
}
