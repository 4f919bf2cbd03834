package redirect

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// inside calls do on an OS thread that is in the network namespace; children
// that do starts are in it too. With nil, do runs on the caller's thread, in
// the namespace that thread is in.
func inside(netns *os.File, do func() error) error {
	if netns == nil {
		return do()
	}
	done := make(chan error, 1)
	go func() { done <- onThreadIn(netns, do) }()
	return <-done
}

// onThreadIn moves the goroutine's thread into netns and back. If it cannot be
// moved back the thread stays locked, so that it ends with its goroutine
// instead of running others' code in the wrong namespace.
func onThreadIn(netns *os.File, do func() error) error {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open own network namespace: %w", err)
	}
	defer home.Close()
	if err := unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network namespace %s (needs CAP_SYS_ADMIN; run as root): %w", netns.Name(), err)
	}
	err = do()
	if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
		runtime.UnlockOSThread()
	}
	return err
}
