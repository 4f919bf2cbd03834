package network

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// Thread is one operating system thread, kept apart from all others, so that
// its attributes (namespaces, capabilities) can be its own. Processes that it
// starts inherit them from their first instruction; and since it lives until
// Close, their parent-death signals mean what they say.
type Thread struct {
	calls  chan func()
	closed chan struct{}
}

// startThread returns a thread on which setup has succeeded.
func startThread(setup func() error) (*Thread, error) {
	t := &Thread{calls: make(chan func()), closed: make(chan struct{})}
	ready := make(chan error, 1)
	locked := make(chan struct{})
	go t.run(setup, locked, ready)
	<-locked
	if err := <-ready; err != nil {
		return nil, err
	}
	return t, nil
}

func (t *Thread) run(setup func() error, locked chan<- struct{}, ready chan<- error) {
	// Never unlocked: the thread ends with the goroutine, and nobody else gets it.
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// The process's first thread must not be it: what it is, others take the
		// whole process to be, and it cannot end before the process does. While it is
		// locked here, another goroutine gets another thread.
		elsewhere := make(chan struct{})
		go t.run(setup, elsewhere, ready)
		<-elsewhere
		close(locked)
		runtime.UnlockOSThread()
		return
	}
	close(locked)
	defer close(t.closed)
	err := setup()
	ready <- err
	if err != nil {
		return
	}
	for call := range t.calls {
		call()
	}
}

// Do runs f on the thread and returns its error. It must not be called after Close.
func (t *Thread) Do(f func() error) error {
	done := make(chan error, 1)
	t.calls <- func() { done <- f() }
	return <-done
}

// Close ends the thread. Processes that it started with a parent-death signal
// get that signal.
func (t *Thread) Close() {
	close(t.calls)
	<-t.closed
}
