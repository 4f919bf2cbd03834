package host

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

// TestMain runs the tests in network, mount and process namespaces of their
// own, which stand for the host: nothing of the machine is touched.
func TestMain(m *testing.M) {
	const inside = "TULLE_TEST_INSIDE"
	if os.Getuid() != 0 {
		fmt.Println("skipped: needs root to make network namespaces")
		os.Exit(0)
	}
	if os.Getenv(inside) == "" {
		cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		cmd.Env = append(os.Environ(), inside+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWPID, Unshareflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL,
		}
		err := cmd.Run()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(cmd.ProcessState.ExitCode())
	}
	lo, err := netlink.LinkByName("lo")
	err = errors.Join(err, unix.Mount("proc", "/proc", "proc", 0, ""), unix.Mount("tmpfs", "/run", "tmpfs", 0, ""))
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}
