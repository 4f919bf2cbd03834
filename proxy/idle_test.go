package proxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/tulle-mesh/tulle/proxy/tcp"
)

// httpTestApp answers each request with its path.
func httpTestApp(t *testing.T) net.Addr {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	app := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.URL.Path) })}
	go func() { _ = app.Serve(ln) }()
	t.Cleanup(func() { _ = app.Close() })
	return ln.Addr()
}

// idleTest is clients on connections that are now and then parked.
type idleTest struct {
	*testing.T
	pair    *testPair
	proxy   *Proxy // whose clients they are
	now     time.Duration
	clients []*net.TCPConn
}

func (t *idleTest) dial(addr string, n int) {
	t.Helper()
	for range n {
		c := dialTest(t.T, addr)
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		t.clients = append(t.clients, c)
	}
}

func (t *idleTest) ask(path string) {
	t.Helper()
	for i, c := range t.clients {
		if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: a\r\n\r\n", path); err != nil {
			t.Fatalf("client %d: %v", i, err)
		}
		r, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatalf("client %d: %v", i, err)
		}
		if body, err := io.ReadAll(r.Body); err != nil || string(body) != path {
			t.Fatalf("client %d: %q, %v", i, body, err)
		}
	}
}

// eventually waits until ok, while time passes for both proxies.
func (t *idleTest) eventually(what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("not within half a minute: %s", what)
		}
		t.now += time.Millisecond
		t.pair.client.conns.tick(t.now)
		t.pair.server.conns.tick(t.now)
		time.Sleep(time.Millisecond)
	}
}

func (t *idleTest) awaitParked() {
	t.Helper()
	t.eventually("all are parked", func() bool {
		for _, p := range []*Proxy{t.pair.client, t.pair.server} {
			p.conns.mu.Lock()
			awake := 0
			p.conns.awake.each(func(tr *tracked) {
				tr.mu.Lock()
				defer tr.mu.Unlock()
				if tr.parker != nil { // else a link, which is never parked
					awake++
				}
			})
			p.conns.mu.Unlock()
			if awake > 0 {
				return false
			}
		}
		return t.proxy.conns.parkedNow() == len(t.clients)
	})
}

func (t *tracker) parkedNow() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.parked.n
}

func openFiles(t testing.TB) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// Idle connections take no goroutine; they go on, and end, as if they had one.
func TestIdleConnections(t *testing.T) {
	const clients = 200
	for _, way := range []string{"meshed", "unmeshed client"} {
		t.Run(way, func(t *testing.T) {
			test := &idleTest{T: t, pair: newTestPair(t, httpTestApp(t), false, func(p *Proxy) { p.conns.parkAfter = 0 })}
			addr, perClient := test.pair.addr, 0
			if test.proxy = test.pair.client; way != "meshed" {
				addr, test.proxy = test.pair.plain, test.pair.server
				perClient = 2 // the application has a connection, and net/http two goroutines, for each
			}
			test.dial(addr, 1)
			test.ask("/warm")
			goroutines, files := runtime.NumGoroutine(), openFiles(t)

			test.dial(addr, clients-1)
			for range 3 {
				test.ask("/asked")
				test.awaitParked()
				test.eventually("no goroutines", func() bool {
					return runtime.NumGoroutine() < goroutines+perClient*clients+clients/4
				})
				test.pair.server.hangups.shrink()
				test.pair.client.hangups.shrink()
			}

			kept := test.clients[:1]
			for i, c := range test.clients[1:] {
				if i%2 == 0 {
					_ = c.SetLinger(0)
				}
				_ = c.Close()
			}
			test.eventually("those that were closed have gone", func() bool { return test.proxy.conns.parkedNow() == 1 })
			test.eventually("their files are closed", func() bool { return openFiles(t) < files+clients/4 }) // there may be some more sessions
			test.clients = kept
			test.ask("/still")
		})
	}
}

