package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/tulle-mesh/tulle/cmd/tulle/command"
)

// Stray returns the process of a daemon that serves the mesh of a run directory
// although its files there were removed, 0 if there is none. Only root sees it.
//
// What tells is what cannot be removed: the lock that it holds on a file of which
// the kernel still knows where it was (proc_pid_fd(5), proc_pid_fdinfo(5)). Meshes of other
// network namespaces, whose paths may read the same, are none of ours.
func Stray(run string) int {
	here, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return 0
	}
	path := resolved(lockPath(run))
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid == os.Getpid() {
			continue
		}
		if there, err := os.Readlink(filepath.Join(dir, "ns/net")); err != nil || there != here {
			continue
		}
		if holdsLock(dir, path) {
			return pid
		}
	}
	return 0
}

// resolved is the path as the kernel names it, whether or not its end exists.
func resolved(path string) string {
	path, err := filepath.Abs(path)
	if err != nil {
		return path
	}
	missing := ""
	for dir := path; ; dir = filepath.Dir(dir) {
		if found, err := filepath.EvalSymlinks(dir); err == nil {
			return filepath.Join(found, missing)
		} else if !errors.Is(err, fs.ErrNotExist) || dir == "/" {
			return path
		}
		missing = filepath.Join(filepath.Base(dir), missing)
	}
}

// holdsLock tells whether a process, by its folder in /proc, has a lock on a file
// that is, or was, at path.
func holdsLock(proc, path string) bool {
	fds, _ := os.ReadDir(filepath.Join(proc, "fd"))
	for _, fd := range fds {
		target, err := os.Readlink(filepath.Join(proc, "fd", fd.Name()))
		if err != nil || target != path && target != path+" (deleted)" {
			continue
		}
		info, err := os.ReadFile(filepath.Join(proc, "fdinfo", fd.Name()))
		if err == nil && strings.Contains(string(info), "FLOCK") {
			return true
		}
	}
	return false
}

// ErrStray is the error of commands that find a stray daemon instead of the mesh;
// nil if there is none.
func ErrStray(run string) error {
	pid := Stray(run)
	if pid == 0 {
		return nil
	}
	return command.WithHint(fmt.Errorf("the mesh runs (process %d), but its files in %s were removed", pid, run), "type: "+anew(run))
}

// anew is what to type to end a mesh and start it again.
func anew(run string) string {
	if run == command.DefaultRun {
		return "tulle down && tulle up -d"
	}
	return fmt.Sprintf("tulle down --run %[1]s && tulle up -d --run %[1]s", run)
}
