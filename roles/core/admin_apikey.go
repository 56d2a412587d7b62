package core

import (
	"context"
	"crypto/rand"
	"time"

	"google.golang.org/grpc/codes"

	"sallyport/acme/pki"
	"sallyport/roles/control"
	"sallyport/roles/policy"
	"sallyport/store"
)

const maxKeyLifetime = 100 * 365 * 24 * time.Hour

// CreateAPIKey makes a key. Its secret is in the answer and nowhere else.
func (a *admin) CreateAPIKey(ctx context.Context, in *control.CreateAPIKeyRequest) (*control.CreateAPIKeyResponse, error) {
	if err := pki.ValidName(in.GetName()); err != nil {
		return nil, wrong("apikey create: %v", err)
	}
	if in.GetTtlSeconds() < 0 || in.GetTtlSeconds() > int64(maxKeyLifetime/time.Second) {
		return nil, wrong("apikey create %s: a key lives at most 100 years, or, with none given, until it is revoked", in.GetName())
	}
	secret, prefix, err := policy.NewAPIKey(rand.Reader)
	if err != nil {
		return nil, refusal(err)
	}
	hash, ok := policy.HashAPIKey(secret)
	if !ok {
		return nil, refusal(errNotOurKey)
	}
	k := store.APIKeyRecord{Name: in.GetName(), SHA256: hash[:], Prefix: prefix, Created: time.Now()}
	if in.GetTtlSeconds() > 0 {
		k.Expires = k.Created.Add(time.Duration(in.GetTtlSeconds()) * time.Second)
	}
	if k, err = a.core.db.CreateAPIKey(ctx, actor(ctx), k); err != nil {
		return nil, refusal(err)
	}
	a.core.log.Info("API key was created", "name", k.Name, "prefix", k.Prefix, "actor", actor(ctx))
	if err := a.core.publisher.publish(ctx); err != nil {
		return nil, refusal(err)
	}
	return &control.CreateAPIKeyResponse{Key: apiKeyRow(k), Secret: secret}, nil
}

// ListAPIKeys lists all keys, revoked ones too.
func (a *admin) ListAPIKeys(ctx context.Context, _ *control.ListAPIKeysRequest) (*control.ListAPIKeysResponse, error) {
	keys, err := a.core.db.APIKeys(ctx)
	if err != nil {
		return nil, refusal(err)
	}
	out := &control.ListAPIKeysResponse{}
	for _, k := range keys {
		out.Keys = append(out.Keys, apiKeyRow(k))
	}
	return out, nil
}

// RevokeAPIKey ends a key, everywhere.
func (a *admin) RevokeAPIKey(ctx context.Context, in *control.RevokeAPIKeyRequest) (*control.APIKeyRow, error) {
	since := time.Now()
	k, err := a.core.db.RevokeAPIKey(ctx, actor(ctx), in.GetName())
	if err != nil {
		return nil, a.noKey(ctx, err, in.GetName())
	}
	a.core.log.Info("API key was revoked", "name", k.Name, "prefix", k.Prefix, "actor", actor(ctx))
	if err := a.core.publisher.publish(ctx); err != nil {
		return nil, refusal(err)
	}
	caller := "apikey:" + k.Name
	a.core.router.cut(func(p *passage) bool { return p.record.Caller == caller }, codes.Unauthenticated, "core: the API key was revoked")
	row := apiKeyRow(k)
	row.Revocation = a.core.enforcement(ctx, since, hasSnapshot)
	row.Revocation.Revoked = []string{caller}
	return row, nil
}

func apiKeyRow(k store.APIKeyRecord) *control.APIKeyRow {
	return &control.APIKeyRow{Name: k.Name, Prefix: k.Prefix, CreatedUnix: seconds(k.Created), ExpiresUnix: seconds(k.Expires), RevokedUnix: seconds(k.Revoked)}
}
