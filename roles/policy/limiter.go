package policy

import (
	"crypto/sha256"
	"hash/maphash"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	limiterShards = 16
	limiterShare  = 4096 // buckets of a shard: 65536 parties altogether
	limiterSample = 8    // buckets that are looked at to find one that is not needed
	maxParty      = 64   // bytes of a name that a bucket holds; longer ones by their hash
)

// Limiter remembers how much of each [[limit]] each party has used. It belongs
// to one component and outlives policies: a party keeps its bucket when the
// policy changes. It holds 65536 buckets at most; beyond that the one that is
// most nearly full again makes room, of a few that chance picks, so that who
// comes from many places at once locks nobody out. The zero value is ready.
type Limiter struct {
	seed   maphash.Seed
	once   sync.Once
	shards [limiterShards]struct {
		mu      sync.Mutex // guards what follows
		buckets map[bucketKey]*rate.Limiter
	}
}

// bucketKey is a party under a row. Rows are known by what they say, because
// each policy has its own.
type bucketKey struct {
	match            string
	source, messages bool
	who              string
}

// Allow takes one from what l allows who, or says how long to wait. A nil limit
// allows everything.
func (m *Limiter) Allow(l *Limit, who string, now time.Time) (wait time.Duration, ok bool) {
	if l == nil {
		return 0, true
	}
	if len(who) > maxParty {
		sum := sha256.Sum256([]byte(who))
		who = string(sum[:])
	}
	m.once.Do(func() { m.seed = maphash.MakeSeed() })
	s := &m.shards[maphash.String(m.seed, who)%limiterShards]
	key := bucketKey{l.Match, l.Source, l.Messages, who}
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.buckets[key]
	switch {
	case b == nil:
		if s.buckets == nil {
			s.buckets = make(map[bucketKey]*rate.Limiter)
		}
		if len(s.buckets) >= limiterShare {
			evict(s.buckets, now)
		}
		b = rate.NewLimiter(rate.Limit(l.Rate), l.Burst)
		s.buckets[key] = b
	case b.Limit() != rate.Limit(l.Rate) || b.Burst() != l.Burst:
		b.SetLimitAt(now, rate.Limit(l.Rate))
		b.SetBurstAt(now, l.Burst)
	}
	if b.AllowN(now, 1) {
		return 0, true
	}
	missing := 1 - b.TokensAt(now)
	return time.Duration(missing / l.Rate * float64(time.Second)), false
}

// evict removes the bucket, of a few, that is the first to be full again: it is
// the one whose loss changes least.
func evict(buckets map[bucketKey]*rate.Limiter, now time.Time) {
	var victim bucketKey
	least, n := 0.0, 0
	for key, b := range buckets {
		wait := (float64(b.Burst()) - b.TokensAt(now)) / float64(b.Limit())
		if n == 0 || wait < least {
			victim, least = key, wait
		}
		if n++; n == limiterSample || wait <= 0 {
			break
		}
	}
	delete(buckets, victim)
}

// SourceOf is the party that calls from an address are counted under: the
// address, or the /64 of an IPv6 one. Its argument is an address with or without
// a port; who cannot be read is counted together.
func SourceOf(address string) string {
	a, err := netip.ParseAddr(address)
	if err != nil {
		ap, err := netip.ParseAddrPort(address)
		if err != nil {
			return "unknown"
		}
		a = ap.Addr()
	}
	a = a.Unmap().WithZone("")
	if a.Is4() {
		return a.String()
	}
	p, err := a.Prefix(64)
	if err != nil {
		return "unknown"
	}
	return p.String()
}
