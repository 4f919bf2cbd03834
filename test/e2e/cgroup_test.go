package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// The cgroup tree is the one thing that dies with no namespace. So a run lives
// in a cgroup of its own, named after the outer process, in which a cgroup
// namespace is rooted; what is left of it is swept away by the outer process,
// or, if that was killed, by the next run.

const (
	cgroupPrefix = "tulle-e2e-"
	cgroupDir    = "/sys/fs/cgroup"
)

// enterCgroup moves the calling process into a new cgroup and leaves only that
// one to be seen in cgroupDir. A host without cgroup2 is left without.
func enterCgroup(outer int) error {
	if err := unix.Mount("cgroup2", cgroupDir, "cgroup2", 0, ""); err != nil {
		return nil
	}
	own := filepath.Join(cgroupDir, fmt.Sprint(cgroupPrefix, outer))
	if err := os.Mkdir(own, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(own+"/cgroup.procs", []byte("0"), 0); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return err
	}
	if err := unix.Unmount(cgroupDir, 0); err != nil {
		return err
	}
	return unix.Mount("cgroup2", cgroupDir, "cgroup2", 0, "")
}

// sweepMain removes the cgroups of the given run and of all that have ended. It
// runs in a mount namespace of its own.
func sweepMain(args []string) int {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return say(err.Error())
	}
	if err := unix.Mount("cgroup2", cgroupDir, "cgroup2", 0, ""); err != nil {
		return 0
	}
	runs, _ := filepath.Glob(filepath.Join(cgroupDir, cgroupPrefix+"*"))
	for _, run := range runs {
		owner := strings.TrimPrefix(filepath.Base(run), cgroupPrefix)
		pid, _ := strconv.Atoi(owner)
		if len(args) == 1 && args[0] == owner || syscall.Kill(pid, 0) == syscall.ESRCH {
			removeTree(run)
		}
	}
	return 0
}

// removeTree removes a cgroup and all below it; the files in it cannot be removed.
func removeTree(dir string) {
	below, _ := os.ReadDir(dir)
	for _, d := range below {
		if d.IsDir() {
			removeTree(filepath.Join(dir, d.Name()))
		}
	}
	os.Remove(dir)
}
