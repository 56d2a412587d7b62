package firewall

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"sallyport/configs"
)

// NFT is the nft command. It is handed its input on stdin, and nothing in that
// is from anybody else: only text that Render made, or that nft itself listed.
type NFT struct {
	Command []string // the program and what stands before its arguments
}

// ErrNoNFT says that there is no nft.
var ErrNoNFT = errors.New("nft is not installed here")

// ErrNotPermitted says that the kernel lets us not.
var ErrNotPermitted = errors.New("nftables may be read and changed by root, or with CAP_NET_ADMIN, only")

// FindNFT looks for nft in PATH and where systems keep it.
func FindNFT() (NFT, error) {
	for _, name := range []string{"nft", "/usr/sbin/nft", "/sbin/nft"} {
		if path, err := exec.LookPath(name); err == nil {
			return NFT{[]string{path}}, nil
		}
	}
	return NFT{}, ErrNoNFT
}

// nftTimeout bounds one run of nft: a set of the largest size takes a second.
const nftTimeout = time.Minute

func (n NFT) run(ctx context.Context, stdin string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, nftTimeout)
	defer cancel()
	args = append(n.Command[1:len(n.Command):len(n.Command)], args...)
	cmd := exec.CommandContext(ctx, n.Command[0], args...)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Env = []string{"LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Dir = "/"
	cmd.WaitDelay = 5 * time.Second
	var out, problem bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problem
	err := cmd.Run()
	if err == nil {
		return out.Bytes(), nil
	}
	said := strings.TrimSpace(problem.String())
	switch {
	case strings.Contains(said, "Operation not permitted"):
		return nil, ErrNotPermitted
	case said != "":
		lines := strings.Split(said, "\n")
		return nil, fmt.Errorf("nft: %s", strings.Join(lines[:min(len(lines), 3)], " "))
	}
	return nil, fmt.Errorf("nft: %w", err)
}

// Check lets nft and the kernel look at a text without loading it.
func (n NFT) Check(ctx context.Context, text string) error {
	_, err := n.run(ctx, text, "-c", "-f", "-")
	return err
}

// Load loads a text in one transaction: all of it or none.
func (n NFT) Load(ctx context.Context, text string) error {
	_, err := n.run(ctx, text, "-f", "-")
	return err
}

// missing tells an absent table from other errors.
func missing(err error) bool {
	return err != nil && strings.Contains(err.Error(), "No such file or directory")
}

// Restoring is the text that brings the table of each role back to what it is
// now, its absence included.
func (n NFT) Restoring(ctx context.Context, roles ...configs.Role) (string, error) {
	var b strings.Builder
	for _, role := range roles {
		now, err := n.run(ctx, "", "list", "table", "inet", Table(role))
		if err != nil && !missing(err) {
			return "", err
		}
		b.WriteString(removal(role))
		b.Write(now)
	}
	return b.String(), nil
}

// removal is the text that removes a table, also where there is none.
func removal(role configs.Role) string {
	return fmt.Sprintf("add table inet %s\ndelete table inet %[1]s\n", Table(role))
}

// Removal is the text that removes the tables of roles.
func Removal(roles ...configs.Role) string {
	var b strings.Builder
	for _, role := range roles {
		b.WriteString(removal(role))
	}
	return b.String()
}

// Kernel is the table of a role as the kernel has it; nil if it has none.
func (n NFT) Kernel(ctx context.Context, role configs.Role) (*KernelTable, error) {
	out, err := n.run(ctx, "", "-j", "list", "table", "inet", Table(role))
	if missing(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return parseKernel(out)
}
