package proxy

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/tulle-mesh/tulle/mesh"
	"github.com/tulle-mesh/tulle/proxy/sniff"
	"github.com/tulle-mesh/tulle/proxy/stream"
	"github.com/tulle-mesh/tulle/proxy/tcp"
)

var (
	errNoEndpoint = errors.New("no endpoint")
	errDrained    = errors.New("the proxy ends, and nothing was under way")
	errUnused     = errors.New("a spare connection has ended")
)

// outbound is a connection that the workload made, on its way to another one.
type outbound struct {
	proxy  *Proxy
	conn   *tcp.Conn
	in     inbox // read and not consumed
	track  *tracked
	client netip.AddrPort
	dest   *destination

	opened   *session // while the client was silent; nil if none was
	openedAt *endpoint
	parked   bool // by a race that the server won
	scouting bool // for dest
}

// serveOutbound tells the story of a connection that the workload makes.
func (p *Proxy) serveOutbound(ctx context.Context, conn *tcp.Conn, track *tracked) (parked bool) {
	dst, err := origin(conn, mesh.OutboundPort)
	if err != nil {
		p.refuseConn(conn, mesh.Outbound, dst, err)
		return false
	}
	dest, err := p.directory.lookup(ctx, dst)
	if err != nil {
		p.refuseConn(conn, mesh.Outbound, dst, err)
		return false
	}
	if dest == nil {
		p.passThrough(ctx, conn, track, dst)
		return false
	}
	o := &outbound{proxy: p, conn: conn, track: track, dest: dest}
	o.client, _ = addrPort(conn.RemoteAddr())
	if o.serve(ctx) {
		return true
	}
	o.leave()
	return false
}

// leave gives back what the connection held.
func (o *outbound) leave() {
	o.in.drop()
	o.dest.done(o.proxy.now())
}

// serve goes on where it is clear what the destination is.
func (o *outbound) serve(ctx context.Context) (parked bool) {
	verdict := o.dest.hint()
	if verdict == sniff.More {
		var err error
		if verdict, err = o.sniff(ctx); err != nil {
			o.conn.Reset()
			return false
		}
	}
	switch verdict {
	case sniff.More: // both are silent, or the server spoke first: done by sniff
		return o.parked
	case sniff.HTTP1:
		return o.http(ctx)
	case sniff.HTTP2:
		o.http2(ctx)
		return false
	}
	return o.opaque(ctx, verdict.Protocol())
}

// silence is how long the client may take to speak before the upstream is opened
// to see whether the server speaks first.
const silence = 20 * time.Millisecond

// What waits at a destination whose last client spoke HTTP is most likely a spare
// connection of the workload's pool, and pools make many of them at a time: to open
// an upstream for each is to shake hands with a crowd. One at a time goes ahead as
// the scout, and the others look now and then whether it has heard the server.
const (
	knownSilence    = 50  // times silence: 1 s, for the first look
	maxKnownSilence = 500 // the same for the last one; each takes twice as long
)

// sniff finds out what the client speaks. If the server turns out to speak
// first, it serves the connection to its end and returns More.
func (o *outbound) sniff(ctx context.Context) (sniff.Verdict, error) {
	verdict, err := sniff.More, error(nil)
	switch sniff.Verdict(o.dest.learned.Load()) {
	case sniff.Opaque: // the server speaks first: don't wait for the client
	case sniff.HTTP1, sniff.HTTP2:
		verdict, err = o.await()
	default:
		verdict, err = o.proxy.detect(o.conn, &o.in, o.proxy.silence)
	}
	if err != nil {
		return verdict, err
	}
	if verdict == sniff.More {
		if verdict = o.race(ctx); verdict == sniff.More {
			return verdict, nil
		}
	}
	if verdict == sniff.HTTP1 || verdict == sniff.HTTP2 {
		o.dest.learned.Store(uint32(verdict))
	}
	return verdict, nil
}

