// Package tcp adds to TCP connections what a proxy needs and net.TCPConn lacks:
// waiting for bytes without holding a buffer, looking without reading, resets,
// and options that accepted connections inherit from their listener.
package tcp

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Conn is a TCP connection. One goroutine reads and one writes at a time;
// Reset and Close may be called by anybody. It may rest: see Rest.
//
// It makes its system calls without telling the scheduler (RawSyscall): the
// socket does not block, so there is nothing to hand the processor over for,
// and the hand-over costs more than the call.
type Conn struct {
	awake atomic.Pointer[socket] // nil while it rests

	ahead          *Buffer // bytes that were read ahead, returned first
	aheadR, aheadW int32

	mu     sync.Mutex // guards what follows, and changes of awake
	fd     int32      // while it rests
	closed bool
}

// socket is a connection that Go's netpoller watches.
type socket struct {
	pollable
	raw syscall.RawConn

	// Arguments and results of the functions below, which are bound once so
	// that no call allocates. Those of reading, of writing and of peeking.
	onNext, onRead func(fd uintptr) bool
	onMore         func(fd uintptr) bool
	got            *Buffer
	room, size     int
	in             []byte
	n              int
	readErr        error
	onWrite        func(fd uintptr) bool
	onOffer        func(fd uintptr) bool
	out            []byte
	writeErr       error
	onPeek         func(fd uintptr)
	next           upcoming
}

// pollable is a *net.TCPConn, or after a rest an *os.File.
type pollable interface {
	SyscallConn() (syscall.RawConn, error)
	SetDeadline(t time.Time) error
	SetReadDeadline(t time.Time) error
	SetWriteDeadline(t time.Time) error
	Close() error
}

// New wraps c, which it owns from then on.
func New(c *net.TCPConn) (*Conn, error) {
	s, err := newSocket(c)
	if err != nil {
		return nil, err
	}
	t := &Conn{}
	t.awake.Store(s)
	return t, nil
}

func newSocket(c pollable) (*socket, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	s := &socket{pollable: c, raw: raw}
	s.onNext, s.onRead, s.onMore, s.onWrite, s.onOffer, s.onPeek = s.tryNext, s.tryRead, s.tryMore, s.tryWrite, s.tryOffer, s.tryPeek
	return s, nil
}

// Unread puts the bytes buf.B[r:w] in front of what is read next. The
// connection owns buf from then on. Nothing may be unread already.
func (t *Conn) Unread(buf *Buffer, r, w int) { t.ahead, t.aheadR, t.aheadW = buf, int32(r), int32(w) }

// Ahead returns how many bytes were put back by Unread and not read since.
func (t *Conn) Ahead() int { return int(t.aheadW - t.aheadR) }

// takeAhead copies bytes that were read ahead.
func (t *Conn) takeAhead(p []byte) int {
	n := copy(p, t.ahead.B[t.aheadR:t.aheadW])
	t.aheadR += int32(n)
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
	if t.Ahead() > 0 || len(p) == 0 {
		return t.takeAhead(p), nil
	}
	s, err := t.socket()
	if err != nil {
		return 0, err
	}
	s.in, s.readErr = p, nil
	err = s.raw.Read(s.onRead)
	s.in = nil
	if err == nil {
		err = s.readErr
	}
	if err != nil {
		return 0, err
	}
	return s.n, nil
}

// tryRead reads into s.in; false parks the goroutine until there is something to read.
func (s *socket) tryRead(fd uintptr) (done bool) {
	s.n, s.readErr, done = read(fd, s.in)
	return done
}

// More reads what there is, without waiting: n is 0 if that is nothing.
func (t *Conn) More(p []byte) (n int, err error) {
	if t.Ahead() > 0 || len(p) == 0 {
		return t.takeAhead(p), nil
	}
	s, err := t.socket()
	if err != nil {
		return 0, err
	}
	s.in, s.n, s.readErr = p, 0, nil
	err = s.raw.Read(s.onMore)
	s.in = nil
	if err == nil {
		err = s.readErr
	}
	return s.n, err
}

