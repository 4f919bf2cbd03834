package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tulle-mesh/tulle/mesh"
	"github.com/tulle-mesh/tulle/proxy/tcp"
)

// listeners are the sockets of a proxy: both directions in both families, and
// the admin port.
type listeners struct {
	out, in, admin []*net.TCPListener
	accepting      sync.WaitGroup
	once           sync.Once
}

func (p *Proxy) listen(ctx context.Context) (*listeners, error) {
	l := &listeners{}
	outbound4, outbound6, any4, any6 := "127.0.0.1", "::1", "0.0.0.0", "::"
	if p.config.Redirect == mesh.RedirectEBPF {
		// Any of 127.0.0.1 to 127.0.0.64. Who calls another address, or from outside,
		// is not redirected here and therefore refused (origin).
		outbound4 = "0.0.0.0"
	}
	if p.shared() {
		any4, any6 = p.ownHost(true), p.ownHost(false)
		outbound4, outbound6 = any4, any6
	}
	for _, s := range []struct {
		list          *[]*net.TCPListener
		network, host string
		port          int
	}{
		{&l.out, "tcp4", outbound4, mesh.OutboundPort},
		{&l.out, "tcp6", outbound6, mesh.OutboundPort},
		{&l.in, "tcp4", any4, mesh.InboundPort},
		{&l.in, "tcp6", any6, mesh.InboundPort},
		{&l.admin, "tcp4", any4, mesh.AdminPort},
		{&l.admin, "tcp6", any6, mesh.AdminPort},
	} {
		if s.host == "" {
			continue // no address of that family is the workload's
		}
		ln, err := tcp.Listen(ctx, s.network, net.JoinHostPort(s.host, strconv.Itoa(s.port)))
		if err != nil {
			if s.network == "tcp6" && (errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EADDRNOTAVAIL)) {
				continue // IPv6 is off here
			}
			l.close()
			return nil, fmt.Errorf("port %d must be free for the proxy: %w", s.port, err)
		}
		*s.list = append(*s.list, ln)
	}
	return l, nil
}

func (l *listeners) close() {
	l.once.Do(func() {
		for _, list := range [][]*net.TCPListener{l.out, l.in, l.admin} {
			for _, ln := range list {
				_ = ln.Close()
			}
		}
	})
}

// stop closes the listeners once all connections that wait in them have been
// accepted: to their clients they are established, and may have ended already.
func (l *listeners) stop() {
	for _, list := range [][]*net.TCPListener{l.out, l.in} {
		for _, ln := range list {
			_ = ln.SetDeadline(time.Unix(1, 0)) // wakes accept
		}
	}
	l.accepting.Wait()
	l.close()
}

// serve accepts until the listeners are stopped. p.serving ends with the last
// connection.
func (l *listeners) serve(ctx context.Context, p *Proxy) {
	for _, ln := range l.out {
		l.accepting.Go(func() { p.accept(ctx, ln, p.serveOutbound) })
	}
	for _, ln := range l.in {
		l.accepting.Go(func() { p.accept(ctx, ln, p.serveInbound) })
	}
	admin := p.adminServer()
	for _, ln := range l.admin {
		p.serving.Go(func() { _ = admin.Serve(ln) })
	}
}

const (
	maxConns      = 50_000 // of one workload, both directions
	acceptBackoff = 20 * time.Millisecond
)

type serveFunc func(context.Context, *tcp.Conn, *tracked) (parked bool)

// accept takes connections off one listener. What stops it from doing so (no
// file descriptors left) passes; until then it waits rather than spins.
func (p *Proxy) accept(ctx context.Context, ln *net.TCPListener, serve serveFunc) {
	for {
		accepted, err := ln.AcceptTCP()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case errors.Is(err, os.ErrDeadlineExceeded):
			p.acceptWaiting(ctx, ln, serve)
			return
		}
		if err != nil || p.conns.len() >= maxConns {
			if err == nil {
				_ = accepted.SetLinger(0)
				_ = accepted.Close()
			}
			p.refusals.warn(p.log, "connection not accepted", "open", p.conns.len(), "error", err)
			time.Sleep(acceptBackoff)
			continue
		}
		p.take(ctx, accepted, serve)
	}
}

// acceptWaiting accepts what is left in a listener whose deadline is over; the
// net package would not.
func (p *Proxy) acceptWaiting(ctx context.Context, ln *net.TCPListener, serve serveFunc) {
	raw, err := ln.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(listener uintptr) {
		for {
			fd, _, err := unix.Accept4(int(listener), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
			switch err {
			case nil:
			case unix.EINTR, unix.ECONNABORTED:
				continue
			default: // EAGAIN: that was the last one
				return
			}
			file := os.NewFile(uintptr(fd), "accepted")
			conn, err := net.FileConn(file) // a duplicate
			_ = file.Close()
			if accepted, ok := conn.(*net.TCPConn); err == nil && ok {
				p.take(ctx, accepted, serve)
			}
		}
	})
}

// take serves a connection on a goroutine of its own. From now on a drain waits
// for it.
func (p *Proxy) take(ctx context.Context, accepted *net.TCPConn, serve serveFunc) {
	conn, err := tcp.New(accepted)
	if err != nil {
		_ = accepted.Close()
		return
	}
	t := p.conns.add(conn)
	p.serving.Go(func() { p.handle(ctx, conn, t, serve) })
}

// handle is the life of one connection's goroutine. If the connection is
// parked, another goroutine will go on and call gone.
func (p *Proxy) handle(ctx context.Context, conn *tcp.Conn, t *tracked, serve serveFunc) {
	if !serve(ctx, conn, t) {
		p.gone(t)
	}
}

// gone ends a connection.
func (p *Proxy) gone(t *tracked) {
	_ = t.conn.Close()
	p.conns.remove(t)
}
