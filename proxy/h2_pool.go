package proxy

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tulle-mesh/tulle/mesh"
	"github.com/tulle-mesh/tulle/proxy/http2"
	"github.com/tulle-mesh/tulle/proxy/mtls"
	"github.com/tulle-mesh/tulle/proxy/tcp"
)

const (
	maxH2Sessions = 128              // per endpoint
	maxBarren     = 3                // connections opened in a row of which none has a place for a stream
	h2SessionAge  = 30 * time.Minute // after which another one is opened, for new streams
)

// h2Pool is the HTTP/2 connections to one endpoint. All of them are shared by
// whoever calls it; a new one is opened when the peer's limit of streams is
// reached on all others.
type h2Pool struct {
	up      *upstream
	waiters atomic.Int64 // len(waiting)

	mu       sync.Mutex
	sessions []*h2Session
	dialing  int
	waiting  []*h2Exchange // for a place
	serving  bool          // a goroutine hands out places
	barren   int           // connections opened since one had a place
	closed   bool
	tried    chan struct{} // closed once a connection has been opened or has failed
}

// h2Session is one connection of a pool. Its goroutine reads.
type h2Session struct {
	pool *h2Pool
	conn *http2.Conn
	born time.Duration
	used atomic.Int64 // of the proxy's clock: when a stream ended last
	open bool         // of the reading goroutine: the peer's settings are known
}

// take finds a place for x, now or when there is one. by is the connection whose
// goroutine calls, or nil.
func (p *h2Pool) take(x *h2Exchange, by *http2.Conn) {
	p.mu.Lock()
	for _, s := range p.sessions {
		if s.conn.Reserve() {
			p.barren = 0
			p.mu.Unlock()
			x.attach(s.conn, by)
			return
		}
	}
	if len(p.waiting) == 0 {
		p.barren = 0
	}
	p.waiting = append(p.waiting, x)
	p.waiters.Add(1)
	p.growLocked()
	p.mu.Unlock()
}

// growLocked opens a connection for those who wait, one at a time, and not without end
// where none has a place for them.
func (p *h2Pool) growLocked() {
	if p.dialing == 0 && len(p.waiting) > 0 && len(p.sessions) < maxH2Sessions && p.barren < maxBarren && !p.closed {
		p.dialing++
		go p.dial()
	}
}

// dial opens a connection and serves it to its end.
func (p *h2Pool) dial() {
	s := &h2Session{pool: p, born: p.up.proxy.now()}
	err := s.run()
	p.mu.Lock()
	p.sessions = slices.DeleteFunc(p.sessions, func(o *h2Session) bool { return o == s })
	if s.open {
		p.growLocked()
	} else {
		p.dialing--
		p.triedLocked()
	}
	var failed []*h2Exchange
	if !s.open || len(p.sessions) == 0 && p.dialing == 0 { // nobody else is going to have a place
		failed, p.waiting, p.barren = p.waiting, nil, 0
		p.waiters.Store(0)
	}
	p.mu.Unlock()
	for _, x := range failed {
		x.unrouted(err)
	}
}

func (s *h2Session) run() error {
	c, err := s.pool.up.dial(context.Background(), h2Kind)
	if err != nil {
		return err
	}
	var t tcp.Transport = c.tcp
	if m, ok := c.conn.(*mtls.Conn); ok {
		t = m
	}
	_ = t.SetReadDeadline(time.Now().Add(mtls.HandshakeTimeout)) // for the peer's settings
	s.conn = http2.New(t, http2.Config{Owner: s, Kept: &s.pool.up.proxy.kept})
	return s.conn.Run(nil)
}

// Accept implements http2.Owner: servers open no streams.
func (s *h2Session) Accept() *http2.Stream { return nil }

