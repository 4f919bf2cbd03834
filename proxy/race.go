package proxy

import (
	"errors"
	"io"
	"os"
	"sync/atomic"
	"time"

	"github.com/tulle-mesh/tulle/proxy/sniff"
)

// detect reads what the client sends until it is clear what it speaks; the
// bytes stay pending. It returns More if the client has been silent for
// patience (0: for ever), and Opaque if it ends without having said enough.
func (p *Proxy) detect(c *tcpConn, patience time.Duration) (sniff.Verdict, error) {
	if patience > 0 {
		_ = c.SetReadDeadline(time.Now().Add(patience))
		defer func() { _ = c.SetReadDeadline(time.Time{}) }()
	}
	for {
		if v := sniff.Client(c.pending.bytes()); v != sniff.More {
			return v, nil
		}
		switch err := c.pending.fill(c.TCPConn); {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded):
			return sniff.More, nil
		case err == io.EOF:
			return sniff.Opaque, nil
		default:
			return sniff.More, err
		}
	}
}

// race is between a client that is silent and a server that may speak first.
type race struct {
	proxy     *Proxy
	conn      *tcpConn
	out, back *flow
	ended     chan error
	winner    atomic.Int32
}

// Who won a race.
const (
	nobody int32 = iota
	server
	client
)

var errAbandoned = errors.New("the client wants another upstream")

// startRace begins to listen to far.
func (p *Proxy) startRace(conn *tcpConn, far end) *race {
	near := &connEnd{conn: conn, tcp: conn}
	r := &race{
		proxy: p, conn: conn, ended: make(chan error, 1),
		out: &flow{dst: far, src: near}, back: &flow{dst: near, src: far},
	}
	go r.listen()
	return r
}

// listen waits for the server's first bytes and, unless they come too late
// to matter, forwards them and all that follow.
func (r *race) listen() {
	buf, n, err := r.back.src.next(smallBuffer)
	if r.winner.CompareAndSwap(nobody, server) {
		_ = r.conn.SetReadDeadline(time.Unix(1, 0)) // wakes decide
	}
	if r.winner.Load() == abandoned {
		buf.free()
		r.ended <- errAbandoned
		return
	}
	r.ended <- r.back.runFrom(buf, n, err)
}

const abandoned int32 = client + 1

// decide returns More if the server spoke first, else what the client speaks.
// Unless abandon is called next, both flows go on.
func (r *race) decide() sniff.Verdict {
	v, err := r.proxy.detect(r.conn, 0)
	if r.winner.Load() == server || err == nil && v != sniff.HTTP1 && v != sniff.MeshTLS && !r.winner.CompareAndSwap(nobody, client) {
		_ = r.conn.SetReadDeadline(time.Time{})
		return sniff.More
	}
	if err != nil {
		return sniff.Opaque // the flows will see the error, too
	}
	if (v == sniff.HTTP1 || v == sniff.MeshTLS) && !r.winner.CompareAndSwap(nobody, abandoned) {
		_ = r.conn.SetReadDeadline(time.Time{})
		return sniff.More
	}
	return v
}

// abandon gives the upstream up in favour of another one, and waits until
// nothing reads from it any more.
func (r *race) abandon() {
	r.back.src.reset()
	<-r.ended
}
