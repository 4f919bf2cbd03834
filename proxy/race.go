package proxy

import (
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tulle-mesh/tulle/proxy/mtls"
	"github.com/tulle-mesh/tulle/proxy/sniff"
	"github.com/tulle-mesh/tulle/proxy/tcp"
)

// slowStart is how long a client may take from its first byte until it is clear what
// it speaks: what begins like a request line may be something else, whose client
// waits for an answer by now. A ClientHello is worth a handshake's time.
const slowStart = time.Second

// detect reads what the client sends until it is clear what it speaks; the
// bytes stay in in. It returns More if the client has been silent for
// patience (0: for ever), and Opaque if it ends, or pauses, without having said enough.
func (p *Proxy) detect(c *tcp.Conn, in *inbox, patience time.Duration) (sniff.Verdict, error) {
	if patience > 0 {
		_ = c.SetReadDeadline(time.Now().Add(patience))
	}
	spoke := false
	defer func() {
		if patience > 0 || spoke {
			_ = c.SetReadDeadline(time.Time{})
		}
	}()
	for {
		if v := sniff.Client(in.bytes()); v != sniff.More {
			return v, nil
		}
		var err error
		switch {
		case in.len() == 0:
			err = in.next(c, tcp.Small)
		case !spoke:
			spoke = true
			limit := slowStart
			if sniff.Handshake(in.bytes()) {
				limit = mtls.HandshakeTimeout
			}
			_ = c.SetReadDeadline(time.Now().Add(limit))
			err = in.fill(c)
		default:
			err = in.fill(c)
		}
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded) && !spoke:
			return sniff.More, nil
		case errors.Is(err, os.ErrDeadlineExceeded), err == io.EOF:
			return sniff.Opaque, nil
		default:
			return sniff.More, err
		}
	}
}

// race is between a client that is silent and a server that may speak first.
type race struct {
	*relay
	conn  *tcp.Conn
	in    *inbox // of conn
	ended chan error
	spoke atomic.Bool // the server has sent something, rather than ended

	mu     sync.Mutex
	winner winner
}

// winner is who ended a race.
type winner int

const (
	nobody    winner = iota
	server           // it spoke first: opaque bytes
	client           // it spoke first: opaque bytes
	abandoned        // it spoke first: not opaque bytes
)

var errAbandoned = errors.New("the bytes are not opaque")

// startRace begins to listen to far.
func (p *Proxy) startRace(t *tracked, conn *tcp.Conn, in *inbox, far end) *race {
	near := &connEnd{conn: conn, tcp: conn, in: in}
	r := &race{relay: p.newRelay(t, near, far), conn: conn, in: in, ended: make(chan error, 1)}
	go r.listen()
	return r
}

// claim makes who the winner unless there is one, and returns the winner.
func (r *race) claim(who winner) winner {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.winner == nobody {
		r.winner = who
		if who == server {
			_ = r.conn.SetReadDeadline(time.Unix(1, 0)) // wakes decide
		}
	}
	return r.winner
}

// listen waits for the server's first bytes and, unless they come too late
// to matter, forwards them and all that follow.
func (r *race) listen() {
	buf, n, err := r.back.src.next(tcp.Small)
	r.spoke.Store(err == nil)
	if r.claim(server) == abandoned {
		buf.Free()
		r.ended <- errAbandoned
		return
	}
	if err == nil {
		err = r.back.deliver(buf, n)
	}
	if err != nil {
		r.back.ended.Store(true)
		r.ended <- r.back.finish(err)
		return
	}
	r.ended <- r.turn(r.back)
}

// decide returns More if the server spoke first, else what the client speaks.
// Unless that is HTTP1, HTTP2 or MeshTLS, both flows go on; else stop comes next.
func (r *race) decide() sniff.Verdict {
	v, err := r.proxy.detect(r.conn, r.in, 0)
	who := client
	if err == nil && (v == sniff.HTTP1 || v == sniff.HTTP2 || v == sniff.MeshTLS) {
		who = abandoned
	}
	switch {
	case r.claim(who) == server:
		_ = r.conn.SetReadDeadline(time.Time{})
		return sniff.More
	case err != nil:
		// The error has been read; the flows would take what follows for an end.
		r.out.src.reset()
		r.out.dst.reset()
		return sniff.Opaque
	}
	return v
}

// stop ends the listening in favour of another use of the upstream. It reports
// false if the server had something to say by then: that is lost.
func (r *race) stop() bool {
	far := r.back.src.under()
	_ = far.SetReadDeadline(time.Unix(1, 0))
	<-r.ended
	_ = far.SetReadDeadline(time.Time{})
	return !r.spoke.Load()
}
