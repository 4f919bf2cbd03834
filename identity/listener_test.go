package identity

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
)

func TestListenBoundsConnectionsOfOneAddress(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := Listen(inner)
	accepted := make(chan net.Conn, maxConnsPerAddr+1)
	go func() {
		defer close(accepted)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- conn
		}
	}()
	dial := func() net.Conn {
		t.Helper()
		conn, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	var server net.Conn
	for range maxConnsPerAddr {
		dial()
		server = <-accepted
		defer server.Close()
	}
	if _, err := dial().Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("one too many: %v, want it closed", err)
	}
	server.Close()
	server.Close() // twice makes no more room than once
	dial()
	defer (<-accepted).Close()
	if _, err := dial().Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("one too many again: %v, want it closed", err)
	}
	inner.Close()
	for range accepted {
		t.Error("one connection too many was accepted")
	}
	if b := l.(*boundedListener); b.total != maxConnsPerAddr || len(b.open) != 1 {
		t.Errorf("%d connections of %d addresses are counted", b.total, len(b.open))
	}
}

// namedConn comes from an address; it counts how often it was closed.
type namedConn struct {
	net.Conn
	from   netip.Addr
	closed int
}

func (c *namedConn) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(c.from, 1))
}
func (c *namedConn) Close() error { c.closed++; return nil }

// comers is a listener to which connections of its addresses come, one by one.
type comers struct {
	net.Listener
	from []netip.Addr
	all  []*namedConn
}

func (c *comers) Accept() (net.Conn, error) {
	if len(c.from) == 0 {
		return nil, net.ErrClosed
	}
	conn := &namedConn{from: c.from[0]}
	c.from, c.all = c.from[1:], append(c.all, conn)
	return conn, nil
}

// Whoever has taken all there is makes room for those who have less, and for
// nobody else.
func TestBoundIsShared(t *testing.T) {
	greedy, second, third := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::3")
	come := &comers{}
	for range 6 {
		come.from = append(come.from, greedy)
	}
	come.from = append(come.from, second, third, second, greedy, third)
	l := Bound(come, 5, 5)
	accepted := map[netip.Addr]int{}
	for {
		conn, err := l.Accept()
		if err != nil {
			break
		}
		accepted[addrOf(conn.RemoteAddr())]++
	}
	if accepted[greedy] != 5 || accepted[second] != 2 || accepted[third] != 1 {
		t.Errorf("accepted %v", accepted)
	}
	// Its sixth was too much, its first three made room; of three addresses with
	// two, two and one nobody makes room for anybody.
	for i, want := range []int{1, 1, 1, 0, 0, 1, 0, 0, 0, 1, 1} {
		if got := come.all[i].closed; got != want {
			t.Errorf("connection %d, of %s, was closed %d times, want %d", i, come.all[i].from, got, want)
		}
	}
	if b := l.(*boundedListener); b.total != 5 || len(b.open) != 3 {
		t.Errorf("%d connections of %d addresses are counted", b.total, len(b.open))
	}
}
