package firewall

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"sallyport/configs"
)

// Loading with a way back. The former rules are written down, a guard is
// started, and only then the new ones are loaded. The guard is a process of its
// own, in its own session: it goes on when the command is killed or the
// connection to the host is lost, which is what it is there for. Unless a
// confirmation takes its mark away in time, it loads the former rules.

// pendingRules is what waits for a confirmation, in the file "pending".
type pendingRules struct {
	Mark  string         `json:"mark"`
	Roles []configs.Role `json:"roles"`
	For   time.Duration  `json:"for"`
	Since time.Time      `json:"since"`
}

// Restored is why there is nothing to confirm: the former rules are back.
type Restored struct {
	At    time.Time     `json:"at"`
	After time.Duration `json:"after"`
	Roles []configs.Role
	Err   string `json:"error"` // the former rules could not be loaded
}

func (r *Restored) Error() string {
	if r.Err != "" {
		return fmt.Sprintf("no confirmation came within %s, and the former rules could not be restored: %s", r.After, r.Err)
	}
	return fmt.Sprintf("no confirmation came within %s: the former rules were restored at %s", r.After, r.At.Local().Format(time.TimeOnly))
}

// ErrNothingPending says that no rules wait for a confirmation.
var ErrNothingPending = errors.New("no rules wait for a confirmation")

func (h Host) path(name string) string { return filepath.Join(h.Dir, name) }

const (
	pendingFile = "pending"  // pendingRules, JSON
	formerFile  = "former"   // the text that restores
	guardFile   = "guard"    // locked while the guard lives
	outcomeFile = "restored" // Restored, JSON
)

// ApplyUnlessLost loads rules and restores the former ones after the given time,
// unless Confirm comes before.
func (h Host) ApplyUnlessLost(ctx context.Context, wait time.Duration, rules ...Rules) error {
	text, err := Render(rules...)
	if err != nil {
		return err
	}
	unlock, err := h.begin(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	roles := rolesOf(rules)
	if err := h.unwatched(roles...); err != nil {
		return err
	}
	if err := h.NFT.Check(ctx, text); err != nil {
		return fmt.Errorf("nothing was changed: %w", err)
	}
	former, err := h.NFT.Restoring(ctx, roles...)
	if err != nil {
		return err
	}
	if err := h.NFT.Check(ctx, former); err != nil {
		return fmt.Errorf("nothing was changed, because the rules of now could not be restored: %w", err)
	}
	if err := h.arm(former, wait, roles); err != nil {
		return errors.Join(fmt.Errorf("nothing was changed: the guard did not start: %w", err), h.forget())
	}
	if err := h.NFT.Load(ctx, text); err != nil {
		return errors.Join(err, h.forget())
	}
	return nil
}

// arm writes down the way back and starts the guard, and returns when it waits.
func (h Host) arm(former string, wait time.Duration, roles []configs.Role) error {
	mark := make([]byte, 16)
	rand.Read(mark)
	p := pendingRules{Mark: hex.EncodeToString(mark), Roles: roles, For: wait, Since: time.Now()}
	text, err := json.Marshal(p)
	if err != nil {
		return err
	}
	os.Remove(h.path(outcomeFile))
	if err := writeFile(h.path(formerFile), []byte(former)); err != nil {
		return err
	}
	if err := writeFile(h.path(pendingFile), text); err != nil {
		return err
	}
	ready, signal, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	cmd := exec.Command(h.Guard[0], append(h.Guard[1:len(h.Guard):len(h.Guard)], h.Dir, p.Mark, wait.String())...)
	cmd.Dir = "/"
	cmd.Env = []string{"LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.ExtraFiles = []*os.File{signal}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	signal.Close()
	if err != nil {
		return err
	}
	go cmd.Wait() // for a caller that lives longer than the guard
	ready.SetReadDeadline(time.Now().Add(10 * time.Second))
	if n, err := ready.Read(make([]byte, 1)); n != 1 {
		return errors.Join(errors.New("it ended at once"), err)
	}
	return nil
}

// Guarded is the guard: it returns when the mark is gone, or restores the former
// rules when the time is over. It tells that it waits by a byte to ready.
func (h Host) Guarded(ctx context.Context, mark string, wait time.Duration, ready func()) error {
	over := time.Now().Add(wait)
	alive, err := flock(h.path(guardFile))
	if err != nil || alive == nil {
		return errors.Join(errors.New("another guard is here"), err)
	}
	defer alive()
	ready()
	for time.Now().Before(over) {
		if p, err := h.marked(); err == nil && (p == nil || p.Mark != mark) {
			return nil
		}
		time.Sleep(min(100*time.Millisecond, max(time.Until(over), 0)))
	}
	unlock, err := h.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	p, err := h.marked()
	if err != nil || p == nil || p.Mark != mark {
		return err
	}
	former, err := os.ReadFile(h.path(formerFile))
	if err == nil {
		for range 60 { // the kernel may be short of memory, or nft be upgraded
			if err = h.NFT.Load(ctx, string(former)); err == nil {
				break
			}
			time.Sleep(time.Second)
		}
	}
	out := Restored{At: time.Now(), After: p.For, Roles: p.Roles}
	if err != nil {
		out.Err = err.Error()
	}
	text, bad := json.Marshal(out)
	return errors.Join(err, bad, writeFile(h.path(outcomeFile), text), h.forget())
}

// Confirm keeps the rules that wait for it and returns their roles. The error is
// *Restored where it came too late, or ErrNothingPending.
func (h Host) Confirm(ctx context.Context) ([]configs.Role, error) {
	unlock, err := h.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	p, err := h.marked()
	if err != nil {
		return nil, err
	}
	if p != nil {
		return p.Roles, h.forget()
	}
	text, err := os.ReadFile(h.path(outcomeFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNothingPending
	}
	out := &Restored{}
	if err = errors.Join(err, json.Unmarshal(text, out)); err != nil {
		return nil, err
	}
	return nil, out
}

// pending is what waits for a confirmation while its guard lives, or nil. What
// nobody guards stays loaded, and blocks nobody.
func (h Host) pending() (*pendingRules, error) {
	p, err := h.marked()
	if err != nil || p == nil {
		return nil, err
	}
	unlock, err := flock(h.path(guardFile))
	if err != nil {
		return nil, err
	}
	if unlock == nil {
		return p, nil
	}
	unlock()
	return nil, nil
}

// marked is what the file says, with or without a guard.
func (h Host) marked() (*pendingRules, error) {
	text, err := os.ReadFile(h.path(pendingFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	p := &pendingRules{}
	if err = errors.Join(err, json.Unmarshal(text, p)); err != nil {
		return nil, fmt.Errorf("%s: %w", h.path(pendingFile), err)
	}
	return p, nil
}

// forget takes the mark away: the guard ends.
func (h Host) forget() error {
	for _, name := range []string{pendingFile, formerFile} {
		if err := os.Remove(h.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
