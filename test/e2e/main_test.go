package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/tulle-mesh/tulle/test/e2e/internal/peer"
	"golang.org/x/sys/unix"
)

// The test binary plays four parts, told apart by its first argument:
//
//	go test -> outer: builds the product, makes the namespaces
//	             -> init: process 1 in them, sets up the mounts, reaps orphans
//	                  -> inner: runs the tests
//	                       -> peer NAME: the programs of internal/peer
const (
	partInit  = "e2e-init"
	partInner = "e2e-inner"
	partSweep = "e2e-sweep"
	partPeer  = "peer"
)

// outerVariable tells init the outer process's id as the machine knows it.
const outerVariable = "TULLE_E2E_OUTER"

// scratchRoot is where a run keeps its files; a tmpfs of its own.
const scratchRoot = "/run/e2e"

func TestMain(m *testing.M) {
	part := ""
	if len(os.Args) > 1 {
		part = os.Args[1]
	}
	switch part {
	case partPeer:
		os.Exit(peer.Main(os.Args[2:]))
	case partInit:
		os.Exit(initMain(os.Args[2:]))
	case partSweep:
		os.Exit(sweepMain(os.Args[2:]))
	case partInner:
		os.Args = append(os.Args[:1], os.Args[2:]...)
		os.Exit(m.Run())
	default:
		os.Exit(outerMain(os.Args[1:]))
	}
}

// outerMain runs the tests in new namespaces and returns their exit code.
func outerMain(args []string) int {
	for _, arg := range args {
		if strings.HasPrefix(arg, "-test.list") {
			return run(partCommand(partInner, args))
		}
	}
	if os.Geteuid() != 0 {
		return say("the end-to-end tests make network namespaces; type: sudo -E env PATH=$PATH go test ./test/e2e")
	}
	bin, remove, err := binaries()
	if err != nil {
		return say(err.Error())
	}
	defer remove()
	cmd := partCommand(partInit, args)
	cmd.Env = append(os.Environ(), "TULLE_BIN="+bin, fmt.Sprint(outerVariable, "=", os.Getpid()))
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL,
	}
	defer sweep()
	return run(cmd)
}

// sweep removes the run's cgroup.
func sweep() {
	cmd := partCommand(partSweep, []string{fmt.Sprint(os.Getpid())})
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	run(cmd)
}

// partCommand is this binary with another part to play. The test log is what
// `go test` decides by whether a result may be cached; a result of this package
// must not be, since it depends on binaries that the log does not show.
func partCommand(part string, args []string) *exec.Cmd {
	kept := []string{part}
	for _, arg := range args {
		if !strings.HasPrefix(arg, "-test.testlogfile") {
			kept = append(kept, arg)
		}
	}
	cmd := exec.Command(self(), kept...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd
}

// binaries returns the folder of the product's binaries, built now unless
// TULLE_BIN names one.
func binaries() (dir string, remove func(), err error) {
	if dir := os.Getenv("TULLE_BIN"); dir != "" {
		dir, err = filepath.Abs(dir)
		return dir, func() {}, err
	}
	dir, err = os.MkdirTemp("", "tulle-e2e-")
	if err != nil {
		return "", nil, err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", nil, err
	}
	build := exec.Command("go", "build", "-o", dir, "../../cmd/...")
	if out, err := build.CombinedOutput(); err != nil {
		os.RemoveAll(dir)
		return "", nil, fmt.Errorf("go build ./cmd/...: %w\n%s", err, out)
	}
	return dir, func() { os.RemoveAll(dir) }, nil
}

// initMain is process 1 of the namespaces. When it ends, the kernel kills all
// that is left in them.
func initMain(args []string) int {
	if err := setUpHost(); err != nil {
		return say("set up the namespaces of the test: " + err.Error())
	}
	cmd := partCommand(partInner, args)
	cmd.Env = append(os.Environ(), "TMPDIR="+scratchRoot+"/tmp")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return say(err.Error())
	}
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			return say("wait: " + err.Error())
		case pid == cmd.Process.Pid && status.Signaled():
			return 128 + int(status.Signal())
		case pid == cmd.Process.Pid:
			return status.ExitStatus()
		}
	}
}

// setUpHost makes the fresh namespaces look like a small host.
func setUpHost() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for _, m := range []struct{ target, kind, data string }{
		{"/proc", "proc", ""},
		{"/sys", "sysfs", ""},
		{"/run", "tmpfs", "mode=755"},
		{"/var/lib", "tmpfs", "mode=755"},
		{"/dev/shm", "tmpfs", "mode=1777"},
	} {
		if err := unix.Mount(m.kind, m.target, m.kind, 0, m.data); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	outer, err := strconv.Atoi(os.Getenv(outerVariable))
	if err != nil {
		return fmt.Errorf("%s: %w", outerVariable, err)
	}
	if err := enterCgroup(outer); err != nil {
		return fmt.Errorf("enter a cgroup: %w", err)
	}
	if err := os.MkdirAll(scratchRoot+"/tmp", 0o755); err != nil {
		return err
	}
	if err := os.Chmod(scratchRoot+"/tmp", 0o1777); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte("host")); err != nil {
		return err
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("ip link set lo up: %w: %s", err, out)
	}
	return nil
}

func run(cmd *exec.Cmd) int {
	err := cmd.Run()
	if exit := cmd.ProcessState; exit != nil && exit.ExitCode() >= 0 {
		return exit.ExitCode()
	}
	return say(err.Error())
}

func say(line string) int {
	fmt.Fprintln(os.Stderr, "e2e:", line)
	return 1
}

// self is the path of this very binary.
func self() string {
	path, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return path
}
