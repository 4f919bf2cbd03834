package proxy

import (
	"io"
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tulle-mesh/tulle/proxy/sniff"
	"github.com/tulle-mesh/tulle/proxy/tcp"
)

func userTimeout(c *tcp.Conn) int {
	ms, err := 0, error(nil)
	if cerr := c.Control(func(fd uintptr) { ms, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT) }); cerr != nil || err != nil {
		return 0 // it has ended
	}
	return ms
}

// Who stops reading, a pager say, is there an hour later: no socket of a workload's
// connection may be given up by the kernel for that. Only links are, which a proxy
// always reads.
func TestPausedReadersAreNotGivenUp(t *testing.T) {
	app := newTwofold(t)
	pair := newTestPair(t, app.addr, false)
	for _, c := range silentClients(t, pair.addr, 1) {
		if err := askTwofold(c); err != nil {
			t.Fatal(err)
		}
	}
	pair.dest.learned.Store(uint32(sniff.Opaque))
	close(app.greets)
	opaque, err := net.Dial("tcp4", pair.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer opaque.Close()
	if _, err := io.ReadFull(opaque, make([]byte, len("220 hello\r\n"))); err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, p := range []*Proxy{pair.client, pair.server} {
		p.conns.each(func(tr *tracked) {
			for _, c := range []*tcp.Conn{tr.far.Load(), acceptedTCP(tr)} {
				if c == nil {
					continue
				}
				seen++
				if ms := userTimeout(c); ms != 0 && !isLink(pair, c) {
					t.Errorf("a connection between %v and %v is given up after %d ms", c.LocalAddr(), c.RemoteAddr(), ms)
				}
			}
		})
	}
	if seen < 5 {
		t.Errorf("saw only %d sockets", seen)
	}
	links := 0
	for _, ep := range pair.dest.set.Endpoints() {
		for _, k := range ep.Value.links.open {
			links++
			if ms := userTimeout(k.tcp); ms != int(tcp.AckTimeout.Milliseconds()) {
				t.Errorf("a link is given up after %d ms", ms)
			}
		}
	}
	if links == 0 {
		t.Error("there is no link")
	}
}

func acceptedTCP(tr *tracked) *tcp.Conn { c, _ := tr.conn.(*tcp.Conn); return c }

// isLink reports whether c is one of the ends of a link.
func isLink(pair *testPair, c *tcp.Conn) bool {
	for _, ep := range pair.dest.set.Endpoints() {
		for _, k := range ep.Value.links.open {
			if k.tcp == c || k.tcp.LocalAddr().String() == c.RemoteAddr().String() {
				return true
			}
		}
	}
	return false
}
