package link

import (
	"maps"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"sallyport/acme/pki"
)

// CodeAddress is the refusal of an address that is no peer of a port, and of an
// identity that comes from an address that is not its own.
const CodeAddress = "address_not_a_peer"

// alertAccessDenied is a fatal TLS alert. It is sent without a look at what the
// other side says, so that a component whose address is missing among the
// peers reads that, and not only that the connection was closed.
var alertAccessDenied = []byte{21, 3, 3, 0, 2, 2, 49}

// admission is the connections of a port by their addresses.
type admission struct {
	refused atomic.Uint64

	mu   sync.Mutex
	open map[net.Conn]netip.AddrPort // from accept to the end of its handler
}

// RefusedByAddress counts the connections that were closed for their address
// alone, before a handshake.
func (p *Port) RefusedByAddress() uint64 { return p.admission.refused.Load() }

// admits closes what does not come from a peer.
func (p *Port) admits(nc net.Conn, remote netip.AddrPort) bool {
	if p.Admit == nil {
		return true
	}
	r := p.Admit(remote)
	if r == nil {
		return true
	}
	p.admission.refused.Add(1)
	p.refusals.note(remote, "", r)
	nc.SetWriteDeadline(time.Now().Add(100 * time.Millisecond)) // into an empty buffer, so at once
	nc.Write(alertAccessDenied)
	nc.Close()
	return false
}

// watch lets Recheck see a connection. It asks about the address once more: the
// peers may have changed since the first time, and Recheck been here.
func (p *Port) watch(nc net.Conn, remote netip.AddrPort) bool {
	p.admission.mu.Lock()
	if p.admission.open == nil {
		p.admission.open = map[net.Conn]netip.AddrPort{}
	}
	p.admission.open[nc] = remote
	p.admission.mu.Unlock()
	if p.admits(nc, remote) {
		return true
	}
	p.unwatch(nc)
	return false
}

func (p *Port) unwatch(nc net.Conn) {
	p.admission.mu.Lock()
	delete(p.admission.open, nc)
	p.admission.mu.Unlock()
}

func (p *Port) watched() map[net.Conn]netip.AddrPort {
	p.admission.mu.Lock()
	defer p.admission.mu.Unlock()
	return maps.Clone(p.admission.open)
}

// Recheck asks Admit about every open connection, of all protocols, and closes
// those that are not admitted any more. It returns how many.
func (p *Port) Recheck() int {
	if p.Admit == nil {
		return 0
	}
	p.init()
	verdicts := map[netip.Addr]*pki.Refusal{}
	closed := 0
	for nc, remote := range p.watched() {
		r, known := verdicts[remote.Addr()]
		if !known {
			r = p.Admit(remote)
			verdicts[remote.Addr()] = r
		}
		if r == nil {
			continue
		}
		p.refusals.note(remote, "", r)
		nc.Close()
		closed++
	}
	return closed
}
