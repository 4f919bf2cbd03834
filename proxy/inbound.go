package proxy

import (
	"context"
	"errors"
	"net/netip"
	"syscall"
	"time"

	"github.com/tulle-mesh/tulle/mesh"
	"github.com/tulle-mesh/tulle/proxy/mtls"
	"github.com/tulle-mesh/tulle/proxy/sniff"
	"github.com/tulle-mesh/tulle/proxy/stream"
	"github.com/tulle-mesh/tulle/proxy/tcp"
)

// errElsewhere keeps a workload that routes for others (nested containers) from
// using its proxy as their plaintext forwarder.
var errElsewhere = errors.New("original destination is not an address of this workload")

var errDenied = errors.New("policy strict: only clients of the mesh may call")

// inbound is a connection that somebody makes to the workload.
type inbound struct {
	proxy    *Proxy
	conn     *tcp.Conn
	in       inbox // read and not consumed
	track    *tracked
	app      netip.AddrPort // where the application listens: the original destination
	client   mesh.Peer
	security mesh.Security
	opened   *session // to the application, while the client was silent; nil if none was
}

// serveInbound tells the story of a connection that somebody makes to the workload.
func (p *Proxy) serveInbound(ctx context.Context, conn *tcp.Conn, track *tracked) (parked bool) {
	app, err := origin(conn, mesh.InboundPort)
	if err == nil && !p.isOwn(app.Addr()) && !p.shared() {
		err = errElsewhere
	}
	if err != nil {
		p.refuseConn(conn, mesh.Inbound, app, err)
		return false
	}
	if p.config.RedirectProbe && app.Port() == mesh.RedirectProbePort {
		p.answerRedirectProbe(conn)
		return false
	}
	in := &inbound{proxy: p, conn: conn, track: track, app: app}
	in.client.Addr, _ = addrPort(conn.RemoteAddr())
	if in.serve(ctx) {
		return true
	}
	in.leave()
	return false
}

// leave gives back what the connection held.
func (in *inbound) leave() {
	in.in.drop()
	if in.opened != nil {
		in.opened.close()
	}
}

// serve goes on where it is clear which application is meant.
func (in *inbound) serve(ctx context.Context) (parked bool) {
	verdict, err := in.sniff(ctx)
	if err != nil {
		in.conn.Reset()
		return false
	}
	switch {
	case verdict == sniff.More: // done by sniff
	case verdict == sniff.MeshTLS:
		return in.meshed(ctx)
	case !in.proxy.admits(in.track):
		in.proxy.refuseConn(in.conn, mesh.Inbound, in.app, errDenied)
	case verdict == sniff.HTTP1:
		return in.http(ctx)
	case verdict == sniff.HTTP2:
		in.http2(ctx, nil)
	default:
		in.opaque(ctx, verdict.Protocol())
	}
	return false
}

// sniff tells clients of the mesh from others and, of those, what they speak.
// If the application turns out to speak first, it serves the connection to its
// end and returns More.
func (in *inbound) sniff(ctx context.Context) (sniff.Verdict, error) {
	if !in.proxy.strict() {
		v, err := in.proxy.detect(in.conn, &in.in, in.proxy.silence)
		if err != nil || v != sniff.More {
			return v, err
		}
		if in.proxy.admits(in.track) {
			return in.race(ctx)
		}
	}
	// Only a ClientHello counts, and it has to come soon.
	v, err := in.proxy.detect(in.conn, &in.in, mtls.HandshakeTimeout)
	if v == sniff.More {
		v = sniff.Opaque
	}
	return v, err
}

// meshed serves a client of the mesh: who is it, and what is inside?
func (in *inbound) meshed(ctx context.Context) (parked bool) {
	in.track.invite(false)
	in.conn.Unread(in.in.buf, in.in.r, in.in.w)
	in.in = inbox{}
	conn, err := mtls.Server(in.conn, in.proxy.creds.Load().Server())
	if err != nil {
		in.proxy.refuseConn(in.conn, mesh.Inbound, in.app, &handshakeError{addr: in.client.Addr, err: err})
		return false
	}
	in.client.ID, in.security = conn.Peer, mesh.MutualTLS
	switch conn.Protocol {
	case mesh.ALPNTCP, mesh.ALPNTCPFirst:
		s := &streams{inbound: in, ctx: ctx, conn: newStream(conn, in.conn.Reset), counters: in.edge(mesh.TCP)}
		return s.serve()
	}
	if err := in.conn.AlwaysRead(); err != nil { // it is gone
		in.conn.Reset()
		return false
	}
	switch conn.Protocol {
	case mesh.ALPNHTTP2:
		in.http2(ctx, conn)
	default:
		in.link(ctx, conn)
	}
	return false
}

