package proxy

import (
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// tcpConn is a TCP connection with what net.TCPConn lacks: it can wait for
// bytes without holding a buffer, peek, and reset. One goroutine reads and one
// writes at a time; reset may be called by anybody.
type tcpConn struct {
	*net.TCPConn
	raw     syscall.RawConn
	pending inbox // bytes read ahead (by the sniffer), returned first

	// State of one waitRead or peek, kept here so that neither allocates.
	onRead  func(fd uintptr) bool
	got     *buffer
	n, room int
	gotErr  error
	onPeek  func(fd uintptr)
	peeked  bool

	resetOnce sync.Once
}

func newTCPConn(c *net.TCPConn) (*tcpConn, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	t := &tcpConn{TCPConn: c, raw: raw}
	t.onRead = t.tryRead
	t.onPeek = t.tryPeek
	return t, nil
}

// Read returns the bytes read ahead before any other.
func (t *tcpConn) Read(p []byte) (int, error) {
	if t.pending.len() > 0 {
		n := copy(p, t.pending.bytes())
		t.pending.take(n)
		t.pending.release()
		return n, nil
	}
	return t.TCPConn.Read(p)
}

// next waits for bytes and returns them in a buffer, behind room free bytes,
// of which the caller becomes the owner. While it waits there is no buffer.
func (t *tcpConn) next(room, size int) (*buffer, int, error) {
	if t.pending.len() > 0 {
		buf := newBuffer(size)
		n := copy(buf.b[room:], t.pending.bytes())
		t.pending.take(n)
		t.pending.release()
		return buf, n, nil
	}
	t.room, t.n = room, size
	if err := t.raw.Read(t.onRead); err != nil {
		return nil, 0, err
	}
	buf, n, err := t.got, t.n, t.gotErr
	t.got, t.gotErr = nil, nil
	return buf, n, err
}

// tryRead reads into a fresh buffer; false parks the goroutine until there is
// something to read.
func (t *tcpConn) tryRead(fd uintptr) bool {
	buf := newBuffer(t.n)
	for {
		n, err := unix.Read(int(fd), buf.b[t.room:])
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			buf.free()
			return false
		case err != nil:
			buf.free()
			t.gotErr = &net.OpError{Op: "read", Net: "tcp", Err: err}
		case n == 0:
			buf.free()
			t.gotErr = io.EOF
		default:
			t.got, t.n = buf, n
		}
		return true
	}
}

// quiet reports whether the connection is open and has nothing to read: what a
// pooled connection must be before a request is sent on it.
func (t *tcpConn) quiet() bool {
	t.peeked = false
	if t.raw.Control(t.onPeek) != nil {
		return false
	}
	return t.peeked
}

func (t *tcpConn) tryPeek(fd uintptr) {
	var one [1]byte
	for {
		_, _, err := unix.Recvfrom(int(fd), one[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		if err == unix.EINTR {
			continue
		}
		t.peeked = err == unix.EAGAIN
		return
	}
}

// unread returns the number of bytes in the kernel's receive queue.
func (t *tcpConn) unread() int {
	n := 0
	_ = t.raw.Control(func(fd uintptr) {
		n, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ)
	})
	return n
}

// reset closes the connection so that the peer sees ECONNRESET.
func (t *tcpConn) reset() {
	t.resetOnce.Do(func() {
		_ = t.SetLinger(0)
		_ = t.TCPConn.Close()
	})
}

// Times after which TCP gives a silent peer up: an idle one after a minute and
// a half, one that does not acknowledge data after half a minute (tcp(7)).
const (
	keepAliveIdle     = 45 * time.Second
	keepAliveInterval = 15 * time.Second
	keepAliveCount    = 3
	userTimeout       = 30 * time.Second
)

// control sets what sockets of both kinds, listeners and dialled ones, need.
// Accepted connections inherit it from their listener, without further calls.
func control(_, _ string, raw syscall.RawConn) error {
	var err error
	set := func(fd uintptr) {
		for _, o := range []struct{ level, name, value int }{
			{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
			{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, int(keepAliveIdle / time.Second)},
			{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, int(keepAliveInterval / time.Second)},
			{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, keepAliveCount},
			{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(userTimeout / time.Millisecond)},
		} {
			if err = unix.SetsockoptInt(int(fd), o.level, o.name, o.value); err != nil {
				return
			}
		}
	}
	if cerr := raw.Control(set); cerr != nil {
		return cerr
	}
	return err
}
