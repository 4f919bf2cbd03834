package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tulle-mesh/tulle/cni/redirect"
	"github.com/tulle-mesh/tulle/mesh"
)

// Which backend a pod gets:
//
//	it has one already        that one: two at once are in each other's way
//	it starts now             eBPF if the machine can, else nftables
//	it runs already           nftables if the machine can, else eBPF: the latter
//	                          takes a proxy that begins to listen after it
//	it numbers its own users  nftables: eBPF knows the proxy by the machine's number
//
// So pods with different ones live on a machine together, and a machine may change
// its mind at any time. iptables is not here: it needs programs beside ours.

// kernel is a machine as a place for redirects.
type kernel interface {
	// Load makes the machine ready for eBPF, or says why it is not fit.
	Load() error
	// Collect clears away what there is of pods that have gone.
	Collect() error
	// Applied tells which backend a namespace has, "" for none.
	Applied(netns *os.File) (string, error)
	// Backend returns the one of that name.
	Backend(name string, netns *os.File) redirect.Backend
}

// machine is the one that we run on.
type machine struct{ redirect.Node }

func (m machine) Load() error {
	var fs unix.Statfs_t
	if err := unix.Statfs(m.Cgroup, &fs); err != nil || uint32(fs.Type) != unix.CGROUP2_SUPER_MAGIC {
		return fmt.Errorf("%s is not the root of cgroup2", m.Cgroup)
	}
	err := m.Probe()
	if errors.Is(err, redirect.ErrNoBPFFS) { // its advice is for whoever sees the machine's own folders
		return fmt.Errorf("%w; type on the node: mount -t bpf bpf /sys/fs/bpf", redirect.ErrNoBPFFS)
	}
	if err != nil {
		return err
	}
	return m.Node.Load()
}

func (m machine) Backend(name string, netns *os.File) redirect.Backend {
	if name == mesh.RedirectEBPF {
		return m.EBPF(netns)
	}
	return redirect.NFTables(netns)
}

const nftables = "nftables"

// Redirects are what Config.Redirect may say.
var Redirects = []string{redirect.Auto, mesh.RedirectEBPF, nftables}

// choose finds out what the machine can, makes it ready, and says so.
func (a *Agent) choose() error {
	var unfit []string
	for _, name := range []string{mesh.RedirectEBPF, nftables} {
		if a.config.Redirect != redirect.Auto && a.config.Redirect != name {
			continue
		}
		err := a.tryOut(name)
		if err == nil {
			reason := "asked for"
			switch {
			case a.config.Redirect != redirect.Auto:
			case len(unfit) == 0:
				reason = "the first choice, and it works here"
			default:
				reason = "the best that works here: " + unfit[0]
			}
			a.first = name
			a.config.Log.Info("redirect chosen", "backend", name, "reason", reason)
			return nil
		}
		unfit = append(unfit, fmt.Sprintf("%s: %v", name, err))
	}
	return fmt.Errorf("this node cannot redirect traffic: %s", strings.Join(unfit, "; "))
}

func (a *Agent) tryOut(name string) error {
	if name == mesh.RedirectEBPF {
		return a.kernel.Load()
	}
	return a.kernel.Backend(name, nil).Probe()
}

// backend returns the one for the pod in netns; late: the pod runs already.
func (a *Agent) backend(netns *os.File, late bool) (redirect.Backend, error) {
	applied, err := a.kernel.Applied(netns)
	if err != nil {
		return nil, err
	}
	names := []string{a.first}
	switch foreign, err := ownUsers(netns); {
	case err != nil:
		return nil, err
	case applied != "":
		names = []string{applied}
	case foreign:
		names = []string{nftables}
	case late && a.first == mesh.RedirectEBPF:
		names = []string{nftables, mesh.RedirectEBPF}
	}
	err = nil
	for _, name := range names {
		b := a.kernel.Backend(name, netns)
		unfit := b.Probe()
		if unfit == nil {
			return b, nil
		}
		err = errors.Join(err, fmt.Errorf("%s: %w", name, unfit))
	}
	return nil, err
}

// ownUsers tells whether a network namespace belongs to another user namespace than
// this process: the pod has user numbers of its own (hostUsers: false).
func ownUsers(netns *os.File) (bool, error) {
	fd, err := unix.IoctlRetInt(int(netns.Fd()), unix.NS_GET_USERNS)
	if err != nil {
		return false, os.NewSyscallError("NS_GET_USERNS", err)
	}
	owner := os.NewFile(uintptr(fd), "user namespace")
	defer owner.Close()
	theirs, err := owner.Stat()
	if err != nil {
		return false, err
	}
	own, err := os.Stat("/proc/self/ns/user")
	if err != nil {
		return false, err
	}
	return !os.SameFile(theirs, own), nil
}

// collectInterval is how long what the kernel holds of an ended pod may outlive it.
// Its network namespace tells that it has ended, rather than the runtime's DEL: as
// long as that is there, so may be a process, which must not pass in plaintext.
const collectInterval = 10 * time.Second

// collect clears away what there is of pods that have gone, until ctx ends.
func (a *Agent) collect(ctx context.Context) {
	ticker := time.NewTicker(collectInterval)
	defer ticker.Stop()
	for {
		if err := a.kernel.Collect(); err != nil {
			a.config.Log.Error("cannot clear away the redirects of pods that are gone", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}
