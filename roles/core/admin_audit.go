package core

import (
	"context"
	"encoding/hex"

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
