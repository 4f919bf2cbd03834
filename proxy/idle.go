package proxy

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/tulle-mesh/tulle/proxy/tcp"
)

// A connection between two requests takes no goroutine either, once it has been
// still for a while: Go's runtime never gives back the record that it makes of a
// goroutine or of a socket that it polls, so what a burst of connections costs for
// good is what it makes of those at a time. What is left is a file descriptor, which
// hangups watches, and what is needed to go on with the next request.
//
// A few such connections wait as long as a relay: to wake one costs some
// microseconds. Where there are many, they are parked as soon as that is worth it.

const (
	parkAfter        = 3 * time.Second
	parkAfterCrowded = 25 * time.Millisecond
	crowd            = 64 // connections that are not parked
	maxNaps          = 10
)

// parker is what can do without a goroutine for a while. Its methods do not wait.
type parker interface {
	// sweep is told the time now and then, and how long is long enough to be still.
	// It reports whether it may come to that soon.
	sweep(now, enough time.Duration) bool
	// wake makes it go on if it is parked.
	wake()
}

// idleConn is a parked connection between two requests.
type idleConn struct {
	ctx   context.Context // of the proxy's life
	proxy *Proxy
	owner idler
	track *tracked
	conn  *tcp.Conn
	watch watchID
	state atomic.Int32 // running…, as of a relay
}

// idler is whose requests came over it.
type idler interface {
	// resume goes on, and calls gone where it ends.
	resume(ctx context.Context)
	// leave gives back what is held while the connection is open.
	leave()
}

// rest takes a connection that nobody uses out of Go's netpoller; what uses it next
// brings it back.
func (p *Proxy) rest(c *tcp.Conn) bool {
	if !c.Resting() {
		p.hangups.leave(c) // it goes on under another file descriptor
	}
	return c.Rest()
}

// park leaves the client's connection to hangups if it may, and reports whether it
// has: from then on resume or leave of owner may be running.
func (c *httpConn) park(ctx context.Context, owner idler) bool {
	p := c.proxy
	k := &idleConn{ctx: ctx, proxy: p, owner: owner, track: c.track, conn: c.tcp}
	if !p.rest(k.conn) || !k.track.park(k) {
		k.track.stayed()
		return false
	}
	p.serving.Add(1)
	p.parked.Add(1)
	k.track.slept()
	k.watch = p.hangups.note(k.ready)
	k.state.Store(falling)
	err := p.hangups.expect(k.conn, k.watch, parkedEvents)
	early := k.state.Swap(asleep) == called
	if early || err != nil || k.track.isInterrupted() {
		k.wake()
	}
	return true
}

func (k *idleConn) sweep(_, _ time.Duration) bool { return false }

// ready is called by hangups. Most connections end while they are idle, often many
// at a time: that takes no goroutine.
func (k *idleConn) ready(uint32) {
	if !k.conn.Ended() {
		k.wake()
		return
	}
	if k.claim() {
		k.awake()
		k.owner.leave()
		k.proxy.gone(k.track)
		k.proxy.serving.Done()
	}
}

// claim reports whether the caller is the one to end the sleep. One that is just
// falling asleep wakes up by itself.
func (k *idleConn) claim() bool {
	return !k.state.CompareAndSwap(falling, called) && k.state.CompareAndSwap(asleep, running)
}

func (k *idleConn) wake() {
	if !k.claim() {
		return
	}
	go func() {
		defer k.proxy.serving.Done()
		k.awake()
		k.owner.resume(k.ctx)
	}()
}

func (k *idleConn) awake() {
	k.proxy.hangups.forget(k.watch)
	k.track.woke()
	k.track.unpark()
}
