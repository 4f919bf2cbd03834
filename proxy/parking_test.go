package proxy

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/tulle-mesh/tulle/proxy/tcp"
)

// relays returns those that p carries.
func relays(p *Proxy) []*relay {
	var all []*relay
	p.conns.each(func(tr *tracked) {
		tr.mu.Lock()
		defer tr.mu.Unlock()
		if r, ok := tr.parker.(*relay); ok {
			all = append(all, r)
		}
	})
	return all
}

// heard returns once p has been told of all that was to be seen of the connections
// that it watches.
func heard(t *testing.T, p *Proxy) {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	far := dialTest(t, ln.Addr().String())
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := tcp.New(c.(*net.TCPConn))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	told := make(chan struct{}, 1)
	id := p.hangups.watch(conn, func(uint32) { told <- struct{}{} })
	defer p.hangups.forget(id)
	if err := far.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-told:
	case <-time.After(time.Minute):
		t.Fatal("no event")
	}
}

// askedApp takes connections, reads each to its end, and answers when it is told to.
type askedApp struct {
	net.Listener
	ended  chan string   // what came, once it has ended
	answer chan struct{} // closed
}

func newAskedApp(t *testing.T) *askedApp {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	app := &askedApp{Listener: ln, ended: make(chan string, 1), answer: make(chan struct{})}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b, _ := io.ReadAll(c)
				app.ended <- string(b)
				<-app.answer
				_, _ = io.WriteString(c, "answer to "+string(b))
			}()
		}
	}()
	return app
}

// A half-closed relay sleeps until there is something to do: the end of its one side
// can be read for ever, but is no news.
func TestHalfClosedRelaySleeps(t *testing.T) {
	app := newAskedApp(t)
	test := &idleTest{T: t, pair: newTestPair(t, app.Addr(), false, func(p *Proxy) { p.conns.parkAfter = 0 })}
	test.proxy = test.pair.client
	test.dial(test.pair.addr, 1)
	c := test.clients[0]
	if _, err := io.WriteString(c, "*opaque"); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	select {
	case got := <-app.ended:
		if got != "*opaque" {
			t.Fatalf("the application read %q", got)
		}
	case <-time.After(time.Minute):
		t.Fatal("the application saw no end")
	}
	for _, p := range []*Proxy{test.pair.client, test.pair.server} {
		var r *relay
		test.eventually("the relay sleeps, half-closed", func() bool {
			all := relays(p)
			if len(all) != 1 {
				return false
			}
			r = all[0]
			return r.alive() == 1 && r.parking.state.Load() == asleep
		})
		heard(t, p)
		if state := r.parking.state.Load(); state != asleep {
			t.Errorf("the relay is woken though there is nothing to do (state %d)", state)
		}
	}
	close(app.answer)
	if got, err := io.ReadAll(c); string(got) != "answer to *opaque" || err != nil {
		t.Errorf("the client reads %q, %v", got, err)
	}
}

// echoes answers each connection with what it reads.
func echoes(t *testing.T) net.Addr {
	return tcpApp(t, func(c *net.TCPConn) {
		_, _ = io.Copy(c, c)
	})
}

// await waits until ok, while no time passes for the proxies.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// A relay that has something to do as soon as it has been parked stays awake for
// longer the next time, also in a crowd.
func TestRelayNaps(t *testing.T) {
	pair := newTestPair(t, echoes(t), false)
	c := dialTest(t, pair.addr)
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	now := time.Duration(0)
	// sweep looks at the relay, and returns since when it has been still.
	sweep := func(r *relay) time.Duration {
		r.track.mu.Lock()
		defer r.track.mu.Unlock()
		r.sweep(now, parkAfterCrowded)
		return r.parking.still
	}
	for want := parkAfterCrowded; want < parkAfter; want *= 2 {
		b := []byte("*opaque")
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, b); err != nil || string(b) != "*opaque" {
			t.Fatalf("%q, %v", b, err)
		}
		var r *relay
		await(t, "both directions wait", func() bool {
			if all := relays(pair.client); len(all) == 1 {
				r = all[0]
			}
			return r != nil && r.parking.state.Load() == running && r.out.quiet() && r.back.quiet()
		})
		now++
		start := sweep(r)
		for now = start; sweep(r) == start; now += parkAfterCrowded / 5 { // until it is asked to park
		}
		if got := now - start; got != want {
			t.Errorf("parked after %v, want %v", got, want)
		}
		await(t, "the relay sleeps", func() bool {
			now += parkAfter // it is asked again if it has not agreed
			sweep(r)
			return r.parking.state.Load() == asleep
		})
	}
}

// A flow may end while the other one is asked to park: that one may see it before
// the flow that has ended says so itself.
func TestParkWhileTheOtherEnds(t *testing.T) {
	r := &relay{
		out: &flow{}, back: &flow{},
		parking: &parking{asked: true, agreed: make(chan struct{})},
	}
	r.out.ended.Store(true)
	if !r.agree(true) {
		t.Error("the only flow that is left may not park")
	}
	if r.agree(false) {
		t.Error("a flow that has ended shall park")
	}
}