// Settled implements http2.Owner.
func (s *h2Session) Settled() {
	_, connect := s.conn.Peer()
	s.pool.up.extended.Store(connect)
	if s.open {
		s.pool.serve()
		return
	}
	s.open = true
	_ = s.conn.Transport().SetReadDeadline(time.Time{})
	p := s.pool
	p.mu.Lock()
	p.dialing--
	p.triedLocked()
	p.sessions = append(p.sessions, s)
	p.barren++ // until it turns out to have a place
	closed := p.closed
	p.mu.Unlock()
	p.serve()
	if closed {
		s.conn.Leave()
	}
}

// Away implements http2.Owner.
func (s *h2Session) Away() {
	p := s.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sessions = slices.DeleteFunc(p.sessions, func(o *h2Session) bool { return o == s })
	if s.open {
		p.growLocked()
	}
}

// Interrupted implements http2.Owner: the settings did not come in time.
func (s *h2Session) Interrupted() error { return errNoSettings }

var errNoSettings = &timeoutError{"the endpoint does not answer in HTTP/2"}

type timeoutError struct{ text string }

func (e *timeoutError) Error() string   { return e.text }
func (e *timeoutError) Timeout() bool   { return true }
func (e *timeoutError) Temporary() bool { return true }

// serve gives places to those who wait.
func (p *h2Pool) serve() {
	p.mu.Lock()
	if p.serving {
		p.mu.Unlock()
		return
	}
	p.serving = true
	for len(p.waiting) > 0 {
		s := p.freeLocked()
		if s == nil {
			break
		}
		x := p.waiting[0]
		p.waiting[0] = nil
		p.waiting = p.waiting[1:]
		p.waiters.Add(-1)
		p.mu.Unlock()
		x.attach(s.conn, nil)
		p.mu.Lock()
	}
	p.serving = false
	p.growLocked()
	p.mu.Unlock()
}

// freeLocked returns a session in which a place was reserved.
func (p *h2Pool) freeLocked() *h2Session {
	for _, s := range p.sessions {
		if s.conn.Reserve() {
			p.barren = 0
			return s
		}
	}
	return nil
}

// left is told that a stream has ended, with the exchange locked.
func (p *h2Pool) left() {
	if p.waiters.Load() > 0 {
		go p.serve()
	}
}

// sweep closes connections that are idle, lets old ones run out, and returns
// the number of both.
func (p *h2Pool) sweep(now time.Duration) int {
	p.mu.Lock()
	var old []*h2Session
	for _, s := range p.sessions {
		n, _ := s.conn.Open()
		if n > 0 {
			s.used.Store(int64(now))
		}
		if n == 0 && now-max(s.born, time.Duration(s.used.Load())) > sessionIdle || now-s.born > h2SessionAge {
			old = append(old, s)
		}
	}
	p.sessions = slices.DeleteFunc(p.sessions, func(s *h2Session) bool { return slices.Contains(old, s) })
	p.mu.Unlock()
	for _, s := range old {
		s.conn.Leave()
	}
	if p.waiters.Load() > 0 { // a place may be free whose stream ended late
		p.serve()
	}
	return len(old)
}

// close is called when the endpoint has left and nothing is in flight any more.
func (p *h2Pool) close() {
	p.mu.Lock()
	p.closed = true
	all := p.sessions
	p.sessions = nil
	p.mu.Unlock()
	for _, s := range all {
		s.conn.Leave()
	}
}

// h2Budget bounds retries to a share of the requests.
type h2Budget struct{ tokens atomic.Int64 }

const (
	retryCost   = 5   // requests that pay for a retry: 20 %
	retrySaved  = 500 // requests that can be saved up
	retryAtOnce = 50  // before any
)

func (b *h2Budget) request() {
	if b.tokens.Load() < retrySaved {
		b.tokens.Add(1)
	}
}

// take reports whether there may be a retry.
func (b *h2Budget) take() bool {
	for {
		n := b.tokens.Load()
		if n < retryCost-retryAtOnce {
			return false
		}
		if b.tokens.CompareAndSwap(n, n-retryCost) {
			return true
		}
	}
}

// h2Balanced routes each stream of a client's connection by itself.
type h2Balanced struct {
	*outbound
	conn *h2Conn
}

