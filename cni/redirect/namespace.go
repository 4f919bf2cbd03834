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
	return elsewhere(func() error {
		if err := unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s (needs CAP_SYS_ADMIN; run as root): %w", netns.Name(), err)
		}
		return nil
	}, do)
}

// elsewhere calls do on an OS thread that enter has moved into another network
// namespace, and moves it back. If that cannot be done the thread stays locked, so
// that it ends with its goroutine instead of running others' code over there.
func elsewhere(enter, do func() error) error {
	done := make(chan error, 1)
	go func() { done <- thereAndBack(enter, do) }()
	return <-done
}

func thereAndBack(enter, do func() error) error {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open own network namespace: %w", err)
	}
	defer home.Close()
	if err := enter(); err != nil {
		runtime.UnlockOSThread()
		return err
	}
	err = do()
	if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
		runtime.UnlockOSThread()
	}
	return err
}