// http forwards requests of a client without identity to the application, until the
// connection ends or is parked.
func (in *inbound) http(ctx context.Context) (parked bool) {
	for {
		c := &httpConn{
			proxy: in.proxy, direction: mesh.Inbound, conn: in.conn, tcp: in.conn, track: in.track,
			client: in.client,
		}
		c.in, in.in = in.in, inbox{}
		route := &toApp{inbound: in, counters: in.edge(mesh.HTTP1), idle: in.opened}
		c.route = route
		asked := c.serve(ctx)
		if in.opened = route.idle; !asked {
			return false
		}
		route.rest()
		if c.park(ctx, in) {
			return true
		}
	}
}

// resume goes on with an HTTP connection that was parked.
func (in *inbound) resume(ctx context.Context) {
	if !in.http(ctx) {
		in.leave()
		in.proxy.gone(in.track)
	}
}

// streams serves one TCP stream after the other on a connection of the mesh.
type streams struct {
	*inbound
	ctx      context.Context // of the proxy's life
	conn     *stream.Conn
	counters *edge

	// The present stream.
	x     mesh.Exchange
	app   *tcp.Conn
	relay *relay
}

// serve runs until the connection ends or is parked.
func (s *streams) serve() (parked bool) {
	for {
		s.track.expect(keepIdle, true)
		from, err := s.conn.Next()
		if err != nil {
			break
		}
		s.track.expect(0, false)
		s.x = s.begin(mesh.TCP)
		s.x.Client.Addr = from
		if err := s.open(); err != nil {
			s.inbound.ended(s.counters, &s.x)
		} else if s.carry() {
			return true
		}
		if !s.finish() {
			break
		}
	}
	_ = s.conn.Close()
	return false
}

// open connects the stream to the application.
func (s *streams) open() (err error) {
	if s.app, err = s.dialApp(s.ctx, s.vouched(s.x.Client.Addr)); err != nil {
		s.x.Outcome = outcomeOf(err)
		_ = s.conn.Refuse()
		return err
	}
	if err = s.conn.Accept(); err != nil {
		s.x.Outcome = mesh.Reset
		_ = s.app.Close()
		return err
	}
	s.x.FirstByte = time.Since(s.x.Start)
	s.counters.open.Add(1)
	s.relay = s.proxy.newRelay(s.track, &streamEnd{Conn: s.conn, tcp: s.inbound.conn}, &connEnd{conn: s.app, tcp: s.app})
	s.relay.parkable(s.resume)
	return nil
}

// carry relays until the stream ends or is parked.
func (s *streams) carry() (parked bool) {
	parked, err := s.relay.run()
	if parked {
		return true
	}
	s.track.parks(nil)
	s.counters.open.Add(-1)
	s.x.BytesSent, s.x.BytesReceived = s.relay.out.moved.Load(), s.relay.back.moved.Load()
	if err != nil {
		s.x.Outcome = mesh.Reset
	}
	_ = s.app.Close()
	s.inbound.ended(s.counters, &s.x)
	return false
}

// finish reports whether another stream may follow.
func (s *streams) finish() bool {
	buf := tcp.NewBuffer(tcp.Bulk)
	defer buf.Free()
	return s.conn.Finish(buf.B) && !s.proxy.draining()
}

func (s *streams) resume() {
	if s.carry() {
		return
	}
	if s.finish() {
		if s.serve() {
			return
		}
	} else {
		_ = s.conn.Close()
	}
	s.in.drop()
	s.proxy.gone(s.track)
}

// opaque forwards the bytes of a client without identity.
func (in *inbound) opaque(ctx context.Context, proto mesh.Protocol) {
	x, e := in.begin(proto), in.edge(proto)
	app, err := in.dialApp(ctx, in.client.Addr)
	if err != nil {
		in.conn.Reset()
		x.Outcome = outcomeOf(err)
		in.ended(e, &x)
		return
	}
	x.FirstByte = time.Since(x.Start)
	e.open.Add(1)
	x.BytesSent, x.BytesReceived, err = in.proxy.relay(in.track, &connEnd{conn: in.conn, tcp: in.conn, in: &in.in}, &connEnd{conn: app, tcp: app})
	in.close(e, &x, app, err)
}

