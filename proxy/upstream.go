package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/tulle-mesh/tulle/mesh"
	"github.com/tulle-mesh/tulle/proxy/mtls"
	"github.com/tulle-mesh/tulle/proxy/mux"
	"github.com/tulle-mesh/tulle/proxy/stream"
	"github.com/tulle-mesh/tulle/proxy/tcp"
)

const (
	sessionIdle     = 20 * time.Second // unused for so long, a session is closed
	maxIdleSessions = 512              // per endpoint and protocol
)

// Errors of dialling that decide what the exchange's outcome is.
var errNoCredentials = errors.New("no certificate yet")

// upstream is one endpoint as this proxy reaches it: its idle sessions and its
// counters. It is safe for concurrent use.
type upstream struct {
	proxy    *Proxy
	key      endpointKey
	service  string
	security mesh.Security
	edges    [mesh.TLS + 1]atomic.Pointer[edge]
	h2       h2Pool
	links    links
	extended atomic.Bool // it takes extended CONNECT (RFC 8441)

	mu      sync.Mutex
	closed  bool
	idle    [kinds][]*session // by sessionKind; the most recently used last
	configs [kinds]*tls.Config
	creds   *mtls.Credentials // what configs was made for
}

// sessionKind is what a session carries.
type sessionKind int

const (
	httpSession   sessionKind = iota // requests, one after the other
	streamSession                    // TCP streams, one after the other
	h2Kind                           // HTTP/2: streams side by side; kept in an h2Pool
	kinds
)

var alpn = [kinds][]string{{mesh.ALPNHTTP1, mesh.ALPNHTTP1First}, {mesh.ALPNTCP, mesh.ALPNTCPFirst}, {mesh.ALPNHTTP2}}

// byteConn is a connection that can be half-closed.
type byteConn interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// session is one connection to an endpoint; one exchange at a time uses it.
type session struct {
	up     *upstream
	kind   sessionKind
	conn   byteConn     // the *mtls.Conn or mux of a meshed endpoint, else tcp
	tcp    *tcp.Conn    // nil where there is mux
	mux    *mux.Stream  // of an httpSession to a meshed endpoint
	link   *link        // what mux runs over
	stream *stream.Conn // of a streamSession
	in     inbox        // of an httpSession: read and not consumed
	meshed bool
	large  bool          // the last answer was
	reused bool          // has served before
	since  time.Duration // when it became idle

	halfClosed atomic.Bool // the client hung up its sending side; so did we
}

func newUpstream(p *Proxy, service string, key endpointKey) *upstream {
	u := &upstream{proxy: p, key: key, service: service}
	u.h2.up, u.links.up = u, u
	switch {
	case p.isOwn(key.addr.Addr()) && !p.shared():
		u.security = mesh.Local // loopback: never leaves the workload's namespace
	case key.id.IsZero():
		u.security = mesh.Plaintext
	default:
		u.security = mesh.MutualTLS
	}
	return u
}

// edge returns the counters for exchanges of a protocol with this endpoint.
func (u *upstream) edge(proto mesh.Protocol) *edge {
	if e := u.edges[proto].Load(); e != nil {
		return e
	}
	e := u.proxy.recorder.edge(edgeKey{
		direction: mesh.Outbound, protocol: proto, security: u.security, service: u.service,
		peer: u.peerID(), workload: u.key.workload, address: u.key.addr.String(),
	})
	u.edges[proto].Store(e)
	return e
}

// peerID is who answers there: the mesh makes sure of it.
func (u *upstream) peerID() mesh.ID {
	if u.security == mesh.MutualTLS {
		return u.key.id
	}
	return mesh.ID{}
}

// age says which sessions will do.
type age int

const (
	anyAge  age = iota // an idle one; its link may turn out to have been closed
	checked            // an idle one that was open a moment ago
	fresh              // a new one
)

// good reports whether an idle session will do. On none may anything have come since
// its last answer: it would be taken for the answer to the next request.
func (s *session) good(a age) bool {
	if s.mux != nil {
		return a != fresh && s.mux.Quiet() && s.link.Alive() && (a == anyAge || !s.link.ended())
	}
	return a != fresh && s.tcp.Quiet()
}

// session returns an idle session that is good enough, or dials one.
func (u *upstream) session(ctx context.Context, kind sessionKind, a age) (*session, error) {
	for a != fresh {
		s := u.takeIdle(kind)
		if s == nil {
			break
		}
		if s.good(a) {
			s.reused = true
			return s, nil
		}
		s.close()
	}
	if kind == httpSession && u.security == mesh.MutualTLS {
		return u.links.session(ctx, a)
	}
	return u.dial(ctx, kind)
}

func (u *upstream) takeIdle(kind sessionKind) *session {
	u.mu.Lock()
	defer u.mu.Unlock()
	list := u.idle[kind]
	if len(list) == 0 {
		return nil
	}
	s := list[len(list)-1]
	list[len(list)-1] = nil
	u.idle[kind] = list[:len(list)-1]
	return s
}

