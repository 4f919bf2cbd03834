// Package alone runs a package's tests where nothing of this machine can be
// touched: in namespaces of their own, which go with them, however they end.
package alone

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const inside = "TULLE_TEST_INSIDE" // set in the process that is

// Main is the body of a TestMain. It starts the test program again, in a mount
// namespace and those that `also` names (unix.CLONE_NEWNET and the like),
// furnishes them, runs the tests there, and exits as they did. Without root there
// are no tests.
func Main(m *testing.M, also uintptr, furnish func() error) {
	if os.Geteuid() != 0 {
		fmt.Println("skipped: needs root to make namespaces")
		os.Exit(0)
	}
	if os.Getenv(inside) == "" {
		os.Exit(again(also))
	}
	if err := furnish(); err != nil {
		fmt.Println("namespaces for the tests:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// Host is a Main whose network, mount and process namespaces stand for a host.
func Host(m *testing.M) {
	Main(m, unix.CLONE_NEWNET|unix.CLONE_NEWPID, func() error {
		lo, err := netlink.LinkByName("lo")
		err = errors.Join(err, unix.Mount("proc", "/proc", "proc", 0, ""), unix.Mount("tmpfs", "/run", "tmpfs", 0, ""))
		if err == nil {
			err = netlink.LinkSetUp(lo)
		}
		return err
	})
}

func again(also uintptr) (code int) {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: also, Unshareflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		fmt.Println(err)
		return 1
	}
	return cmd.ProcessState.ExitCode()
}