func (b *h2Balanced) route(x *h2Exchange, by *http2.Conn) {
	if by != nil {
		b.dest.budget.request()
	}
	if b.dest.unready.Load() { // may have to wait: the other streams shall not
		go func() {
			b.place(x, b.dest.pick(context.Background(), b.proxy.now, x.avoid), nil)
		}()
		return
	}
	b.place(x, b.dest.set.Pick(b.proxy.now(), x.avoid), by)
}

func (b *h2Balanced) place(x *h2Exchange, ep *endpoint, by *http2.Conn) {
	x.mu.Lock()
	over := x.over
	if !over {
		x.ep = ep
	}
	x.mu.Unlock()
	switch {
	case ep == nil && !over:
		x.unrouted(errNoEndpoint)
	case over && ep != nil:
		ep.Leave()
	case ep != nil:
		ep.Value.h2.take(x, by)
	}
}

func (b *h2Balanced) answered(x *h2Exchange, firstByte time.Duration) {
	x.ep.Observe(b.proxy.now(), firstByte, true)
}

func (b *h2Balanced) blamed(x *h2Exchange) { x.ep.Observe(b.proxy.now(), 0, false) }

func (b *h2Balanced) left(x *h2Exchange) {
	ep := x.ep
	if ep == nil {
		return
	}
	x.avoid, x.ep = ep, nil
	ep.Value.h2.left()
	ep.Leave()
}

func (b *h2Balanced) again(x *h2Exchange) bool {
	if x.attempts++; x.attempts > 1 {
		return false
	}
	return b.dest.budget.take()
}

func (b *h2Balanced) edge(x *h2Exchange) *edge {
	if x.ep == nil {
		return b.nowhere(mesh.HTTP2, x.avoid)
	}
	return x.ep.Value.edge(mesh.HTTP2)
}

func (b *h2Balanced) security(x *h2Exchange) mesh.Security {
	if x.ep == nil {
		return b.dest.intended(x.avoid)
	}
	return x.ep.Value.security
}

func (b *h2Balanced) server(x *h2Exchange) mesh.Peer {
	if x.ep == nil {
		return mesh.Peer{Service: b.dest.service(), Addr: b.dest.addr}
	}
	return x.ep.Value.peer()
}

func (b *h2Balanced) away() {}

// http2 forwards streams, each balanced by itself.
func (o *outbound) http2(ctx context.Context) {
	extended := o.warm(ctx)
	c := &h2Conn{proxy: o.proxy, direction: mesh.Outbound, track: o.track, client: o.proxy.self(o.client)}
	c.router = &h2Balanced{outbound: o, conn: c}
	c.conn = http2.New(o.conn, http2.Config{Server: true, Owner: c, Connect: extended, Kept: &o.proxy.kept})
	first := slices.Clone(o.in.bytes())
	o.in.drop()
	c.serve(first)
}

// warm opens a first connection to an endpoint, so that the client's first
// settings can say whether the application takes extended CONNECT. If that
// fails, the requests will tell why.
func (o *outbound) warm(ctx context.Context) (extended bool) {
	if ep := o.dest.pick(ctx, o.proxy.now, nil); ep != nil {
		ep.Value.h2.warm(ctx)
		ep.Leave()
	}
	return slices.ContainsFunc(o.dest.set.Endpoints(), func(ep *endpoint) bool { return ep.Value.extended.Load() })
}

// warm returns once a connection has been opened, ever, or could not be.
func (p *h2Pool) warm(ctx context.Context) {
	p.mu.Lock()
	if p.tried == nil {
		p.tried = make(chan struct{})
		p.dialing++
		go p.dial()
	}
	tried := p.tried
	p.mu.Unlock()
	select {
	case <-tried:
	case <-ctx.Done():
	}
}

// triedLocked lets those go on who wait for the first connection.
func (p *h2Pool) triedLocked() {
	if p.tried == nil {
		p.tried = make(chan struct{})
	}
	select {
	case <-p.tried:
	default:
		close(p.tried)
	}
}