// race opens the application for a silent client and lets whoever speaks first decide.
func (in *inbound) race(ctx context.Context) (sniff.Verdict, error) {
	x := in.begin(mesh.TCP)
	app, err := in.dialApp(ctx, in.client.Addr)
	if err != nil {
		in.conn.Reset()
		x.Outcome = outcomeOf(err)
		in.ended(in.edge(mesh.TCP), &x)
		return sniff.More, nil
	}
	x.FirstByte = time.Since(x.Start)
	r := in.proxy.startRace(in.track, in.conn, &in.in, &connEnd{conn: app, tcp: app})
	verdict := r.decide()
	if verdict == sniff.HTTP1 || verdict == sniff.HTTP2 || verdict == sniff.MeshTLS {
		if r.stop() && verdict == sniff.HTTP1 {
			in.opened = &session{conn: app, tcp: app}
		} else {
			_ = app.Close()
		}
		return verdict, nil
	}
	if verdict != sniff.More {
		x.Protocol = verdict.Protocol()
	}
	e := in.edge(x.Protocol)
	e.open.Add(1)
	_, err = r.join(r.ended)
	x.BytesSent, x.BytesReceived = r.out.moved.Load(), r.back.moved.Load()
	in.close(e, &x, app, err)
	return sniff.More, nil
}

// dialApp connects to the application, which is shown the client if the kernel
// can. One that listens in the other family only is reached, too: clients turn to
// another address when they are refused, but the proxy has accepted them before
// it can know.
func (in *inbound) dialApp(ctx context.Context, client netip.AddrPort) (*tcp.Conn, error) {
	app, err := in.proxy.dialFor(ctx, client, in.app)
	if err == nil || !errors.Is(err, syscall.ECONNREFUSED) {
		return app, err
	}
	for _, a := range in.proxy.own {
		if a.Is4() != in.app.Addr().Is4() && a.IsGlobalUnicast() {
			if app, again := in.proxy.dialFor(ctx, client, netip.AddrPortFrom(a, in.app.Port())); again == nil {
				return app, nil
			}
			break
		}
	}
	return nil, err
}

func (in *inbound) close(e *edge, x *mesh.Exchange, app *tcp.Conn, err error) {
	e.open.Add(-1)
	if err != nil {
		x.Outcome = mesh.Reset
	}
	_ = in.conn.Close()
	_ = app.Close()
	in.ended(e, x)
}

func (in *inbound) begin(proto mesh.Protocol) mesh.Exchange {
	return mesh.Exchange{
		Direction: mesh.Inbound, Protocol: proto, Security: in.security, Client: in.client,
		Server: in.server(), Start: time.Now(),
	}
}

func (in *inbound) ended(e *edge, x *mesh.Exchange) {
	x.Duration = time.Since(x.Start)
	in.proxy.recorder.record(e, x)
}

func (in *inbound) server() mesh.Peer {
	p := in.proxy.self(in.app)
	p.Service = in.proxy.config.Service
	return p
}

func (in *inbound) edge(proto mesh.Protocol) *edge {
	key := edgeKey{direction: mesh.Inbound, protocol: proto, security: in.security, service: in.proxy.config.Service, peer: in.client.ID}
	if key.peer.IsZero() {
		key.address = callerAddress(in.client.Addr)
	}
	return in.proxy.recorder.edge(key)
}

// toApp routes all requests of a connection to the workload's application, over
// a connection that is this client's own.
type toApp struct {
	*inbound
	counters *edge
	idle     *session
}

func (t *toApp) session(ctx context.Context, _ int, a age) (*session, error) {
	if s := t.idle; s != nil {
		t.idle = nil
		if s.good(a) {
			s.reused = true
			return s, nil
		}
		s.close()
	}
	app, err := t.dialApp(ctx, t.vouched(t.client.Addr))
	if err != nil {
		return nil, err
	}
	return &session{conn: app, tcp: app}, nil
}

func (t *toApp) answered(*session, time.Duration) {}
func (t *toApp) failed(*session, bool)            {}

func (t *toApp) done(s *session, reusable bool) {
	if reusable {
		s.in.drop()
		t.idle = s
		return
	}
	s.close()
}

// rest is called before a pause between two requests.
func (t *toApp) rest() {
	if t.idle != nil {
		t.proxy.rest(t.idle.tcp)
	}
}

func (t *toApp) edge(*session) *edge             { return t.counters }
func (t *toApp) security(*session) mesh.Security { return t.inbound.security }
func (t *toApp) server(*session) mesh.Peer       { return t.inbound.server() }
