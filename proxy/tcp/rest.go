package tcp

import (
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Rest takes a connection on which nothing happens out of Go's netpoller, whose
// record of a socket is never given back to the system. What is left is a file
// descriptor; whatever is done with the connection next but Control, Quiet, Ended,
// Queued, Close and Reset brings it back. Deadlines do not outlast a rest.
//
// Nobody may be reading or writing. Rest reports false, and leaves the connection
// as it is, if that is closed, has been read ahead, or there is no file descriptor
// to be had.
func (t *Conn) Rest() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.awake.Load()
	if s == nil || t.closed || t.Ahead() > 0 {
		return s == nil && !t.closed
	}
	fd := -1
	err := s.raw.Control(func(old uintptr) { fd, _ = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) })
	if err != nil || fd < 0 {
		return false
	}
	_ = s.Close()
	t.fd = int32(fd)
	t.awake.Store(nil)
	return true
}

// Resting reports whether the connection rests.
func (t *Conn) Resting() bool { return t.awake.Load() == nil }

// socket returns the connection as Go's netpoller knows it, which it may have to
// be told of.
func (t *Conn) socket() (*socket, error) {
	if s := t.awake.Load(); s != nil {
		return s, nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.awake.Load(); s != nil {
		return s, nil
	}
	if t.closed {
		return nil, net.ErrClosed
	}
	// net.FileConn would duplicate the descriptor, which takes another one, and
	// set options of its own.
	file := os.NewFile(uintptr(t.fd), "tcp")
	s, err := newSocket(file)
	if err != nil {
		t.closed = true
		_ = file.Close()
		return nil, err
	}
	t.awake.Store(s)
	return s, nil
}

// Control calls f with the connection's file descriptor, whether it rests or not.
func (t *Conn) Control(f func(fd uintptr)) error {
	if s := t.awake.Load(); s != nil {
		return s.raw.Control(f)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch s := t.awake.Load(); {
	case s != nil:
		return s.raw.Control(f)
	case t.closed:
		return net.ErrClosed
	}
	f(uintptr(t.fd))
	return nil
}

// Close closes the connection in peace: what was written arrives.
func (t *Conn) Close() error { return t.close(false) }

// Reset closes the connection so that the peer sees ECONNRESET.
func (t *Conn) Reset() { _ = t.close(true) }

func (t *Conn) close(reset bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return net.ErrClosed
	}
	t.closed = true
	linger := func(fd uintptr) {
		if reset {
			_ = unix.SetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		}
	}
	if s := t.awake.Load(); s != nil {
		if reset {
			_ = s.raw.Control(linger)
		}
		return s.Close()
	}
	linger(uintptr(t.fd))
	return unix.Close(int(t.fd))
}

// CloseWrite sends FIN; what comes can still be read.
func (t *Conn) CloseWrite() error {
	var failed error
	err := t.Control(func(fd uintptr) { failed = os.NewSyscallError("shutdown", unix.Shutdown(int(fd), unix.SHUT_WR)) })
	if err == nil {
		err = failed
	}
	return err
}

// SetDeadline sets both deadlines (net.Conn).
func (t *Conn) SetDeadline(at time.Time) error {
	s, err := t.socket()
	if err != nil {
		return err
	}
	return s.SetDeadline(at)
}

// SetReadDeadline makes reading fail from then on (net.Conn).
func (t *Conn) SetReadDeadline(at time.Time) error {
	s, err := t.socket()
	if err != nil {
		return err
	}
	return s.SetReadDeadline(at)
}

// SetWriteDeadline makes writing fail from then on (net.Conn).
func (t *Conn) SetWriteDeadline(at time.Time) error {
	s, err := t.socket()
	if err != nil {
		return err
	}
	return s.SetWriteDeadline(at)
}

// LocalAddr returns the connection's own address, until it has rested; nil from then.
func (t *Conn) LocalAddr() net.Addr {
	if c := t.tcp(); c != nil {
		return c.LocalAddr()
	}
	return nil
}

// RemoteAddr returns the peer's address, until the connection has rested; nil from then.
func (t *Conn) RemoteAddr() net.Addr {
	if c := t.tcp(); c != nil {
		return c.RemoteAddr()
	}
	return nil
}

// Splice lets the kernel move at most n bytes from src to the connection
// (splice(2)) until src ends, and returns how many they were. Both must be
// CanSplice.
func (t *Conn) Splice(src *Conn, n int64) (int64, error) {
	to, from := t.tcp(), src.tcp()
	return to.ReadFrom(&io.LimitedReader{R: from, N: n})
}

// CanSplice reports whether the connection can take part in Splice: one that has
// rested cannot.
func (t *Conn) CanSplice() bool { return t.tcp() != nil }

func (t *Conn) tcp() *net.TCPConn {
	if s := t.awake.Load(); s != nil {
		c, _ := s.pollable.(*net.TCPConn)
		return c
	}
	return nil
}

var _ net.Conn = (*Conn)(nil)