// A parked connection ends when its time is over, and when the proxy drains.
func TestIdleConnectionsEnd(t *testing.T) {
	for _, way := range []string{"meshed", "unmeshed client"} {
		for _, end := range []string{"timeout", "drain"} {
			t.Run(way+", "+end, func(t *testing.T) {
				test := &idleTest{T: t, pair: newTestPair(t, httpTestApp(t), false, func(p *Proxy) { p.conns.parkAfter = 0 })}
				addr := test.pair.addr
				if test.proxy = test.pair.client; way != "meshed" {
					addr, test.proxy = test.pair.plain, test.pair.server
				}
				test.dial(addr, 3)
				test.ask("/")
				test.awaitParked()
				if end == "drain" {
					test.proxy.conns.drain(time.Minute)
				} else {
					test.proxy.conns.tick(test.now + 2*keepIdle)
				}
				for _, c := range test.clients {
					if _, err := c.Read(make([]byte, 1)); err != io.EOF {
						t.Errorf("the client reads %v, want an end", err)
					}
				}
				test.eventually("all have gone", func() bool { return test.proxy.conns.parkedNow() == 0 })
			})
		}
	}
}

// quietParker notes how often it is asked, and may be parked at once.
type quietParker struct {
	asked int
	soon  bool
}

func (q *quietParker) sweep(time.Duration, time.Duration) bool { q.asked++; return q.soon }
func (q *quietParker) wake()                                   {}

// Where there is a crowd, and only there, connections are looked at more often than
// once a second, as long as that is of use.
func TestCrowd(t *testing.T) {
	var conns tracker
	conns.init(parkAfter)
	q := &quietParker{soon: true}
	var all []*tracked
	for range crowd {
		tr := conns.add(&tcp.Conn{})
		tr.parks(q)
		all = append(all, tr)
	}
	if len(conns.crowded) != 0 || conns.thin(0) || q.asked != 0 {
		t.Error("that is no crowd yet")
	}
	one := conns.add(&tcp.Conn{})
	if len(conns.crowded) != 1 || !conns.thin(0) || q.asked != crowd {
		t.Errorf("%d were asked", q.asked)
	}
	if q.soon = false; conns.thin(0) {
		t.Error("nothing is to come of it")
	}
	q.asked = 0
	all[0].slept()
	if conns.thin(0) || q.asked != 0 {
		t.Error("one is parked: that is no crowd any more")
	}
	all[0].woke()
	conns.remove(one)
	for _, tr := range all {
		conns.remove(tr)
	}
	if conns.awake.n != 0 || conns.parked.n != 0 || conns.awake.first != nil || conns.len() != 0 {
		t.Error("some are left")
	}
}

// A connection that is asked as soon as it has been parked stays awake for longer.
func TestShortNaps(t *testing.T) {
	var conns tracker
	conns.init(parkAfter)
	tr := conns.add(noDeadlines{})
	now := time.Duration(0)
	patience := func() time.Duration {
		tr.expect(0, false)
		tr.expect(keepIdle, true)
		for start := now; ; now += time.Millisecond {
			tr.mu.Lock()
			tr.askLocked(now, parkAfterCrowded)
			asked := tr.asked
			tr.mu.Unlock()
			if asked {
				if !tr.wasAsked() || tr.wasAsked() {
					t.Error("it was asked once")
				}
				return now - start
			}
		}
	}
	for want := parkAfterCrowded; want < parkAfter; want *= 2 {
		if got := patience(); got != want {
			t.Errorf("parked after %v, want %v", got, want)
		}
		tr.slept()
		tr.woke()
	}
	for range maxNaps {
		if got := patience(); got != parkAfter {
			t.Errorf("parked after %v, want %v", got, parkAfter)
		}
		tr.slept()
		tr.woke()
	}
	tr.slept()
	conns.tick(time.Minute)
	tr.woke()
	if got := patience(); got != parkAfterCrowded {
		t.Errorf("parked after %v, want %v: it slept for a minute", got, parkAfterCrowded)
	}
}

type noDeadlines struct{ accepted }

func (noDeadlines) SetReadDeadline(time.Time) error { return nil }

// What can't be parked goes on.
func TestParkRefused(t *testing.T) {
	p := newTestProxy(t, newTestAuthority(t), "web", false)
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	tr := p.conns.add(noDeadlines{})
	c := &httpConn{proxy: p, track: tr, tcp: closedConn(t)}
	if c.park(context.Background(), nil) {
		t.Error("a closed connection was parked")
	}
	if tr.naps != 1 || tr.isParked {
		t.Errorf("naps %d, parked %v", tr.naps, tr.isParked)
	}
}

func closedConn(t *testing.T) *tcp.Conn {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := tcp.New(dialTest(t, ln.Addr().String()))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		t.Fatal(err)
	}
	return c
}
