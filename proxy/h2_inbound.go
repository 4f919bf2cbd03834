package proxy

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tulle-mesh/tulle/mesh"
	"github.com/tulle-mesh/tulle/proxy/http2"
	"github.com/tulle-mesh/tulle/proxy/mtls"
	"github.com/tulle-mesh/tulle/proxy/tcp"
)

// h2App is the connection to the workload's application that belongs to one
// connection of a client: so the application's limits are the client's, and an
// end of the one is an end of the other.
type h2App struct {
	*inbound
	app      *http2.Conn
	client   atomic.Pointer[http2.Conn]
	counters *edge
	settled  chan struct{} // closed with the application's first settings
	once     sync.Once
}

// http2 forwards streams to the application; over is the client's TLS, or nil.
func (in *inbound) http2(ctx context.Context, over *mtls.Conn) {
	t, err := in.dialApp(ctx, in.vouched(in.client.Addr))
	if err != nil {
		in.noApp(err)
		return
	}
	in.track.far.Store(t)
	a := &h2App{inbound: in, counters: in.edge(mesh.HTTP2), settled: make(chan struct{})}
	_ = t.SetReadDeadline(time.Now().Add(mtls.HandshakeTimeout))
	a.app = http2.New(t, http2.Config{Owner: a, Kept: &in.proxy.kept})
	ended := make(chan error, 1)
	go func() { ended <- a.app.Run(nil) }()
	// The client's settings are the application's: they have to come first.
	select {
	case <-a.settled:
	case err := <-ended:
		in.noApp(err)
		return
	}
	c := in.h2Client(a, over)
	a.client.Store(c.conn)
	if _, more := a.app.Open(); !more { // it has gone meanwhile
		c.conn.Leave()
	}
	first := slices.Clone(in.in.bytes())
	in.in.drop()
	c.serve(first)
	a.app.Leave()
	if err := <-ended; err != nil && !http2.Closed(err) {
		in.proxy.log.Debug("HTTP/2 connection to the application", "error", err)
	}
}

// h2Client makes the client's end, with the limits of the application.
func (in *inbound) h2Client(a *h2App, over *mtls.Conn) *h2Conn {
	c := &h2Conn{proxy: in.proxy, direction: mesh.Inbound, track: in.track, client: in.client, router: a}
	streams, connect := a.app.Peer()
	conf := http2.Config{Server: true, Owner: c, Streams: h2Streams(streams), Connect: connect, Kept: &in.proxy.kept}
	var t tcp.Transport = in.conn
	if over != nil {
		t = over
		conf.Resets = hopFactor * http2.DefaultResets // of many clients
	}
	c.conn = http2.New(t, conf)
	return c
}

const hopFactor = 8

// h2Streams is how many streams a client may open where the application takes n.
func h2Streams(n uint32) uint32 { return max(1, min(n, http2.DefaultStreams)) }

// noApp ends a connection whose application is not there, or does not speak HTTP/2.
func (in *inbound) noApp(err error) {
	in.conn.Reset()
	x := in.begin(mesh.HTTP2)
	x.Outcome = outcomeOf(err)
	var bad *http2.ConnError
	if errors.As(err, &bad) {
		x.Outcome = mesh.BadMessage
	}
	in.ended(in.edge(mesh.HTTP2), &x)
}

// Accept implements http2.Owner: servers open no streams.
func (a *h2App) Accept() *http2.Stream { return nil }

// Settled implements http2.Owner.
func (a *h2App) Settled() {
	_ = a.app.Transport().SetReadDeadline(time.Time{})
	first := false
	a.once.Do(func() { first = true; close(a.settled) })
	if first {
		return
	}
	if c := a.client.Load(); c != nil {
		streams, connect := a.app.Peer()
		if c.Announce(h2Streams(streams), connect) {
			c.Flush()
		}
	}
}

// Away implements http2.Owner: the application takes no more streams, so the
// client shall open none.
func (a *h2App) Away() {
	if c := a.client.Load(); c != nil {
		c.Leave()
	}
}

// Interrupted implements http2.Owner.
func (a *h2App) Interrupted() error { return errNoSettings }

func (a *h2App) route(x *h2Exchange, by *http2.Conn) {
	if a.app.Reserve() {
		x.attach(a.app, by)
		return
	}
	x.refuseUnseen()
}

func (a *h2App) answered(*h2Exchange, time.Duration) {}
func (a *h2App) blamed(*h2Exchange)                  {}
func (a *h2App) left(*h2Exchange)                    {}
func (a *h2App) again(*h2Exchange) bool              { return false }
func (a *h2App) edge(*h2Exchange) *edge              { return a.counters }
func (a *h2App) security(*h2Exchange) mesh.Security  { return a.inbound.security }
func (a *h2App) server(*h2Exchange) mesh.Peer        { return a.inbound.server() }
func (a *h2App) away()                               {}
