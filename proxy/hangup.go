package proxy

import (
	"context"
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/tulle-mesh/tulle/proxy/tcp"
	"golang.org/x/sys/unix"
)

// Kinds of hang-ups.
const (
	hangupNone  uint32 = iota
	hangupFIN          // the peer sends no more
	hangupReset        // the peer is gone
)

// hangups tells connections whose goroutine waits elsewhere that their peer
// has hung up. It costs one epoll_ctl(2) per connection and nothing per
// request: edge-triggered and without EPOLLIN, an event means FIN or RST only.
type hangups struct {
	epfd int
	file *os.File // epfd as Go's own poller sees it
	raw  syscall.RawConn

	mu   sync.Mutex
	next int32
	seen map[int32]*watched
}

type watched struct {
	id   int32
	call func(kind uint32) // in a goroutine of hangups; must not block

	readable atomic.Pointer[func()] // called instead once there is something to read; nil: not asked for
}

func newHangups() (*hangups, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, err
	}
	h := &hangups{epfd: fd, file: os.NewFile(uintptr(fd), "hangups"), seen: map[int32]*watched{}}
	if h.raw, err = h.file.SyscallConn(); err != nil {
		return nil, err
	}
	return h, nil
}

// watch calls call once the peer of c has hung up, which may be at once. The
// caller forgets the watch before it closes c.
func (h *hangups) watch(c *tcp.Conn, call func(uint32)) *watched {
	h.mu.Lock()
	w := &watched{id: h.next, call: call}
	for h.seen[w.id] != nil {
		w.id++
	}
	h.next = w.id + 1
	h.seen[w.id] = w
	h.mu.Unlock()
	_ = c.Raw.Control(func(fd uintptr) {
		event := &unix.EpollEvent{Events: awakeEvents, Fd: w.id}
		// A connection that carries one stream after the other is known already.
		// Any other failure leaves it without early notice, no more.
		if unix.EpollCtl(h.epfd, unix.EPOLL_CTL_ADD, int(fd), event) == unix.EEXIST {
			_ = unix.EpollCtl(h.epfd, unix.EPOLL_CTL_MOD, int(fd), event)
		}
	})
	return w
}

// arm calls readable, once, when there is something to read from c, an end or
// a reset included, which may be at once.
func (h *hangups) arm(c *tcp.Conn, w *watched, readable func()) {
	w.readable.Store(&readable)
	h.expect(c, w, asleepEvents)
}

// disarm undoes arm.
func (h *hangups) disarm(c *tcp.Conn, w *watched) {
	w.readable.Store(nil)
	h.expect(c, w, awakeEvents)
}

// expect changes the events of a watch. Those that are there already count.
func (h *hangups) expect(c *tcp.Conn, w *watched, events uint32) {
	err := c.Raw.Control(func(fd uintptr) {
		_ = unix.EpollCtl(h.epfd, unix.EPOLL_CTL_MOD, int(fd), &unix.EpollEvent{Events: events, Fd: w.id})
	})
	if readable := w.readable.Load(); err != nil && readable != nil {
		(*readable)() // closed meanwhile
	}
}

// forget ends a watch, if there is one. The kernel drops it when the connection is closed.
func (h *hangups) forget(w *watched) {
	if w == nil {
		return
	}
	h.mu.Lock()
	delete(h.seen, w.id)
	h.mu.Unlock()
}

// run delivers events until ctx ends.
func (h *hangups) run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = h.file.Close() })
	defer stop()
	var events [64]unix.EpollEvent
	for {
		n := 0
		err := h.raw.Read(func(fd uintptr) bool {
			var err error
			n, err = unix.EpollWait(int(fd), events[:], 0)
			return err != unix.EINTR && n != 0
		})
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, os.ErrClosed) {
				return nil
			}
			return err
		}
		for _, e := range events[:max(n, 0)] {
			h.deliver(e)
		}
	}
}

func (h *hangups) deliver(e unix.EpollEvent) {
	h.mu.Lock()
	w := h.seen[e.Fd]
	h.mu.Unlock()
	if w == nil {
		return
	}
	if readable := w.readable.Load(); readable != nil {
		(*readable)()
		return
	}
	kind := hangupFIN
	if e.Events&unix.EPOLLERR != 0 { // not EPOLLHUP: that is also FIN after our own FIN
		kind = hangupReset
	}
	w.call(kind)
}

// watch makes hungUp be called until what it returns is.
func (c *httpConn) watch() (forget func()) {
	if c.hop == nil {
		w := c.proxy.hangups.watch(c.tcp, c.hungUp)
		return func() { c.proxy.hangups.forget(w) }
	}
	c.hop.Watch(func(reset bool) {
		if reset {
			c.hungUp(hangupReset)
		} else {
			c.hungUp(hangupFIN)
		}
	})
	return func() { c.hop.Watch(nil) }
}

// hungUp passes the client's hang-up on to the session that is working for it.
func (c *httpConn) hungUp(kind uint32) {
	if kind == hangupFIN && c.hop == nil && c.tcp.Queued() > 0 {
		kind = hangupNone // it has sent more requests, whose answers it awaits
	}
	c.hang.Lock()
	defer c.hang.Unlock()
	c.gone.Store(max(kind, c.gone.Load()))
	if c.waiting != nil {
		passOn(kind, c.waiting)
	}
}

// passOn does not wait for anybody.
func passOn(kind uint32, s *session) {
	switch kind {
	case hangupFIN:
		s.halfClose()
	case hangupReset:
		s.abort()
	}
}

// waitFor lets hang-ups of the client through to s until stopWaiting.
func (c *httpConn) waitFor(s *session) {
	c.hang.Lock()
	defer c.hang.Unlock()
	c.waiting = s
	if kind := c.gone.Load(); kind != hangupNone {
		passOn(kind, s)
	}
}

// stopWaiting returns when no hang-up is on its way to the session any more: it
// may be another client's from then on.
func (c *httpConn) stopWaiting() {
	c.hang.Lock()
	c.waiting = nil
	c.hang.Unlock()
}
