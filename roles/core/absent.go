package core

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sallyport/acme/pki"
	"sallyport/configs"
	"sallyport/roles/control"
	"sallyport/store"
)

// maxNamed bounds how many names an answer lists.
const maxNamed = 8

// absent is refusal where the operator may have named what there is not: then
// the answer says so of that thing, which name he may have meant, and what else
// is to be done. names are those there are; nil where none resembles another.
func absent(err error, verb, thing, name, remedy string, names []string) error {
	if !errors.Is(err, store.ErrNotFound) {
		return refusal(err)
	}
	if near := configs.Nearest(name, names); near != "" {
		remedy = "did you mean " + near + "? " + remedy
	} else if n := len(names); n > 0 && n <= maxNamed {
		remedy += ": " + strings.Join(names, ", ")
	}
	s := status.New(codes.NotFound, fmt.Sprintf("%s: there is no %s %s", verb, thing, clean(name)))
	if full, err := s.WithDetails(&control.Refusal{Code: "not_found", Cause: s.Message(), Remedy: remedy}); err == nil {
		s = full
	}
	return s.Err()
}

// noComponent is absent for a gateway or proxy.
func (a *admin) noComponent(ctx context.Context, err error, verb string, role pki.Role, name string) error {
	var names []string
	if errors.Is(err, store.ErrNotFound) {
		records, failed := a.core.db.Components(ctx, role)
		if failed != nil {
			return refusal(failed)
		}
		for _, r := range records {
			names = append(names, r.Name)
		}
	}
	return absent(err, verb, string(role), name, "sallyport "+string(role)+" ls lists those there are", names)
}

// noCertificate is absent for what cert revoke was given.
func (a *admin) noCertificate(ctx context.Context, err error, identity, serial string) error {
	if identity == "" {
		return absent(err, "cert revoke "+serial, "certificate with the serial number", serial, "sallyport cert ls --all lists those there are; give the certificate's file if the record of it is lost", nil)
	}
	var names []string
	if errors.Is(err, store.ErrNotFound) {
		rows, failed := a.core.db.Certificates(ctx, false, time.Now())
		if failed != nil {
			return refusal(failed)
		}
		for _, r := range rows {
			if r.Identity != "" && !slices.Contains(names, r.Identity) {
				names = append(names, r.Identity)
			}
		}
	}
	return absent(err, "cert revoke "+clean(identity), "certificate of", identity, "sallyport cert ls lists those there are", names)
}

// noKey is absent for an API key.
func (a *admin) noKey(ctx context.Context, err error, name string) error {
	var names []string
	if errors.Is(err, store.ErrNotFound) {
		keys, failed := a.core.db.APIKeys(ctx)
		if failed != nil {
			return refusal(failed)
		}
		for _, k := range keys {
			if k.Revoked.IsZero() {
				names = append(names, k.Name)
			} else if k.Name == name {
				return status.Errorf(codes.NotFound, "apikey revoke %s: it was revoked at %s already", clean(name), k.Revoked.UTC().Format(time.RFC3339))
			}
		}
	}
	return absent(err, "apikey revoke "+clean(name), "API key", name, "sallyport apikey ls lists those there are", names)
}
