// Package tcp adds to TCP connections what a proxy needs and net.TCPConn lacks:
// waiting for bytes without holding a buffer, looking without reading, resets,
// and options that accepted connections inherit from their listener.
package tcp

import (
	"context"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Conn is a TCP connection. One goroutine reads and one writes at a time;
// Reset may be called by anybody.
type Conn struct {
	*net.TCPConn
	Raw syscall.RawConn

	ahead     *Buffer // bytes that were read ahead, returned first
	aheadR    int
	aheadW    int
	onRead    func(fd uintptr) bool // the methods below, bound once so that no call allocates
	onPeek    func(fd uintptr)
	got       *Buffer
	n, room   int
	gotErr    error
	quiet     bool
	resetOnce sync.Once
}

// New wraps c, which it owns from then on.
func New(c *net.TCPConn) (*Conn, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	t := &Conn{TCPConn: c, Raw: raw}
	t.onRead = t.tryRead
	t.onPeek = t.tryPeek
	return t, nil
}

// Unread puts the bytes buf.B[r:w] in front of what is read next. The
// connection owns buf from then on. Nothing may be unread already.
func (t *Conn) Unread(buf *Buffer, r, w int) { t.ahead, t.aheadR, t.aheadW = buf, r, w }

// Ahead returns how many bytes were put back by Unread and not read since.
func (t *Conn) Ahead() int { return t.aheadW - t.aheadR }

// takeAhead copies bytes that were read ahead.
func (t *Conn) takeAhead(p []byte) int {
	n := copy(p, t.ahead.B[t.aheadR:t.aheadW])
	t.aheadR += n
	if t.aheadR == t.aheadW {
		t.DropAhead()
	}
	return n
}

// DropAhead discards the bytes that were read ahead.
func (t *Conn) DropAhead() {
	t.ahead.Free()
	t.ahead, t.aheadR, t.aheadW = nil, 0, 0
}

// Read returns the bytes read ahead before any other.
func (t *Conn) Read(p []byte) (int, error) {
	if t.Ahead() > 0 {
		return t.takeAhead(p), nil
	}
	return t.TCPConn.Read(p)
}

// Next waits for bytes and returns at most size-room of them in a buffer,
// behind room free ones. While it waits there is no buffer. The caller frees it.
func (t *Conn) Next(room, size int) (*Buffer, int, error) {
	if t.Ahead() > 0 {
		buf := NewBuffer(size)
		return buf, t.takeAhead(buf.B[room:size]), nil
	}
	t.room, t.n = room, size
	if err := t.Raw.Read(t.onRead); err != nil {
		return nil, 0, err
	}
	buf, err := t.got, t.gotErr
	t.got, t.gotErr = nil, nil
	if err != nil {
		return nil, 0, err
	}
	return buf, t.n, nil
}

// tryRead reads into a fresh buffer; false parks the goroutine until there is
// something to read.
func (t *Conn) tryRead(fd uintptr) bool {
	buf := NewBuffer(t.n)
	for {
		n, err := unix.Read(int(fd), buf.B[t.room:t.n])
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			buf.Free()
			return false
		case err != nil:
			buf.Free()
			t.gotErr = &net.OpError{Op: "read", Net: "tcp", Err: err}
		case n == 0:
			buf.Free()
			t.gotErr = io.EOF
		default:
			t.got, t.n = buf, n
		}
		return true
	}
}

// Quiet reports whether the connection is open and has nothing to read: what a
// pooled connection must be before a request is sent on it.
func (t *Conn) Quiet() bool {
	t.quiet = false
	return t.Raw.Control(t.onPeek) == nil && t.quiet
}

func (t *Conn) tryPeek(fd uintptr) {
	var one [1]byte
	for {
		// unix.Recvfrom allocates an address that nobody asks for.
		_, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&one[0])), 1, unix.MSG_PEEK|unix.MSG_DONTWAIT, 0, 0)
		if errno == unix.EINTR {
			continue
		}
		t.quiet = errno == unix.EAGAIN
		return
	}
}

// Queued returns the number of bytes in the kernel's receive queue (tcp(7), SIOCINQ).
func (t *Conn) Queued() int {
	n := 0
	_ = t.Raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	return n
}

// Reset closes the connection so that the peer sees ECONNRESET.
func (t *Conn) Reset() {
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

// control sets what listeners and dialled sockets need. Accepted connections
// inherit it from their listener, without further calls.
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

// Listen returns a listener of plain TCP: Go's default, MPTCP, can't be
// redirected by every backend.
func Listen(ctx context.Context, network, addr string) (*net.TCPListener, error) {
	c := net.ListenConfig{Control: control, KeepAlive: -1}
	c.SetMultipathTCP(false)
	ln, err := c.Listen(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return ln.(*net.TCPListener), nil
}

const connectTimeout = 5 * time.Second

var dialer = newDialer()

func newDialer() *net.Dialer {
	d := &net.Dialer{Timeout: connectTimeout, KeepAlive: -1, Control: control}
	d.SetMultipathTCP(false)
	return d
}

// Dial connects to addr within 5 s.
func Dial(ctx context.Context, addr netip.AddrPort) (*Conn, error) {
	c, err := dialer.DialContext(ctx, "tcp", addr.String())
	if err != nil {
		return nil, err
	}
	return New(c.(*net.TCPConn))
}
