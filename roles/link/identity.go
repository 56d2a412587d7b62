package link

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"sallyport/acme/pki"
)

// OpenSelf reads the identity that a component keeps in dir, and the text of
// the join token it was started with, and says which of them counts. A
// component that keeps nothing (dir is empty) joins at every start.
//
// With an identity on disk a token of the same component is spent and ignored;
// one for another role or name, or one that another CA made and that is still
// good, means that something was mixed up, and is an error. Without an identity the token is returned: the component has to
// join with it. Neither is an error that says how to get a token.
func OpenSelf(dir string, role pki.Role, join string) (*Self, *pki.Token, error) {
	var token *pki.Token
	if join != "" {
		t, err := pki.ParseToken(join)
		if err != nil {
			return nil, nil, fmt.Errorf("join token: %w", err)
		}
		if t.Role != role {
			return nil, nil, RefuseTokenRole(t.Role, role)
		}
		token = &t
	}
	self := NewSelf()
	if dir == "" {
		if token == nil {
			return nil, nil, fmt.Errorf("this %s keeps its state in memory (--state memory) and was given no join token: on core run 'sallyport %s add NAME --reusable …' and start this %s with the token it prints", role, role, role)
		}
		return self, token, nil
	}
	credentials, bundle, err := pki.LoadCredentials(dir)
	switch {
	case errors.Is(err, pki.ErrNoCredentials) && token == nil:
		return nil, nil, fmt.Errorf("this %s has no identity in %s and was given no join token: on core run 'sallyport %s add NAME …' and start this %s with the line it prints", role, dir, role, role)
	case errors.Is(err, pki.ErrNoCredentials):
		return self, token, nil
	case err != nil:
		return nil, nil, fmt.Errorf("identity in %s: %w", dir, err)
	case credentials.ID.Role != role:
		return nil, nil, fmt.Errorf("the identity in %s is %s, not that of a %s: give each role a data directory of its own", dir, credentials.ID, role)
	}
	if token != nil {
		if err := sameComponent(credentials, bundle, token, dir); err != nil {
			return nil, nil, err
		}
	}
	self.Set(credentials, bundle)
	return self, nil, nil
}

// sameComponent reports whether token could have made the identity.
func sameComponent(c *pki.Credentials, b *pki.Bundle, token *pki.Token, dir string) error {
	name := c.ID.Name
	if name != token.Name && !(token.Reusable && strings.HasPrefix(name, token.Name+"-")) {
		return fmt.Errorf("the join token is for %s %s, and %s holds the identity of %s: use another data directory, or delete this one to give the identity up", token.Role, token.Name, dir, name)
	}
	for _, root := range b.Roots {
		hash, err := pki.SPKIHash(root.PublicKey)
		if err == nil && slices.Contains(token.Pins, hash) {
			return nil
		}
	}
	// A token pins the current root and the next. After two rotations none of
	// them is left, and it must not keep its own component from starting: once
	// its time is over it can make no identity anyway.
	if token.Expired(time.Now()) != nil {
		return nil
	}
	return fmt.Errorf("the join token is from another core than the identity of %s in %s (another root CA): use another data directory, or delete this one to leave the former core", name, dir)
}
