package workload

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tulle-mesh/tulle/cmd/tulle/network"
	"github.com/tulle-mesh/tulle/cni/redirect"
)

// A workload ends when its command does; nothing that it started may live on.
// Two nets catch what is left: the replica's cgroup, which a process cannot leave by
// forking, and the replica's network namespace, which catches those that changed
// their cgroup (a login session does).

// cgroupParent holds the replicas' cgroups.
const cgroupParent = "tulle"

// Cgroup is a replica's cgroup2; the zero value stands for a host without one.
type Cgroup struct{ Dir string }

// CgroupFor names the cgroup of a replica. Pid and start time of its supervisor
// are part of the name: hosts inside namespaces share the cgroup tree.
func CgroupFor(replica string, pid int, start uint64) Cgroup {
	root := cgroupRoot()
	if root == "" {
		return Cgroup{}
	}
	return Cgroup{Dir: filepath.Join(root, cgroupParent, fmt.Sprintf("%s.%d.%d", replica, pid, start))}
}

// cgroupRoot finds where cgroup2 is mounted, "" if nowhere.
func cgroupRoot() string {
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var st unix.Statfs_t
		if unix.Statfs(dir, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
			return dir
		}
	}
	return ""
}

// open makes the cgroup and returns its directory, which the caller has to close.
func (c Cgroup) open() (*os.File, error) {
	var err error
	for range 3 { // another replica may be removing the parent at this moment
		if err = os.MkdirAll(c.Dir, 0o755); err == nil {
			return os.Open(c.Dir)
		}
	}
	return nil, err
}

// kill ends every process in the cgroup.
func (c Cgroup) kill() {
	if c.Dir == "" {
		return
	}
	// cgroup.kill (kernel 5.14) is atomic; without it processes may fork on, so
	// the caller repeats.
	if os.WriteFile(filepath.Join(c.Dir, "cgroup.kill"), []byte("1"), 0) == nil {
		return
	}
	for _, pid := range c.pids() {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
}

func (c Cgroup) pids() []int {
	if c.Dir == "" {
		return nil
	}
	text, _ := os.ReadFile(filepath.Join(c.Dir, "cgroup.procs"))
	var pids []int
	for _, field := range strings.Fields(string(text)) {
		if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids
}

func (c Cgroup) remove() error {
	if c.Dir == "" {
		return nil
	}
	err := os.Remove(c.Dir)
	_ = os.Remove(filepath.Dir(c.Dir)) // fails while other replicas are in it
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.EROFS) {
		return nil // it was never made
	}
	return err
}

// inNamespace returns the processes in a network namespace, which is known by
// the device and inode of its file.
func inNamespace(ns syscall.Stat_t) []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		var st syscall.Stat_t
		if syscall.Stat("/proc/"+e.Name()+"/ns/net", &st) == nil && st.Dev == ns.Dev && st.Ino == ns.Ino {
			pids = append(pids, pid)
		}
	}
	return pids
}

// killTimeout bounds the wait for killed processes: one that hangs in the
// kernel dies when that lets go of it.
const killTimeout = 2 * time.Second

// remains returns the processes in the cgroup and in the namespace at path, but
// those to spare and ourselves.
func remains(c Cgroup, path string, spare ...int) []int {
	pids := c.pids()
	var ns syscall.Stat_t
	if syscall.Stat(path, &ns) == nil {
		pids = append(pids, inNamespace(ns)...)
	}
	slices.Sort(pids)
	return slices.DeleteFunc(slices.Compact(pids), func(pid int) bool {
		return pid == os.Getpid() || slices.Contains(spare, pid)
	})
}

// KillRemains ends everything in the cgroup and in the namespace at path but
// the processes to spare, and removes the cgroup.
func KillRemains(c Cgroup, path string, spare ...int) error {
	deadline := time.Now().Add(killTimeout)
	for wait := time.Millisecond; ; wait = min(2*wait, 20*time.Millisecond) {
		c.kill()
		left := remains(c, path, spare...)
		for _, pid := range left {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		var err error
		if len(left) == 0 {
			// Busy: processes that are dying, and are listed no more, still count.
			if err = c.remove(); !errors.Is(err, unix.EBUSY) {
				return err
			}
		}
		if time.Now().After(deadline) {
			return errors.Join(err, fmt.Errorf("processes %v do not die", left))
		}
		time.Sleep(wait)
	}
}

// Sweep removes all that a replica leaves behind when its supervisor, which is
// known by pid and start time, was killed: processes, cgroup, namespace, and the host's end of the wire.
func Sweep(replica string, pid int, start uint64, link string) error {
	name := NamespaceName(replica)
	return errors.Join(
		KillRemains(CgroupFor(replica, pid, start), filepath.Join(network.NamespaceDir, name)),
		network.DeleteLink(link),
		network.RemoveNamespace(name),
	)
}

// SweepHost is Sweep for a replica in the host's network.
func SweepHost(replica string, pid int, start uint64, bridge string, addresses ...netip.Addr) error {
	group, leave := CgroupFor(replica, pid, start), func() error { return nil }
	if group.Dir != "" {
		leave = redirect.Node{}.Left(group.Dir)
	}
	return errors.Join(
		KillRemains(group, ""),
		leave(),
		redirect.Node{}.Collect(),
		awaitSilence(addresses),
		network.RemoveMember(bridge, addresses...),
	)
}

// silenceTimeout bounds the wait for a proxy to die, which has been killed already.
const silenceTimeout = 30 * time.Second

// awaitSilence waits until nobody listens at a replica's addresses any more. In the
// host's network its proxy is in no cgroup and no namespace to be found by; it dies
// with its supervisor, but a moment later, and its successor needs its ports.
func awaitSilence(addresses []netip.Addr) error {
	deadline := time.Now().Add(silenceTimeout)
	for wait := time.Millisecond; ; wait = min(2*wait, 20*time.Millisecond) {
		listeners, err := network.Listeners()
		if err != nil {
			return err
		}
		i := slices.IndexFunc(listeners, func(l netip.AddrPort) bool { return slices.Contains(addresses, l.Addr()) })
		if i < 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("somebody still listens at %s", listeners[i])
		}
		time.Sleep(wait)
	}
}

// NamespaceName is what a replica's network namespace is called.
func NamespaceName(replica string) string { return "tulle-" + replica }
