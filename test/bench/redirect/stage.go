package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Peers, as the results name them.
const (
	peerDirect   = "direct" // without proxies
	peerNone     = "none"   // the application calls the proxy
	peerEBPF     = "ebpf"
	peerNFTables = "nftables"
	peerIPTables = "iptables"
)

// Figures, as the results name them.
const (
	figureConnect = "connect us"
	figureAnswer  = "connect to answer us"
	figureRate    = "connections/s"
	figureCPU     = "CPU us/connection"
	figurePing    = "ping-pong us"
	figureEntries = "conntrack entries"
)

var figureNames = []string{figureConnect, figureAnswer, figureRate, figureCPU, figurePing}

// work is what all its peers do.
type work struct {
	name   string
	stages []stage
}

var works = []work{
	{workProduct, []stage{{peerDirect, direct}, product(peerEBPF), product(peerNFTables), product(peerIPTables)}},
	{"outbound", stages(outbound)},
	{workEndToEnd, stages(endToEnd)},
	{workBystander, bystanders},
}

const (
	workProduct   = "tulle"
	workEndToEnd  = "end-to-end" // with stubs
	workBystander = "bystander"
)

// stage is a peer at work: processes in namespaces of their own, and in a cgroup of
// their own, to which eBPF programs are attached as they would be to the machine's. So
// all peers can be there at once, and do not notice each other.
type stage struct {
	peer  string
	begin func(bin string) (*scene, error)
}

// cgroups is where the bench has cgroup2.
const cgroups = "/run/cgroup"

// player is a process that runs a stage, and waits to be told what to do.
type player struct {
	*process
	group string // its cgroup
}

func (s stage) open(work, bin string) (*player, error) {
	group, err := os.MkdirTemp(cgroups, "tulle-bench-")
	if err != nil {
		return nil, err
	}
	dir, err := os.Open(group)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	cmd := exec.Command("/proc/self/exe", "box", work, s.peer, bin)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	p, err := begin(cmd)
	if err != nil {
		return nil, errors.Join(err, removeTree(group))
	}
	return &player{p, group}, nil
}

// close ends all that the stage has started.
func (p *player) close() error {
	p.end()
	return removeTree(p.group)
}

// removeTree removes a cgroup and all below it, once its last process is gone.
func removeTree(dir string) error {
	below, err := os.ReadDir(dir)
	for _, d := range below {
		if d.IsDir() {
			err = errors.Join(err, removeTree(filepath.Join(dir, d.Name())))
		}
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		gone := unix.Rmdir(dir)
		if !errors.Is(gone, unix.EBUSY) || time.Now().After(end) {
			return errors.Join(err, gone)
		}
	}
}

// box runs a stage. It is in the stage's cgroup already: what it starts has that one
// for the root of all.
func box(args []string) error {
	cmd := exec.Command("/proc/self/exe", append([]string{"stage"}, args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWCGROUP,
		Pdeathsig:  syscall.SIGKILL,
	}
	return cmd.Run()
}

// onStage [WORK, PEER, BIN] is the first process in there.
func onStage(args []string) error {
	if err := furnish("/sys/fs/cgroup", "/var/lib"); err != nil {
		return err
	}
	i := slices.IndexFunc(works, func(w work) bool { return w.name == args[0] })
	j := slices.IndexFunc(works[i].stages, func(s stage) bool { return s.peer == args[1] })
	scene, err := works[i].stages[j].begin(args[2])
	if err == nil {
		err = scene.play()
	}
	if err != nil {
		return fmt.Errorf("%s, %s: %w", args[0], args[1], err)
	}
	return nil
}

// furnish gives new namespaces what the redirects expect of a host.
func furnish(cgroup string, empty ...string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for _, at := range append(empty, "/run") {
		if err := unix.Mount("tmpfs", at, "tmpfs", 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", at, err)
		}
	}
	if err := os.MkdirAll(cgroup, 0o755); err != nil {
		return err
	}
	for _, m := range []struct{ kind, at string }{{"proc", "/proc"}, {"bpf", "/sys/fs/bpf"}, {"cgroup2", cgroup}} {
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	return upLoopback()
}
