package identity

import (
	"net"
	"net/netip"
	"slices"
	"sync"
)

// Bounds of connections to the control plane. A proxy has one, for a moment two.
const (
	maxConnsPerAddr = 16
	maxConns        = 16384
)

// Listen returns a listener that hands on what l accepts, but closes at once
// what is too much for proxies: see Bound.
func Listen(l net.Listener) net.Listener { return Bound(l, maxConnsPerAddr, maxConns) }

// Bound returns a listener that hands on what l accepts, at most perAddr
// connections of one address and all altogether; it closes at once what is too
// much. Where all are taken, the oldest one of the address that has most of them
// makes room for one of an address that has fewer: so nobody crowds out the
// others. It is for listeners that workloads can reach.
func Bound(l net.Listener, perAddr, all int) net.Listener {
	return &boundedListener{Listener: l, perAddr: perAddr, all: all, open: make(map[netip.Addr][]*boundedConn)}
}

type boundedListener struct {
	net.Listener
	perAddr, all int

	mu    sync.Mutex
	open  map[netip.Addr][]*boundedConn // oldest first
	total int
}

// Accept returns the next connection that is not too much.
func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		accepted, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		conn := &boundedConn{Conn: accepted, listener: l, from: addrOf(accepted.RemoteAddr())}
		gives, ok := l.enter(conn)
		if gives != nil {
			_ = gives.Close()
		}
		if ok {
			return conn, nil
		}
		accepted.Close()
	}
}

// enter reports whether there is room for the connection, and which one has to
// give it, nil if none has.
func (l *boundedListener) enter(conn *boundedConn) (gives *boundedConn, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	own := len(l.open[conn.from])
	if own >= l.perAddr {
		return nil, false
	}
	if l.total >= l.all {
		most := conn.from
		for addr, open := range l.open {
			if len(open) > len(l.open[most]) {
				most = addr
			}
		}
		if len(l.open[most]) <= own+1 {
			return nil, false
		}
		gives = l.open[most][0]
		l.leaveLocked(gives)
	}
	l.open[conn.from] = append(l.open[conn.from], conn)
	l.total++
	return gives, true
}

// leaveLocked makes room for another connection. A connection may leave again.
func (l *boundedListener) leaveLocked(conn *boundedConn) {
	open := l.open[conn.from]
	i := slices.Index(open, conn)
	if i < 0 {
		return
	}
	l.total--
	if len(open) == 1 {
		delete(l.open, conn.from)
		return
	}
	l.open[conn.from] = slices.Delete(open, i, i+1)
}

type boundedConn struct {
	net.Conn
	listener *boundedListener
	from     netip.Addr
}

// leave makes room for another connection; this one goes on uncounted.
func (c *boundedConn) leave() {
	c.listener.mu.Lock()
	defer c.listener.mu.Unlock()
	c.listener.leaveLocked(c)
}

// Close closes the connection and makes room for another one.
func (c *boundedConn) Close() error {
	c.leave()
	return c.Conn.Close()
}
