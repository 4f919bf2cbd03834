package proxy

import (
	"context"
	"errors"
	"maps"
	"os"
	"sync"
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

// hangups tells of connections that nobody reads at the moment. Of those whose
// goroutine waits elsewhere: that their peer has hung up. That costs one
// epoll_ctl(2) per connection and nothing per request: edge-triggered and without
// EPOLLIN, an event means FIN or RST only. Of those that are parked: that there is
// something to read, an end included.
type hangups struct {
	epfd int
	file *os.File // epfd as Go's own poller sees it
	raw  syscall.RawConn

	mu   sync.Mutex
	next watchID
	seen map[watchID]func(kind uint32) // called in the goroutine of hangups; must not block
}

// watchID names a watch; 0: none.
type watchID int32

// What a watch waits for; see epoll_ctl(2).
const (
	awakeEvents  = unix.EPOLLRDHUP | unix.EPOLLET
	parkedEvents = unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLONESHOT
)

func newHangups() (*hangups, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, err
	}
	h := &hangups{epfd: fd, file: os.NewFile(uintptr(fd), "hangups"), seen: map[watchID]func(uint32){}}
	if h.raw, err = h.file.SyscallConn(); err != nil {
		return nil, err
	}
	return h, nil
}

// watch calls call once the peer of c has hung up, which may be at once. The
// caller forgets the watch before it closes c.
func (h *hangups) watch(c *tcp.Conn, call func(kind uint32)) watchID {
	id := h.note(call)
	_ = h.expect(c, id, awakeEvents) // or it is left without early notice, no more
	return id
}

// note returns the name of a watch that expect may be called for.
func (h *hangups) note(call func(kind uint32)) watchID {
	h.mu.Lock()
	defer h.mu.Unlock()
	for h.next++; h.next <= 0 || h.seen[h.next] != nil; h.next++ {
		h.next = max(h.next, 0)
	}
	h.seen[h.next] = call
	return h.next
}

// expect says what is waited for. What is there already counts.
func (h *hangups) expect(c *tcp.Conn, id watchID, events uint32) error {
	var failed error
	err := c.Control(func(fd uintptr) {
		event := &unix.EpollEvent{Events: events, Fd: int32(id)}
		// A connection that carries one stream after the other is known already.
		if failed = unix.EpollCtl(h.epfd, unix.EPOLL_CTL_ADD, int(fd), event); failed == unix.EEXIST {
			failed = unix.EpollCtl(h.epfd, unix.EPOLL_CTL_MOD, int(fd), event)
		}
	})
	return errors.Join(err, failed)
}

// forget ends a watch, if there is one. The kernel drops it when the connection is closed.
func (h *hangups) forget(id watchID) {
	if id == 0 {
		return
	}
	h.mu.Lock()
	delete(h.seen, id)
	h.mu.Unlock()
}

// leave lets go of a connection that is not closed.
func (h *hangups) leave(c *tcp.Conn) {
	_ = c.Control(func(fd uintptr) { _ = unix.EpollCtl(h.epfd, unix.EPOLL_CTL_DEL, int(fd), nil) })
}

// shrink gives back the room of watches that are over: a map keeps it.
func (h *hangups) shrink() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seen = maps.Clone(h.seen)
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
	call := h.seen[watchID(e.Fd)]
	h.mu.Unlock()
	if call == nil {
		return
	}
	kind := hangupFIN
	if e.Events&unix.EPOLLERR != 0 { // not EPOLLHUP: that is also FIN after our own FIN
		kind = hangupReset
	}
	call(kind)
}

// watch makes hungUp be called until what it returns is.
func (c *httpConn) watch() (forget func()) {
	if c.hop == nil {
		id := c.proxy.hangups.watch(c.tcp, c.hungUp)
		return func() { c.proxy.hangups.forget(id) }
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