// tryMore is tryRead that never parks.
func (s *socket) tryMore(fd uintptr) bool {
	s.tryRead(fd)
	return true
}

// Next waits for bytes and returns at most size-room of them in a buffer,
// behind room free ones. While it waits there is no buffer. The caller frees it.
func (t *Conn) Next(room, size int) (*Buffer, int, error) {
	if t.Ahead() > 0 {
		buf := NewBuffer(size)
		return buf, t.takeAhead(buf.upTo(room, size)), nil
	}
	s, err := t.socket()
	if err != nil {
		return nil, 0, err
	}
	s.room, s.size, s.readErr = room, size, nil
	err = s.raw.Read(s.onNext)
	buf := s.got
	s.got = nil
	if err == nil {
		err = s.readErr
	}
	if err != nil {
		buf.Free()
		return nil, 0, err
	}
	return buf, s.n, nil
}

// tryNext reads into a fresh buffer, which it keeps only if there was something.
func (s *socket) tryNext(fd uintptr) (done bool) {
	buf := NewBuffer(s.size)
	if s.n, s.readErr, done = read(fd, buf.upTo(s.room, s.size)); done {
		s.got = buf
	} else {
		buf.Free()
	}
	return done
}

// read reads from a socket that does not block; done is false if there is nothing.
func read(fd uintptr, p []byte) (n int, err error, done bool) {
	for {
		r, _, errno := unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
		switch {
		case errno == unix.EINTR:
			continue
		case errno == unix.EAGAIN:
			return 0, nil, false
		case errno != 0:
			return 0, &net.OpError{Op: "read", Net: "tcp", Err: errno}, true
		case r == 0:
			return 0, io.EOF, true
		}
		return int(r), nil, true
	}
}

// Write sends the whole of p.
func (t *Conn) Write(p []byte) (int, error) {
	s, err := t.socket()
	if err != nil {
		return 0, err
	}
	s.out, s.writeErr = p, nil
	err = s.raw.Write(s.onWrite)
	sent := len(p) - len(s.out)
	s.out = nil
	if err == nil {
		err = s.writeErr
	}
	return sent, err
}

// tryWrite sends what it can of s.out; false parks the goroutine until there is room.
func (s *socket) tryWrite(fd uintptr) bool {
	for len(s.out) > 0 {
		n, _, errno := unix.RawSyscall(unix.SYS_WRITE, fd, uintptr(unsafe.Pointer(unsafe.SliceData(s.out))), uintptr(len(s.out)))
		switch {
		case errno == unix.EINTR:
		case errno == unix.EAGAIN:
			return false
		case errno != 0:
			s.writeErr = &net.OpError{Op: "write", Net: "tcp", Err: errno}
			return true
		default:
			s.out = s.out[n:]
		}
	}
	return true
}

// Offer sends as much of p as there is room for, without waiting, and reports
// how much that was and whether it was all.
func (t *Conn) Offer(p []byte) (n int, sent bool, err error) {
	s, err := t.socket()
	if err != nil {
		return 0, false, err
	}
	s.out, s.writeErr = p, nil
	err = s.raw.Write(s.onOffer)
	n = len(p) - len(s.out)
	s.out = nil
	if err == nil {
		err = s.writeErr
	}
	return n, n == len(p), err
}

// tryOffer is tryWrite that never parks.
func (s *socket) tryOffer(fd uintptr) bool {
	s.tryWrite(fd)
	return true
}

// upcoming is what would be read next.
type upcoming int

const (
	nothing upcoming = iota // yet
	something
	end // in peace or by a reset
)

// Quiet reports whether the connection is open and has nothing to read: what a
// pooled connection must be before a request is sent on it.
func (t *Conn) Quiet() bool {
	next, err := t.peek()
	return err == nil && next == nothing
}

// Ended reports whether an end of the connection is what comes next to be read.
func (t *Conn) Ended() bool {
	next, err := t.peek() // fails if it has been closed here
	return err != nil || next == end
}

