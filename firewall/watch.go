package firewall

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"sallyport/configs"
)

// Watcher keeps the kernel's rules at what a data file says.
type Watcher struct {
	Host  Host
	File  string
	Roles []configs.Role // whose tables; what the file says about others is not looked at
	Ports map[configs.Role][]uint16

	Every   time.Duration // between looks at the file; 250ms
	Compare time.Duration // between looks at the kernel; 5s

	// Say is told what happened, once each. bad is true where something is wrong
	// and the rules stay as they are.
	Say func(bad bool, format string, args ...any)
}

// Run follows the file until ctx ends; the rules stay. A file that is missing or
// bad in any way changes nothing and is said once. Where the kernel's tables are
// no longer what was loaded, such as after a restart of another firewall service
// that clears everything, they are loaded again.
func (w Watcher) Run(ctx context.Context) error {
	if err := w.Host.directory(); err != nil {
		return err
	}
	for _, role := range w.Roles {
		unlock, err := w.Host.watching(ctx, role)
		if err != nil {
			return err
		}
		defer unlock()
	}
	s := &watch{Watcher: w}
	look := time.NewTicker(w.Every)
	defer look.Stop()
	for {
		s.step(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-look.C:
		}
	}
}

// watch is the state of a Watcher that runs.
type watch struct {
	Watcher
	seen    fileID
	trouble string  // said last, until something goes well
	wanted  []Rules // what the file said last that was good
	loaded  string  // the text in the kernel
	odd     []string
	next    time.Time            // when to look at the kernel next
	said    map[string]time.Time // refused addresses, by role
}

// fileID changes when a file does.
type fileID struct {
	device, inode uint64
	size, mtime   int64
	ctime         int64
}

func idOf(path string) fileID {
	info, err := os.Lstat(path)
	if err != nil {
		return fileID{}
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fileID{}
	}
	return fileID{uint64(st.Dev), st.Ino, st.Size, st.Mtim.Nano(), st.Ctim.Nano()}
}

func (s *watch) step(ctx context.Context) {
	id := idOf(s.File)
	if id != s.seen || id == (fileID{}) {
		rules, err := s.read()
		if err != nil {
			s.bad(err)
		} else {
			s.wanted, s.trouble = rules, ""
		}
		s.seen = id
	}
	if len(s.wanted) == 0 || ctx.Err() != nil {
		return
	}
	text, err := Render(s.wanted...)
	if err != nil {
		s.bad(err)
		return
	}
	if text == s.loaded {
		s.compare(ctx)
	}
	if text != s.loaded {
		s.load(ctx, text)
	}
}

func (s *watch) read() ([]Rules, error) {
	d, err := ReadData(s.File)
	if err != nil {
		return nil, err
	}
	var rules []Rules
	for _, role := range s.Roles {
		e := d.Of(role)
		if e == nil {
			return nil, fmt.Errorf("%s says nothing of %s", s.File, role)
		}
		r, err := NewRules(role, *e, s.Ports[role]...)
		if err != nil {
			return nil, err
		}
		rules = append(rules, r)
	}
	return rules, nil
}

func (s *watch) load(ctx context.Context, text string) {
	unlock, err := s.Host.begin(ctx)
	if err == nil {
		err = s.Host.load(ctx, text)
		unlock()
	}
	if err != nil {
		s.bad(err)
		return
	}
	s.loaded, s.trouble, s.next = text, "", time.Now().Add(s.Compare)
	for _, r := range s.wanted {
		s.allowed(r)
		s.Say(false, "%s: loaded generation %d, %s", r.role, r.generation, r.Summary())
		for _, warning := range r.Warnings() {
			s.Say(true, "%s: %s", r.role, warning)
		}
	}
	if s.odd, err = s.drift(ctx); err == nil && len(s.odd) > 0 {
		s.Say(true, "nft lists the rules otherwise than this binary expects; that alone is no drift: %s", strings.Join(s.odd, "; "))
	}
}

// compare forgets what is loaded where the kernel no longer has it.
func (s *watch) compare(ctx context.Context) {
	begin := time.Now()
	if begin.Before(s.next) {
		return
	}
	lines, err := s.drift(ctx)
	s.next = time.Now().Add(max(s.Compare, 50*time.Since(begin))) // at most a fiftieth of the time
	if err != nil {
		s.bad(err)
		return
	}
	if slices.Equal(lines, s.odd) {
		return
	}
	for _, l := range lines {
		s.Say(true, "%s", l)
	}
	s.loaded = ""
}

func (s *watch) drift(ctx context.Context) (lines []string, err error) {
	for _, r := range s.wanted {
		k, err := s.Host.NFT.Kernel(ctx, r.role)
		if err != nil {
			return nil, err
		}
		lines = append(lines, r.Drift(k)...)
		s.refused(r, k.Refused())
	}
	return lines, nil
}

const (
	refusedShown = 5
	refusedKept  = 1024
	refusedQuiet = 10 * time.Minute
)

// refused says who was turned away, each address once in a while: the process
// behind the port hears nothing of it.
func (s *watch) refused(r Rules, list []netip.Addr) {
	now, shown, more := time.Now(), 0, 0
	if s.said == nil || len(s.said) > refusedKept {
		s.said = map[string]time.Time{}
	}
	for _, a := range list {
		id := string(r.role) + " " + a.String()
		if now.Sub(s.said[id]) < refusedQuiet {
			continue
		}
		s.said[id] = now
		if shown == refusedShown {
			more++
			continue
		}
		shown++
		if r.role == configs.RoleProxy {
			s.Say(true, "proxy: %s was refused, which is not among the addresses of core; if core is there now, start the proxy with --core-ip %s, or, before core moves, run 'sallyport proxy set NAME --core-ip %s' beside core", a, a, a)
		} else {
			s.Say(true, "core: %s was refused, which is no gateway's address; if a gateway lives there: sallyport gateway set NAME --ip %s", a, a)
		}
	}
	if more > 0 {
		s.Say(true, "%s: %d more addresses were refused", r.role, more)
	}
}

// allowed forgets that addresses were refused which the rules let pass now: when
// they are refused another time, that is news.
func (s *watch) allowed(r Rules) {
	for id := range s.said {
		role, text, _ := strings.Cut(id, " ")
		if a, err := netip.ParseAddr(text); err == nil && role == string(r.role) && r.peers.Allows(a) {
			delete(s.said, id)
		}
	}
}

// bad says what is wrong, once until something else is, or all is well.
func (s *watch) bad(err error) {
	if errors.Is(err, context.Canceled) || err.Error() == s.trouble {
		return
	}
	s.trouble = err.Error()
	s.Say(true, "the rules stay as they are: %v", err)
}
