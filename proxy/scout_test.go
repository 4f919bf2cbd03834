package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tulle-mesh/tulle/proxy/sniff"
	"github.com/tulle-mesh/tulle/proxy/tcp"
)

// twofold is an application that speaks HTTP to who speaks, and greets, if it may,
// who does not.
type twofold struct {
	addr   net.Addr
	greets chan struct{} // closed: it greets
	conns  atomic.Int64
}

func newTwofold(t *testing.T) *twofold {
	t.Helper()
	app := &twofold{greets: make(chan struct{})}
	app.addr = tcpApp(t, app.serve)
	return app
}

func (a *twofold) serve(c *net.TCPConn) {
	a.conns.Add(1)
	spoke := make(chan struct{})
	go func() {
		select {
		case <-spoke:
		case <-a.greets:
			io.WriteString(c, "220 hello\r\n")
		}
	}()
	r := bufio.NewReader(c)
	for first := true; ; first = false {
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		if first {
			close(spoke)
		}
		io.Copy(io.Discard, req.Body)
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	}
}

func silentClients(t *testing.T, addr string, n int) []net.Conn {
	t.Helper()
	conns := make([]net.Conn, n)
	for i := range conns {
		c, err := net.Dial("tcp4", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(time.Minute))
		conns[i] = c
	}
	return conns
}

func askTwofold(c net.Conn) error {
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(resp.Body)
	if err == nil && (resp.StatusCode != 200 || string(body) != "ok") {
		err = fmt.Errorf("%s %q", resp.Status, body)
	}
	return err
}

// twofoldPair is a pair whose client's proxy has seen HTTP, and does not wait long.
func twofoldPair(t *testing.T) (*twofold, *testPair) {
	t.Helper()
	app := newTwofold(t)
	pair := newTestPair(t, app.addr, false, func(p *Proxy) {
		if p.config.Service == "client" {
			p.silence = time.Millisecond
		}
	})
	pair.dest.learned.Store(uint32(sniff.HTTP1))
	return app, pair
}

// Spares of a pool cost the other side one connection at most, and are HTTP once
// they are used.
func TestOneScoutForManySilentClients(t *testing.T) {
	app, pair := twofoldPair(t)
	const spares = 40
	clients := silentClients(t, pair.addr, spares)
	await(t, "for the scout", func() bool { return app.conns.Load() > 0 })
	time.Sleep(5 * knownSilence * pair.client.silence) // in which the others must not follow it
	if n := app.conns.Load(); n != 1 {
		t.Errorf("%d connections to the application for %d silent clients", n, spares)
	}
	for i, c := range clients {
		if err := askTwofold(c); err != nil {
			t.Errorf("client %d: %v", i, err)
		}
	}
	if pair.dest.scouted.Load() {
		t.Error("there is still a scout when all have spoken")
	}
}

// What a scout hears is true for all who wait.
func TestScoutHearsTheServer(t *testing.T) {
	app, pair := twofoldPair(t)
	clients := silentClients(t, pair.addr, 10)
	await(t, "for the scout", func() bool { return app.conns.Load() > 0 })
	close(app.greets)
	for i, c := range clients {
		line, err := bufio.NewReader(c).ReadString('\n')
		if err != nil || line != "220 hello\r\n" {
			t.Errorf("client %d heard %q, %v", i, line, err)
		}
	}
}

// A scout that gives up makes room for the next one.
func TestScoutsFollowEachOther(t *testing.T) {
	app, pair := twofoldPair(t)
	for range 3 {
		before := app.conns.Load()
		c := silentClients(t, pair.addr, 1)[0]
		await(t, "for a scout", func() bool { return app.conns.Load() > before })
		c.Close()
		await(t, "for its end", func() bool { return !pair.dest.scouted.Load() })
	}
}

// Who waits for a client that has nothing to say does not hold up an end.
func TestDrainEndsSilentClients(t *testing.T) {
	_, pair := twofoldPair(t)
	pair.dest.scouted.Store(true) // by somebody else
	c := silentClients(t, pair.addr, 1)[0]
	await(t, "until it is idle", func() bool {
		idle := false
		pair.client.conns.each(func(tr *tracked) {
			tr.mu.Lock()
			defer tr.mu.Unlock()
			idle = idle || tr.idle && tr.conn.(*tcp.Conn).RemoteAddr().String() == c.LocalAddr().String()
		})
		return idle
	})
	pair.client.conns.drain(time.Minute)
	if n, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("read %d bytes, %v", n, err)
	}
}

// A spare that ends unused is nobody's business, and no TCP connection in the figures.
func TestUnusedSpareIsNotForwarded(t *testing.T) {
	app, pair := twofoldPair(t)
	for _, c := range silentClients(t, pair.addr, 3) {
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("read %d bytes, %v", n, err)
		}
	}
	if n := app.conns.Load(); n != 0 {
		t.Errorf("%d connections to the application", n)
	}
}
