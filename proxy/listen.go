package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/tulle-mesh/tulle/mesh"
	"github.com/tulle-mesh/tulle/proxy/tcp"
)

// listeners are the sockets of a proxy: both directions in both families, and
// the admin port.
type listeners struct {
	out, in, admin []*net.TCPListener
	once           sync.Once
}

func (p *Proxy) listen(ctx context.Context) (*listeners, error) {
	l := &listeners{}
	outbound4 := "127.0.0.1"
	if p.config.Redirect == mesh.RedirectEBPF || p.config.Redirect == mesh.RedirectCNI {
		// Any of 127.0.0.1 to 127.0.0.64. Who calls another address, or from outside,
		// is not redirected here and therefore refused (origin).
		outbound4 = "0.0.0.0"
	}
	for _, s := range []struct {
		list          *[]*net.TCPListener
		network, host string
		port          int
	}{
		{&l.out, "tcp4", outbound4, mesh.OutboundPort},
		{&l.out, "tcp6", "::1", mesh.OutboundPort},
		{&l.in, "tcp4", "0.0.0.0", mesh.InboundPort},
		{&l.in, "tcp6", "::", mesh.InboundPort},
		{&l.admin, "tcp4", "0.0.0.0", mesh.AdminPort},
		{&l.admin, "tcp6", "::", mesh.AdminPort},
	} {
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

// serve accepts until the listeners are closed. p.serving ends with the last
// connection.
func (l *listeners) serve(ctx context.Context, p *Proxy) {
	for _, ln := range l.out {
		p.serving.Go(func() { p.accept(ctx, ln, p.serveOutbound) })
	}
	for _, ln := range l.in {
		p.serving.Go(func() { p.accept(ctx, ln, p.serveInbound) })
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

// accept takes connections off one listener. What stops it from doing so (no
// file descriptors left) passes; until then it waits rather than spins.
func (p *Proxy) accept(ctx context.Context, ln *net.TCPListener, serve func(context.Context, *tcp.Conn, *tracked) (parked bool)) {
	for {
		accepted, err := ln.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
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
		conn, err := tcp.New(accepted)
		if err != nil {
			continue
		}
		p.serving.Go(func() { p.handle(ctx, conn, serve) })
	}
}

// handle is the life of one connection's goroutine. If the connection is
// parked, another goroutine will go on and call gone.
func (p *Proxy) handle(ctx context.Context, conn *tcp.Conn, serve func(context.Context, *tcp.Conn, *tracked) (parked bool)) {
	t := p.conns.add(conn)
	if !serve(ctx, conn, t) {
		p.gone(t)
	}
}

// gone ends a connection.
func (p *Proxy) gone(t *tracked) {
	_ = t.conn.Close()
	p.conns.remove(t)
}