// await waits for a client that will most likely speak HTTP. It returns More if the
// server is to be heard: the client has been chosen as the scout, or a scout has
// found that it speaks first.
func (o *outbound) await() (sniff.Verdict, error) {
	o.track.expect(0, true) // nothing is under way
	defer o.track.expect(0, false)
	for patience := knownSilence * o.proxy.silence; ; patience = min(2*patience, maxKnownSilence*o.proxy.silence) {
		verdict, err := o.proxy.detect(o.conn, &o.in, patience)
		switch {
		case err == nil && verdict == sniff.Opaque && o.in.len() == 0: // the client has ended
			_ = o.conn.Close()
			return verdict, errUnused
		case verdict != sniff.More || err != nil:
			return verdict, err
		case o.proxy.draining():
			_ = o.conn.Close()
			return sniff.More, errDrained
		case sniff.Verdict(o.dest.learned.Load()) == sniff.Opaque:
			return sniff.More, nil
		}
		if o.scouting = o.dest.scouted.CompareAndSwap(false, true); o.scouting {
			return sniff.More, nil
		}
	}
}

// returned ends what await began, if the connection is the scout.
func (o *outbound) returned() {
	if o.scouting {
		o.scouting = false
		o.dest.scouted.Store(false)
	}
}

// http forwards requests, each balanced by itself, until the connection ends or
// is parked.
func (o *outbound) http(ctx context.Context) (parked bool) {
	for {
		c := &httpConn{
			proxy: o.proxy, direction: mesh.Outbound, conn: o.conn, tcp: o.conn, track: o.track,
			client: o.proxy.self(o.client), route: &balanced{outbound: o},
		}
		c.in, o.in = o.in, inbox{}
		if !c.serve(ctx) {
			break
		}
		if c.park(ctx, o) {
			return true
		}
	}
	if o.opened != nil {
		o.giveBack(o.opened, o.openedAt)
	}
	return false
}

// resume goes on with an HTTP connection that was parked.
func (o *outbound) resume(ctx context.Context) {
	if !o.http(ctx) {
		o.leave()
		o.proxy.gone(o.track)
	}
}

// opaque forwards bytes to one endpoint.
func (o *outbound) opaque(ctx context.Context, proto mesh.Protocol) (parked bool) {
	x := o.begin(proto)
	first := o.in.bytes()
	first = first[:min(len(first), stream.MaxPayload)]
	s, ep, err := o.open(ctx, first)
	if err != nil {
		o.failed(&x, ep, err)
		return false
	}
	o.in.take(len(first))
	o.in.release()
	near := &connEnd{conn: o.conn, tcp: o.conn, in: &o.in}
	x.FirstByte = time.Since(x.Start)
	c := o.carry(x, s, ep, o.proxy.newRelay(o.track, near, s.end()))
	return c.run(c.relay.run)
}

// carried is a connection on its way to an endpoint.
type carried struct {
	*outbound
	x     mesh.Exchange
	edge  *edge
	s     *session
	ep    *endpoint
	relay *relay
}

func (o *outbound) carry(x mesh.Exchange, s *session, ep *endpoint, r *relay) *carried {
	c := &carried{outbound: o, x: x, edge: ep.Value.edge(x.Protocol), s: s, ep: ep, relay: r}
	c.edge.open.Add(1)
	if s.stream != nil {
		r.parkable(c.resume)
	}
	return c
}

// run relays until the connection ends or is parked.
func (c *carried) run(relay func() (bool, error)) (parked bool) {
	parked, err := relay()
	if parked {
		return true
	}
	c.track.parks(nil)
	c.x.BytesSent, c.x.BytesReceived = c.relay.out.moved.Load(), c.relay.back.moved.Load()
	c.ended(&c.x, c.edge, c.s, c.ep, err)
	return false
}

func (c *carried) resume() {
	if !c.run(c.relay.run) {
		c.leave()
		c.proxy.gone(c.track)
	}
}

// race opens the upstream for a silent client and lets whoever speaks first
// decide. It returns More if that was the server; the connection is then over.
func (o *outbound) race(ctx context.Context) sniff.Verdict {
	x := o.begin(mesh.TCP)
	s, ep, err := o.open(ctx, nil)
	if err != nil {
		o.returned()
		o.failed(&x, ep, err)
		return sniff.More
	}
	x.FirstByte = time.Since(x.Start)
	r := o.proxy.startRace(o.track, o.conn, &o.in, s.end())
	verdict := r.decide()
	if verdict == sniff.More && r.spoke.Load() {
		o.dest.learned.Store(uint32(sniff.Opaque))
	}
	o.returned()
	if verdict == sniff.HTTP1 || verdict == sniff.HTTP2 {
		if r.stop() && verdict == sniff.HTTP1 {
			o.opened, o.openedAt = s, ep
		} else {
			o.giveBack(s, ep)
		}
		return verdict
	}
	if verdict != sniff.More {
		x.Protocol = verdict.Protocol()
	}
	c := o.carry(x, s, ep, r.relay)
	o.parked = c.run(func() (bool, error) { return r.join(r.ended) })
	return sniff.More
}

