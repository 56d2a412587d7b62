package core

import (
	"context"
	"encoding/hex"
	"time"

	"sallyport/roles/control"
)

const (
	defaultAuditRows = 100
	maxAuditRows     = 10000
)

// ListAudit returns audit rows, the newest first, and whether the chain of
// hashes over all of them holds.
func (a *admin) ListAudit(ctx context.Context, in *control.ListAuditRequest) (*control.ListAuditResponse, error) {
	limit := int(min(in.GetLimit(), maxAuditRows))
	if limit == 0 {
		limit = defaultAuditRows
	}
	rows, err := a.core.db.AuditRows(ctx, in.GetBefore(), limit)
	if err != nil {
		return nil, refusal(err)
	}
	out := &control.ListAuditResponse{Verified: true}
	for _, r := range rows {
		out.Rows = append(out.Rows, &control.AuditRow{Sequence: r.Sequence, UnixNano: r.Time.UnixNano(), Actor: string(r.Actor), Action: r.Action,
			Subject: r.Subject, Detail: r.Detail, Hash: hex.EncodeToString(r.Hash)})
	}
	if err := a.core.db.VerifyAudit(ctx); err != nil {
		out.Verified, out.Broken = false, err.Error()
	}
	return out, nil
}

// ListDenials returns refused calls, counted per minute, the newest first. What
// core and the components have counted in the last seconds comes a little later.
func (a *admin) ListDenials(ctx context.Context, in *control.ListDenialsRequest) (*control.ListDenialsResponse, error) {
	limit := int(min(in.GetLimit(), maxAuditRows))
	if limit == 0 {
		limit = defaultAuditRows
	}
	var since time.Time
	if in.GetSinceUnix() > 0 {
		since = time.Unix(in.GetSinceUnix(), 0)
	}
	rows, err := a.core.db.Denials(ctx, since, limit)
	if err != nil {
		return nil, refusal(err)
	}
	out := &control.ListDenialsResponse{}
	for _, r := range rows {
		out.Rows = append(out.Rows, &control.Denied{MinuteUnix: r.Minute.Unix(), Caller: r.Caller, Method: r.Method, Reason: r.Reason, Code: r.Code, Count: r.Count})
	}
	return out, nil
}