func (t *Conn) peek() (upcoming, error) {
	if s := t.awake.Load(); s != nil {
		err := s.raw.Control(s.onPeek)
		return s.next, err
	}
	var next upcoming
	err := t.Control(func(fd uintptr) { next = peek(fd) })
	return next, err
}

func (s *socket) tryPeek(fd uintptr) { s.next = peek(fd) }

func peek(fd uintptr) upcoming {
	var one [1]byte
	for {
		// unix.Recvfrom allocates an address that nobody asks for.
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&one[0])), 1, unix.MSG_PEEK|unix.MSG_DONTWAIT, 0, 0)
		switch {
		case errno == unix.EINTR:
			continue
		case errno == unix.EAGAIN:
			return nothing
		case n == 0 || errno != 0:
			return end
		}
		return something
	}
}

// Queued returns the number of bytes in the kernel's receive queue (tcp(7), SIOCINQ).
func (t *Conn) Queued() int {
	n := 0
	_ = t.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	return n
}

// Times after which TCP gives a silent peer up that is idle: a minute and a half
// (tcp(7)).
const (
	keepAliveIdle     = 45 * time.Second
	keepAliveInterval = 15 * time.Second
	keepAliveCount    = 3
)

// AckTimeout is how long the peer of a connection that has called AlwaysRead may
// leave data unacknowledged, or its window shut.
const AckTimeout = 30 * time.Second

// AlwaysRead says that the peer reads what comes whatever the application does, so
// that one that does not is gone. Of others nothing of the kind is known: who
// stops reading for an hour, a pager say, is alive, and TCP_USER_TIMEOUT would end
// the connection (tcp(7)).
func (t *Conn) AlwaysRead() error {
	var err error
	if cerr := t.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(AckTimeout/time.Millisecond))
	}); cerr != nil {
		return cerr
	}
	return err
}

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
	return dial(ctx, dialer, addr)
}

// DialFor is Dial on behalf of a client whose address addr's application is to
// be shown; it works where CanDialFor says so. Client and addr are of one family.
func DialFor(ctx context.Context, client, addr netip.AddrPort) (*Conn, error) {
	d := *dialer
	d.LocalAddr = net.TCPAddrFromAddrPort(client)
	d.Control = func(network, address string, raw syscall.RawConn) error {
		return errors.Join(control(network, address, raw), bindLate(raw))
	}
	return dial(ctx, &d, addr)
}

// bindLate leaves the choice of a port to connect, which knows the destination:
// there are as many ports as there are for a socket that was not bound (ip(7)).
func bindLate(raw syscall.RawConn) error {
	var err error
	if cerr := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	}); cerr != nil {
		return cerr
	}
	return err
}

// hopSource is where the eBPF redirect has connections on behalf of clients come
// from; see bpf/redirect.c.
var hopSource = netip.MustParsePrefix("127.84.0.0/16")

// CanDialFor tells whether the kernel takes a bind to a foreign address for what
// DialFor means by it.
func CanDialFor() bool {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer func() { _ = unix.Close(s) }()
	foreign := &unix.SockaddrInet4{Addr: [4]byte{192, 0, 2, 1}, Port: 1} // RFC 5737
	if unix.SetsockoptInt(s, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1) != nil || unix.Bind(s, foreign) != nil {
		return false
	}
	name, err := unix.Getsockname(s)
	bound, ok := name.(*unix.SockaddrInet4)
	return err == nil && ok && hopSource.Contains(netip.AddrFrom4(bound.Addr))
}

func dial(ctx context.Context, dialer *net.Dialer, addr netip.AddrPort) (*Conn, error) {
	// On a stack of its own: it needs some KiB, which the caller's goroutine
	// would keep for the life of the connection.
	done := make(chan dialled, 1)
	go func() {
		c, err := dialer.DialContext(ctx, "tcp", addr.String())
		done <- dialled{c, err}
	}()
	d := <-done
	if d.err != nil {
		return nil, d.err
	}
	return New(d.conn.(*net.TCPConn))
}

type dialled struct {
	conn net.Conn
	err  error
}
