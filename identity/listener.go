package identity

import (
	"net"
	"net/netip"
	"sync"
)

// Bounds of connections to the control plane. A proxy has one, for a moment two.
const (
	maxConnsPerAddr = 16
	maxConns        = 16384
)

// Listen returns a listener that hands on what l accepts, but closes at once
// what is too much: of one address, so that nobody crowds out the others, or
// altogether. It is for listeners that workloads can reach.
func Listen(l net.Listener) net.Listener {
	return &boundedListener{Listener: l, open: make(map[netip.Addr]int)}
}

type boundedListener struct {
	net.Listener

	mu    sync.Mutex
	open  map[netip.Addr]int
	total int
}

// Accept returns the next connection that is not too much.
func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from := addrOf(conn.RemoteAddr())
		if l.enter(from) {
			return &boundedConn{Conn: conn, leave: sync.OnceFunc(func() { l.leave(from) })}, nil
		}
		conn.Close()
	}
}

func (l *boundedListener) enter(from netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[from] >= maxConnsPerAddr || l.total >= maxConns {
		return false
	}
	l.open[from]++
	l.total++
	return true
}

func (l *boundedListener) leave(from netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total--
	if l.open[from]--; l.open[from] == 0 {
		delete(l.open, from)
	}
}

type boundedConn struct {
	net.Conn
	leave func()
}

// Close closes the connection and makes room for another one.
func (c *boundedConn) Close() error {
	c.leave()
	return c.Conn.Close()
}
