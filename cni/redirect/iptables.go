package redirect

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// programPatience bounds one run of a program, lockPatience the part of it
// spent waiting for another program that is changing rules; in seconds, as the
// programs want it.
const (
	programPatience = 30 * time.Second
	lockPatience    = "10"
)

// iptablesBackend runs iptables-restore and ip6tables-restore, once each for a
// change. Each takes a table as a whole or not at all; over the four tables it
// is this backend that keeps all or nothing, by putting back what was there.
type iptablesBackend struct {
	netns    *os.File
	families []family
}

// A family is one version of IP and the programs for it.
type family struct {
	v6            bool
	save, restore string
}

// IPTables returns the backend that uses the iptables programs, legacy or
// nf_tables flavour, in the network namespace that netns refers to; nil stands
// for that of the calling thread at each call. netns must stay open as long as
// the backend is used. The empty built-in chains that the nf_tables flavour
// makes on first use stay after Remove, as they do with the programs alone.
func IPTables(netns *os.File) Backend {
	families := []family{{save: "iptables-save", restore: "iptables-restore"}}
	// Where the kernel has no IPv6 nothing can go by it, and ip6tables fails.
	if hasIPv6() {
		families = append(families, family{v6: true, save: "ip6tables-save", restore: "ip6tables-restore"})
	}
	return &iptablesBackend{netns, families}
}

func hasIPv6() bool {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return !errors.Is(err, unix.EAFNOSUPPORT)
	}
	_ = unix.Close(fd)
	return true
}

func (b *iptablesBackend) Name() string { return "iptables" }

// Probe has the programs check the rules without committing them.
func (b *iptablesBackend) Probe() error {
	for _, f := range b.families {
		if _, err := b.read(f); err != nil {
			return err
		}
		input := transition(nil, render(Rules{}.withDefaults().chains(), f.v6))
		if err := b.commit(f, input, "--test"); err != nil {
			return err
		}
	}
	return nil
}

func (b *iptablesBackend) Apply(r Rules) error {
	if err := r.Validate(); err != nil {
		return err
	}
	chains := r.withDefaults().chains()
	return b.change(func(f family) []iptTable { return render(chains, f.v6) })
}

func (b *iptablesBackend) Remove() error {
	return b.change(func(family) []iptTable { return nil })
}

// change brings every family to what want says, or leaves all as they were.
func (b *iptablesBackend) change(want func(family) []iptTable) error {
	before := make([][]iptTable, len(b.families))
	for i, f := range b.families {
		var err error
		if before[i], err = b.read(f); err != nil {
			return err
		}
	}
	for i, f := range b.families {
		if err := b.commit(f, transition(before[i], want(f))); err != nil {
			return errors.Join(err, b.putBack(before[:i+1]))
		}
	}
	return nil
}

// putBack restores the first families to what they were before a change that
// did not succeed.
func (b *iptablesBackend) putBack(before [][]iptTable) error {
	var errs []error
	for i, was := range before {
		f := b.families[i]
		is, err := b.read(f)
		if err == nil {
			err = b.commit(f, transition(is, was))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("rules could not be put back as they were; look at: %s | grep %s: %w", f.save, chainPrefix, err))
		}
	}
	return errors.Join(errs...)
}

// read returns what is ours among the family's rules.
func (b *iptablesBackend) read(f family) ([]iptTable, error) {
	saved, err := b.run(f.save, "")
	if err != nil {
		return nil, err
	}
	return parseSaved(saved), nil
}

// commit hands input to the family's restore program.
func (b *iptablesBackend) commit(f family, input string, flags ...string) error {
	if input == "" {
		return nil
	}
	_, err := b.run(f.restore, input, append([]string{"--noflush", "-w", lockPatience}, flags...)...)
	return err
}

// run runs a program in the backend's namespace and returns its output.
func (b *iptablesBackend) run(program, input string, args ...string) (string, error) {
	path, err := FindProgram(program)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), programPatience)
	defer cancel()
	var stdout, stderr strings.Builder
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdin = strings.NewReader(input)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := inside(b.netns, cmd.Run); err != nil {
		return "", explainProgram(program, stderr.String(), err)
	}
	return stdout.String(), nil
}

// FindProgram finds iptables-restore and its like on the PATH, and where root's
// programs are: the PATH of a user who became root often leaves these folders
// out. Its error says what to install, and wraps exec.ErrNotFound.
func FindProgram(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	for _, folder := range []string{"/usr/sbin", "/sbin"} {
		if path, err := exec.LookPath(filepath.Join(folder, name)); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is not installed; type: apt-get install iptables (or what your system's package manager says): %w", name, exec.ErrNotFound)
}

// explainProgram adds to a program's failure what it said and what to do.
func explainProgram(program, said string, err error) error {
	said = strings.Join(strings.Fields(said), " ")
	switch {
	case strings.Contains(said, "Permission denied"), strings.Contains(said, "Operation not permitted"):
		return fmt.Errorf("%s: needs CAP_NET_ADMIN in the network namespace; run as root (sudo): %w: %s", program, err, said)
	case strings.Contains(said, "does not exist"), strings.Contains(said, "do you need to insmod"), strings.Contains(said, "missing kernel module"):
		return fmt.Errorf("%s: the kernel lacks a part; type: modprobe -a iptable_nat ip6table_nat xt_owner xt_REDIRECT xt_conntrack: %w: %s", program, err, said)
	case said == "":
		return fmt.Errorf("%s: %w", program, err)
	}
	return fmt.Errorf("%s: %w: %s", program, err, said)
}