func (o *outbound) begin(proto mesh.Protocol) mesh.Exchange {
	return mesh.Exchange{
		Direction: mesh.Outbound, Protocol: proto, Client: o.proxy.self(o.client),
		Server: mesh.Peer{Service: o.dest.service()}, Start: time.Now(),
	}
}

// failed refuses the client what no endpoint took.
func (o *outbound) failed(x *mesh.Exchange, ep *endpoint, err error) {
	o.conn.Reset()
	x.Outcome = outcomeOf(err)
	if errors.Is(err, errNoEndpoint) {
		x.Outcome = mesh.NoEndpoint
	}
	x.Duration = time.Since(x.Start)
	o.proxy.log.Debug("no connection", "service", x.Server.Service, "error", err)
	if ep != nil {
		x.Server, x.Security = ep.Value.peer(), ep.Value.security
		o.proxy.recorder.record(ep.Value.edge(x.Protocol), x)
		return
	}
	x.Security = o.dest.intended(nil)
	o.proxy.recorder.record(o.nowhere(x.Protocol, nil), x)
}

// nowhere returns the counters of what reached no endpoint; tried is the last one
// that failed, nil if there was none.
func (o *outbound) nowhere(proto mesh.Protocol, tried *endpoint) *edge {
	return o.proxy.recorder.edge(edgeKey{
		direction: mesh.Outbound, protocol: proto, security: o.dest.intended(tried), service: o.dest.service(),
	})
}

func (o *outbound) ended(x *mesh.Exchange, e *edge, s *session, ep *endpoint, err error) {
	x.Duration = time.Since(x.Start)
	x.Server, x.Security = ep.Value.peer(), ep.Value.security
	if err != nil {
		x.Outcome = mesh.Reset
		o.conn.Reset()
	}
	_ = o.conn.Close()
	e.open.Add(-1)
	o.proxy.recorder.record(e, x)
	o.giveBack(s, ep)
}

// giveBack ends the stream, keeps its connection for the next one, and leaves
// the endpoint.
func (o *outbound) giveBack(s *session, ep *endpoint) {
	s.finish()
	ep.Leave()
}

// finish ends the stream of a streamSession, or the connection of one that
// carries no streams, and keeps for the next stream what can be kept.
func (s *session) finish() {
	if s.stream == nil {
		s.close()
		return
	}
	buf := tcp.NewBuffer(tcp.Bulk)
	defer buf.Free()
	if s.stream.Finish(buf.B) {
		s.up.release(s)
	} else {
		s.close()
	}
}

// open opens a connection or stream to an endpoint with first (at most
// stream.MaxPayload) as its first bytes. While no application has seen a byte it tries elsewhere.
func (o *outbound) open(ctx context.Context, first []byte) (*session, *endpoint, error) {
	var last *endpoint
	var err error = errNoEndpoint
	for range maxAttempts {
		ep := o.dest.pick(ctx, o.proxy.now, last)
		if ep == nil {
			break
		}
		start := o.proxy.now()
		var s *session
		if s, err = o.openAt(ctx, ep.Value, first); err == nil {
			now := o.proxy.now()
			ep.Observe(now, now-start, true)
			return s, ep, nil
		}
		now := o.proxy.now()
		ep.End(now, now-start, false)
		if last == ep { // there is no other one
			break
		}
		last = ep
	}
	return nil, last, err
}

func (o *outbound) openAt(ctx context.Context, up *upstream, first []byte) (*session, error) {
	for {
		a := checked
		if up.security != mesh.MutualTLS {
			a = fresh // there, a connection carries one stream
		}
		s, err := up.session(ctx, streamSession, a)
		if err != nil {
			return nil, err
		}
		if s.stream == nil {
			if len(first) > 0 {
				err = s.write(first)
			}
			if err != nil {
				s.abort()
				return nil, err
			}
			return s, nil
		}
		buf := tcp.NewBuffer(tcp.Large)
		err = s.stream.Open(o.client, first, buf.B)
		buf.Free()
		if err == nil {
			err = s.stream.Accepted()
		}
		switch {
		case err == nil:
			return s, nil
		case errors.Is(err, stream.ErrRefused):
			s.finish()
			return nil, err
		case !s.reused: // a session that was idle may have been closed just now
			s.abort()
			return nil, err
		}
		s.abort()
	}
}

