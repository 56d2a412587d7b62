package firewall

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"sallyport/configs"
)

// Host loads and removes the rules of this host. Whatever changes them holds one
// lock, so that two of them come one after the other.
type Host struct {
	NFT NFT

	// Dir is where the lock lies, and what waits for a confirmation. It is made
	// 0700 and has to belong to whoever runs this.
	Dir string

	// Guard is the command that runs Guarded in a process of its own; it is
	// given the directory, the mark and the time that it waits as arguments.
	Guard []string
}

// RunDir is Host.Dir where nothing else is said.
const RunDir = "/run/sallyport-firewall"

// ErrUnconfirmed says that rules are loaded which wait for a confirmation.
var ErrUnconfirmed = errors.New("the rules that are loaded wait for a confirmation")

// ErrWatched says that another process keeps the rules of a role.
var ErrWatched = errors.New("a process that follows a data file keeps these rules")

// Apply loads rules, after nft has checked them. While others wait for a
// confirmation it is ErrUnconfirmed, while somebody watches, ErrWatched.
func (h Host) Apply(ctx context.Context, rules ...Rules) error {
	text, err := Render(rules...)
	if err != nil {
		return err
	}
	unlock, err := h.begin(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := h.unwatched(rolesOf(rules)...); err != nil {
		return err
	}
	return h.load(ctx, text)
}

func (h Host) load(ctx context.Context, text string) error {
	if err := h.NFT.Check(ctx, text); err != nil {
		return fmt.Errorf("nothing was changed: %w", err)
	}
	return h.NFT.Load(ctx, text)
}

func rolesOf(rules []Rules) []configs.Role {
	roles := make([]configs.Role, len(rules))
	for i, r := range rules {
		roles[i] = r.role
	}
	return roles
}

// Remove removes the tables of roles and returns those that had one. It ends the
// wait for a confirmation of these roles' rules; while those of another role
// wait, it is ErrUnconfirmed, since their former rules are to come back.
func (h Host) Remove(ctx context.Context, roles ...configs.Role) (had []configs.Role, err error) {
	unlock, err := h.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := h.unwatched(roles...); err != nil {
		return nil, err
	}
	p, err := h.pending()
	if err != nil {
		return nil, err
	}
	if p != nil && slices.ContainsFunc(p.Roles, func(r configs.Role) bool { return !slices.Contains(roles, r) }) {
		return nil, ErrUnconfirmed
	}
	for _, role := range roles {
		k, err := h.NFT.Kernel(ctx, role)
		if err != nil {
			return nil, err
		}
		if k != nil {
			had = append(had, role)
		}
	}
	if len(had) > 0 {
		if err := h.NFT.Load(ctx, Removal(had...)); err != nil {
			return nil, err
		}
	}
	return had, h.forget()
}

// begin takes the lock where nothing waits for a confirmation.
func (h Host) begin(ctx context.Context) (unlock func(), err error) {
	unlock, err = h.lock(ctx)
	if err != nil {
		return nil, err
	}
	p, err := h.pending()
	switch {
	case err != nil:
	case p != nil:
		err = ErrUnconfirmed
	default:
		err = h.forget() // what lost its guard
	}
	if err != nil {
		unlock()
		return nil, err
	}
	return unlock, nil
}

// lock waits for the one who changes the rules now.
func (h Host) lock(ctx context.Context) (unlock func(), err error) {
	if err := h.directory(); err != nil {
		return nil, err
	}
	for {
		unlock, err := flock(filepath.Join(h.Dir, "lock"))
		if unlock != nil || err != nil {
			return unlock, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// directory makes Dir. What lies in it is loaded into the kernel later, so it
// must be nobody else's.
func (h Host) directory() error {
	if err := os.MkdirAll(h.Dir, 0o700); err != nil {
		return err
	}
	info, err := os.Lstat(h.Dir)
	if err != nil {
		return err
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if ok && info.IsDir() && owner.Uid == 0 && os.Geteuid() != 0 {
		return fmt.Errorf("%w: %s is root's", ErrNotPermitted, h.Dir)
	}
	if !info.IsDir() || !ok || int(owner.Uid) != os.Geteuid() || info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s is not a directory that only uid %d may write", h.Dir, os.Geteuid())
	}
	return nil
}

// flock takes a lock for as long as the process lives, or returns no unlock
// where another has it.
func flock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	switch err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); {
	case errors.Is(err, syscall.EWOULDBLOCK), errors.Is(err, syscall.EINTR):
		f.Close()
		return nil, nil
	case err != nil:
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}

func (h Host) watchFile(role configs.Role) string {
	return filepath.Join(h.Dir, "watch-"+string(role))
}

// watching takes the lock of the one who follows a file for a role. Who only
// looks has it for a moment.
func (h Host) watching(ctx context.Context, role configs.Role) (unlock func(), err error) {
	for range 50 {
		unlock, err := flock(h.watchFile(role))
		if unlock != nil || err != nil {
			return unlock, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil, fmt.Errorf("%s: %w", role, ErrWatched)
}

// unwatched is ErrWatched while another process follows a file for a role.
func (h Host) unwatched(roles ...configs.Role) error {
	for _, role := range roles {
		unlock, err := flock(h.watchFile(role))
		if err != nil {
			return err
		}
		if unlock == nil {
			return fmt.Errorf("%s: %w", role, ErrWatched)
		}
		unlock()
	}
	return nil
}
