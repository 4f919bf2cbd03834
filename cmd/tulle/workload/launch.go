package workload

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tulle-mesh/tulle/cmd/tulle/network"
)

// What follows runs on a namespace's thread. Attributes of a thread are inherited
// by the processes it starts, so no helper program has to set them up.

// privateFiles gives the calling thread, and what it starts, a view of the
// file system of their own: the workload's resolv.conf, in a network of its own a
// /sys that shows the workload's interfaces, and no local resolver service that would
// answer names past the mesh.
func privateFiles(resolvConf string, ownNetwork bool) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare mount namespace: %w", err)
	}
	// Slave: what the host mounts later is seen, what we mount is ours.
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make / a slave mount: %w", err)
	}
	if ownNetwork {
		if err := freshSys(); err != nil {
			return err
		}
	}
	// Our copies of other workloads' namespaces would keep those alive.
	names, err := filepath.Glob(filepath.Join(network.NamespaceDir, "*"))
	if err != nil {
		return err
	}
	for _, name := range names {
		_ = unix.Unmount(name, unix.MNT_DETACH)
	}
	for _, socket := range []string{"/run/systemd/resolve/io.systemd.Resolve", "/run/nscd/socket"} {
		if _, err := os.Lstat(socket); err == nil {
			if err := unix.Mount("/dev/null", socket, "", unix.MS_BIND, ""); err != nil {
				return fmt.Errorf("hide %s: %w", socket, err)
			}
		}
	}
	target, err := filepath.EvalSymlinks("/etc/resolv.conf")
	if err != nil {
		return fmt.Errorf("/etc/resolv.conf leads nowhere, so the workload's cannot take its place: %w; type: touch \"$(readlink -m /etc/resolv.conf)\"", err)
	}
	if err := unix.Mount(resolvConf, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount the workload's %s: %w", target, err)
	}
	return nil
}

// freshSys mounts a sysfs of the thread's network namespace, and puts back on
// it what was mounted below the old one (cgroups, bpf).
func freshSys() error {
	below, err := mountsBelow("/sys/")
	if err != nil {
		return err
	}
	trees := make([]int, 0, len(below))
	defer func() {
		for _, fd := range trees {
			_ = unix.Close(fd)
		}
	}()
	for _, path := range below {
		fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
		if err != nil {
			return fmt.Errorf("clone mount %s: %w", path, err)
		}
		trees = append(trees, fd)
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	for i, fd := range trees {
		err := unix.MoveMount(fd, "", unix.AT_FDCWD, below[i], unix.MOVE_MOUNT_F_EMPTY_PATH)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("move mount %s: %w", below[i], err)
		}
	}
	return nil
}

// mountsBelow returns the topmost mount points below a directory.
func mountsBelow(dir string) ([]string, error) {
	text, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, err
	}
	return topmost(string(text), dir), nil
}

// topmost reads mountinfo (proc_pid_mountinfo(5)): field 5 is the mount point.
func topmost(mountinfo, dir string) []string {
	var found []string
next:
	for line := range strings.Lines(mountinfo) {
		fields := strings.Fields(line)
		if len(fields) < 5 || !strings.HasPrefix(fields[4], dir) || strings.Contains(fields[4], `\`) {
			continue
		}
		for _, f := range found {
			if fields[4] == f || strings.HasPrefix(fields[4], f+"/") {
				continue next
			}
		}
		found = append(found, fields[4])
	}
	return found
}

// renounce gives up, for the calling thread and what it starts, everything a
// proxy could gain power by: what is left of root goes with the change of user.
func renounce() error {
	last, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(last)))
	if err != nil {
		return fmt.Errorf("cap_last_cap: %w", err)
	}
	for c := range n + 1 {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	if err := clearInheritable(); err != nil {
		return err
	}
	return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
}

func clearInheritable() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("capget: %w", err)
	}
	data[0].Inheritable, data[1].Inheritable = 0, 0
	if err := unix.Capset(&header, &data[0]); err != nil {
		return fmt.Errorf("capset: %w", err)
	}
	return nil
}