// release takes a session back for the next exchange.
func (u *upstream) release(s *session) {
	s.in.drop()
	s.since = u.proxy.now()
	u.mu.Lock()
	keep := !u.closed && len(u.idle[s.kind]) < maxIdleSessions
	if keep {
		u.idle[s.kind] = append(u.idle[s.kind], s)
	}
	u.mu.Unlock()
	if !keep {
		s.close()
	}
}

// sweep closes sessions that nobody has used for a while, has the others rest, and
// returns the number of those that it closed.
func (u *upstream) sweep(now time.Duration) int {
	var old []*session
	u.mu.Lock()
	for kind, list := range u.idle {
		n := 0
		for n < len(list) && now-list[n].since > sessionIdle {
			n++
		}
		if n > 0 {
			old = append(old, list[:n]...)
			u.idle[kind] = append([]*session(nil), list[n:]...)
		}
		for _, s := range list[n:] {
			if s.tcp != nil && now-s.since > u.proxy.conns.parkAfter {
				u.proxy.rest(s.tcp)
			}
		}
	}
	u.mu.Unlock()
	for _, s := range old {
		s.close()
	}
	return len(old) + u.h2.sweep(now) + u.links.sweep(now)
}

// close is called when the endpoint has left and nothing is in flight any more.
func (u *upstream) close() {
	u.mu.Lock()
	u.closed = true
	idle := u.idle
	u.idle = [kinds][]*session{}
	u.mu.Unlock()
	u.h2.close()
	for _, list := range idle {
		for _, s := range list {
			s.close()
		}
	}
	u.links.close()
}

func (u *upstream) dial(ctx context.Context, kind sessionKind) (*session, error) {
	c, err := u.proxy.dialPeer(ctx, u.key.addr)
	if err != nil {
		return nil, err
	}
	s := &session{up: u, kind: kind, conn: c, tcp: c}
	if u.security != mesh.MutualTLS {
		return s, nil
	}
	conf, err := u.config(kind)
	if err != nil {
		c.Reset()
		return nil, err
	}
	conn, err := mtls.Client(c, conf)
	if err != nil {
		return nil, &handshakeError{addr: u.key.addr, err: err}
	}
	s.conn, s.meshed = conn, true
	if kind == streamSession {
		s.stream = newStream(conn, c.Reset)
		return s, nil
	}
	if err := c.AlwaysRead(); err != nil { // a proxy holds back a stream, not the connection
		c.Reset()
		return nil, err
	}
	return s, nil
}

// config returns the TLS configuration for this endpoint under the newest
// credentials.
func (u *upstream) config(kind sessionKind) (*tls.Config, error) {
	creds := u.proxy.creds.Load()
	if creds == nil {
		return nil, errNoCredentials
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.creds != creds {
		u.creds, u.configs = creds, [kinds]*tls.Config{}
	}
	if u.configs[kind] == nil {
		u.configs[kind] = creds.Client(u.key.id, alpn[kind]...)
	}
	return u.configs[kind], nil
}

// next waits for the first bytes of an answer. It reads much at once where the
// last answer was large.
func (s *session) next() error {
	size := tcp.Small
	if s.large {
		size = tcp.Bulk
	}
	err := s.in.next(s.conn, size)
	s.large = s.in.len() >= tcp.Small-headroom
	return err
}

// write sends the whole of p.
func (s *session) write(p []byte) error {
	_, err := s.conn.Write(p)
	return err
}

// halfClose passes on that the client sends no more.
func (s *session) halfClose() {
	if s.halfClosed.Swap(true) {
		return
	}
	_ = s.conn.CloseWrite()
}

// close ends the session in peace.
func (s *session) close() {
	s.in.drop()
	_ = s.conn.Close()
}

// abort resets the session; the endpoint sees ECONNRESET.
func (s *session) abort() {
	if s.mux != nil {
		s.mux.Reset()
		return
	}
	s.tcp.Reset()
}

// tracked makes the session go down with the client's connection.
func (s *session) tracked(t *tracked) {
	if s.mux != nil {
		t.stream.Store(s.mux)
		return
	}
	t.far.Store(s.tcp)
}

// handshakeError tells a peer that could not prove itself from one that could
// not be reached.
type handshakeError struct {
	addr netip.AddrPort
	err  error
}

func (e *handshakeError) Error() string { return fmt.Sprintf("mutual TLS with %s: %v", e.addr, e.err) }
func (e *handshakeError) Unwrap() error { return e.err }

// outcomeOf names what went wrong before the peer answered.
func outcomeOf(err error) mesh.Outcome {
	var bad *handshakeError
	var alert tls.AlertError // how a server refuses a client comes after the handshake
	var timeout net.Error
	switch {
	case err == nil:
		return mesh.Success
	case errors.As(err, &bad) && !isReset(err), errors.As(err, &alert):
		return mesh.TLSFail
	case errors.As(err, &timeout) && timeout.Timeout():
		return mesh.TimedOut
	}
	return mesh.ConnectFail
}

func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, io.EOF)
}
