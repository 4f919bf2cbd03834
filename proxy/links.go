package proxy

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/tulle-mesh/tulle/mesh"
	"github.com/tulle-mesh/tulle/proxy/mtls"
	"github.com/tulle-mesh/tulle/proxy/mux"
	"github.com/tulle-mesh/tulle/proxy/tcp"
)

// HTTP/1.1 sessions between two proxies are streams side by side over few
// mutual-TLS connections: one per endpoint as long as that has room. What a
// session means is unchanged: on the other side, it has a connection to the
// application of its own.

const linkAge = 30 * time.Minute // after which another one is opened, for new streams

// links are the connections to one endpoint that carry HTTP/1.1 sessions.
type links struct {
	up *upstream

	mu      sync.Mutex
	open    []*link
	dialing *dialing // nil: nobody is at it
	closed  bool
}

// link is one of them. A goroutine reads it.
type link struct {
	*mux.Link
	tcp  *tcp.Conn
	born time.Duration
	used time.Duration // when it was seen with a stream last; the sweep's
	peek sync.Mutex    // held for tcp.Ended
}

// dialing is one attempt to open a link, which all wait for who need one.
type dialing struct {
	done chan struct{}
	err  error // once done is closed
}

// session opens a session, on a new connection only if there is no room on
// those that are open.
func (l *links) session(ctx context.Context, a age) (*session, error) {
	warm := true
	for {
		l.mu.Lock()
		if s := l.sessionLocked(a); s != nil {
			l.mu.Unlock()
			s.reused = warm && a != fresh // the link may turn out to be dead
			return s, nil
		}
		d := l.dialing
		if d == nil {
			d = &dialing{done: make(chan struct{})}
			l.dialing = d
			go l.dial(d)
		}
		l.mu.Unlock()
		warm = false
		select {
		case <-d.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if d.err != nil {
			return nil, d.err
		}
	}
}

// sessionLocked opens a session on a link that has room for one. What can't be
// sent again does not go out on a link that has ended, heard of or not.
func (l *links) sessionLocked(a age) *session {
	for _, k := range l.open {
		if a != anyAge && k.ended() {
			continue
		}
		if s := k.Open(); s != nil {
			return &session{up: l.up, kind: httpSession, conn: s, mux: s, link: k, meshed: true}
		}
	}
	return nil
}

// dial opens a link and reads it to its end.
func (l *links) dial(d *dialing) {
	s, err := l.up.dial(context.Background(), httpSession)
	k := &link{born: l.up.proxy.now()}
	k.used = k.born
	if err == nil {
		k.tcp = s.tcp
		conn := s.conn.(*mtls.Conn)
		k.Link = mux.New(conn, mux.Config{Left: func() { l.remove(k) }, Growth: l.up.proxy.growth(conn)})
	}
	l.mu.Lock()
	d.err, l.dialing = err, nil
	closed := l.closed
	if err == nil {
		l.open = append(l.open, k)
	}
	l.mu.Unlock()
	close(d.done)
	if err != nil {
		return
	}
	if closed {
		k.Leave()
	}
	_ = k.Run()
}

func (l *links) remove(k *link) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open = slices.DeleteFunc(l.open, func(o *link) bool { return o == k })
}

// sweep closes links that are idle, lets old ones run out, and returns the
// number of both.
func (l *links) sweep(now time.Duration) int {
	l.mu.Lock()
	var old []*link
	for _, k := range l.open {
		if k.Streams() > 0 {
			k.used = now
		}
		if now-k.used > sessionIdle || now-k.born > linkAge {
			old = append(old, k)
		}
	}
	l.open = slices.DeleteFunc(l.open, func(k *link) bool { return slices.Contains(old, k) })
	l.mu.Unlock()
	for _, k := range old {
		k.Leave()
	}
	return len(old)
}

// close is called when the endpoint has left and nothing is in flight any more.
func (l *links) close() {
	l.mu.Lock()
	l.closed = true
	all := l.open
	l.open = nil
	l.mu.Unlock()
	for _, k := range all {
		k.Leave()
	}
}

// ended reports whether the connection has ended, though its reader may not
// have noticed yet.
func (k *link) ended() bool {
	k.peek.Lock()
	defer k.peek.Unlock()
	return k.tcp.Ended()
}

// link serves the sessions of another proxy.
func (in *inbound) link(ctx context.Context, over *mtls.Conn) {
	counters := in.edge(mesh.HTTP1)
	var l *mux.Link
	left := false
	l = mux.New(over, mux.Config{
		Serve:  func(s *mux.Stream) mux.Serve { return in.session(ctx, s, counters) },
		Growth: in.proxy.growth(over),
		Interrupted: func() error { // the tracker wants the connection to end
			in.track.expect(0, false) // takes the interruption back
			switch none := l.Streams() == 0; {
			case left && none:
				return errNoGoodbye
			case in.proxy.draining():
				l.Leave()
			case none:
				left = true
				l.Leave()
				in.track.expect(goodbyePatience, false)
			default:
				in.track.expect(keepIdle, true)
			}
			return nil
		},
	})
	in.track.expect(keepIdle, true)
	if err := l.Run(); !isReset(err) {
		in.proxy.log.Debug("link ended", "from", in.client.Addr, "error", err)
	}
}

// hop is a session of another proxy, whose requests go to the application.
type hop struct {
	*inbound
	ctx      context.Context // of the proxy's life
	counters *edge
	track    *tracked
	idle     *session
}

func (in *inbound) session(ctx context.Context, s *mux.Stream, counters *edge) (next mux.Serve) {
	h := &hop{inbound: in, ctx: ctx, counters: counters, track: in.proxy.conns.add(s)}
	return h.serve(s)
}

// serve forwards requests until the session ends, or pauses: what it returns goes on then.
func (h *hop) serve(s *mux.Stream) (next mux.Serve) {
	c := &httpConn{
		proxy: h.proxy, direction: mesh.Inbound, conn: s, hop: s, track: h.track,
		client: h.client,
	}
	route := &toApp{inbound: h.inbound, counters: h.counters, idle: h.idle}
	c.route = route
	asked := c.serve(h.ctx)
	h.idle = route.idle
	if asked {
		route.rest()
		h.proxy.parked.Add(1)
		h.track.slept()
		return h.resume
	}
	if h.idle != nil {
		h.idle.close()
	}
	h.proxy.gone(h.track)
	return nil
}

func (h *hop) resume(s *mux.Stream) (next mux.Serve) {
	h.track.woke()
	return h.serve(s)
}
