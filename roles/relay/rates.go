package relay

// rates count, second by second, what a peer does that costs us and brings
// nobody anything. Reader only.
type rates struct {
	second int64
	n      [calmKinds]int
	seen   int64 // Conn.calm at the last PING
	seenWU int64 // the same at the last WINDOW_UPDATE
}

// count adds one of kind and says when that is more than max in this second.
func (r *rates) count(c *Conn, kind CalmKind, max int) error {
	if now := c.lastRead.Load() / 1e9; now != r.second {
		r.second, r.n = now, [calmKinds]int{}
	}
	if r.n[kind]++; r.n[kind] <= max {
		return nil
	}
	return c.calmError(kind, "more than %d %s in a second", max, kind)
}

// ping counts a PING unless calls made progress since the last one: peers
// measure their bandwidth with them.
func (r *rates) ping(c *Conn) error {
	if n := c.calm.Load(); n != r.seen {
		r.seen = n
		return nil
	}
	return r.count(c, CalmPings, c.lim.Pings)
}

// windowUpdate likewise.
func (r *rates) windowUpdate(c *Conn) error {
	if n := c.calm.Load(); n != r.seenWU {
		r.seenWU = n
		return nil
	}
	return r.count(c, CalmWindowUpdates, c.lim.WindowUpdates)
}

// useful notes that a frame of a call passed.
func (c *Conn) useful() { c.calm.Add(1) }

// calmError ends the connection because a limit was exceeded.
func (c *Conn) calmError(kind CalmKind, format string, args ...any) error {
	c.calmed(kind)
	return connErr(codeCalm, format, args...)
}

// calmed counts it.
func (c *Conn) calmed(kind CalmKind) { c.m.Calmed[kind].Add(1) }
