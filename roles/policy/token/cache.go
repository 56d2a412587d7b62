package token

import (
	"crypto/sha256"
	"slices"
	"sync"

	"github.com/go-jose/go-jose/v4"

	"sallyport/roles/policy"
)

type jwa = jose.SignatureAlgorithm

// accepted is algorithms as package oidc wants them.
var accepted = func() []string {
	list := make([]string, len(algorithms))
	for i, a := range algorithms {
		list[i] = string(a)
	}
	return list
}()

func sorted(list []string) []string {
	slices.Sort(list)
	return slices.Compact(list)
}

const (
	cacheShards = 16
	cacheHalf   = 1024    // entries of half a shard: 32768 tokens altogether
	cacheBytes  = 1 << 20 // of what they hold: 32 MiB altogether
)

// cache knows verified tokens by their hash. Each part has two halves: what is
// in use moves to the newer one, and when that is full the older one is dropped,
// so that space is bounded and no list has to be kept.
type cache struct {
	shards [cacheShards]struct {
		mu           sync.RWMutex // guards what follows
		newer, older map[[sha256.Size]byte]policy.Caller
		bytes        int // that the newer half holds, roughly
	}
}

func (c *cache) get(sum [sha256.Size]byte) (policy.Caller, bool) {
	s := &c.shards[sum[0]%cacheShards]
	s.mu.RLock()
	caller, ok := s.newer[sum]
	aged := false
	if !ok {
		caller, aged = s.older[sum]
	}
	s.mu.RUnlock()
	if aged {
		c.put(sum, caller)
	}
	return caller, ok || aged
}

func (c *cache) put(sum [sha256.Size]byte, caller policy.Caller) {
	s := &c.shards[sum[0]%cacheShards]
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.newer) >= cacheHalf || s.bytes >= cacheBytes || s.newer == nil {
		s.older, s.newer, s.bytes = s.newer, make(map[[sha256.Size]byte]policy.Caller), 0
	}
	s.newer[sum] = caller
	s.bytes += weight(&caller)
}

// weight is how much a caller holds, in bytes.
func weight(c *policy.Caller) int {
	n := len(c.ID)
	for _, p := range c.Permissions {
		n += 16 + len(p)
	}
	return n
}