// end returns the session as one side of a relay.
func (s *session) end() end {
	if s.stream != nil {
		return &streamEnd{Conn: s.stream, tcp: s.tcp}
	}
	if s.mux != nil {
		return &muxEnd{Stream: s.mux, in: &s.in}
	}
	return &connEnd{conn: s.conn, tcp: s.tcp, in: &s.in}
}

// passThrough forwards to an address that the mesh has nothing to do with.
// Nothing is looked at, so nothing can be in the way.
func (p *Proxy) passThrough(ctx context.Context, conn *tcp.Conn, track *tracked, dst netip.AddrPort) {
	client, _ := addrPort(conn.RemoteAddr())
	x := mesh.Exchange{
		Direction: mesh.Outbound, Protocol: mesh.TCP, Client: p.self(client),
		Server: mesh.Peer{Addr: dst}, Start: time.Now(),
	}
	e := p.recorder.edge(edgeKey{direction: mesh.Outbound, protocol: mesh.TCP, address: dst.String()})
	far, err := tcp.Dial(ctx, dst)
	if err != nil {
		conn.Reset()
		x.Outcome, x.Duration = outcomeOf(err), time.Since(x.Start)
		p.recorder.record(e, &x)
		return
	}
	x.FirstByte = time.Since(x.Start)
	e.open.Add(1)
	x.BytesSent, x.BytesReceived, err = p.relay(track, &connEnd{conn: conn, tcp: conn}, &connEnd{conn: far, tcp: far})
	if err != nil {
		x.Outcome = mesh.Reset
	}
	_ = conn.Close()
	_ = far.Close()
	e.open.Add(-1)
	x.Duration = time.Since(x.Start)
	p.recorder.record(e, &x)
}

// balanced routes each request of a connection to the endpoint that is
// expected to answer first.
type balanced struct {
	*outbound
	ep    *endpoint // of the last attempt
	tried *endpoint // that could not be reached, of the last request for which none could
}

func (b *balanced) session(ctx context.Context, attempt int, a age) (*session, error) {
	if s := b.opened; s != nil {
		// The application has a connection of this client's already.
		b.ep, b.opened = b.openedAt, nil
		if s.stream != nil {
			s.conn, s.meshed = s.stream, false // bytes as they are, no flag octets
		}
		return s, nil
	}
	avoid := b.ep
	if attempt == 0 || a == fresh {
		avoid = nil
	}
	var err error = errNoEndpoint
	for range maxAttempts {
		ep := b.dest.pick(ctx, b.proxy.now, avoid)
		if ep == nil {
			break
		}
		start := b.proxy.now()
		var s *session
		if s, err = ep.Value.session(ctx, httpSession, a); err == nil {
			b.ep = ep
			return s, nil
		}
		now := b.proxy.now()
		ep.End(now, now-start, false)
		if avoid == ep {
			break
		}
		avoid = ep
	}
	b.ep, b.tried = nil, avoid
	return nil, err
}

func (b *balanced) answered(_ *session, firstByte time.Duration) {
	b.ep.Observe(b.proxy.now(), firstByte, true)
}

func (b *balanced) failed(_ *session, blame bool) {
	if blame {
		b.ep.Observe(b.proxy.now(), 0, false)
	}
	b.ep.Leave()
}

func (b *balanced) done(s *session, reusable bool) {
	if s.stream != nil {
		go b.giveBack(s, b.ep)
		return
	}
	if reusable {
		s.kind = httpSession
		b.ep.Value.release(s)
	} else {
		s.close()
	}
	b.ep.Leave()
}

func (b *balanced) edge(s *session) *edge {
	if s == nil {
		return b.nowhere(mesh.HTTP1, b.tried)
	}
	return s.up.edge(mesh.HTTP1)
}

func (b *balanced) security(s *session) mesh.Security {
	if s == nil {
		return b.dest.intended(b.tried)
	}
	return s.up.security
}

func (b *balanced) server(s *session) mesh.Peer {
	if s == nil {
		return mesh.Peer{Service: b.dest.service(), Addr: b.dest.addr}
	}
	return s.up.peer()
}
