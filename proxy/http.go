package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tulle-mesh/tulle/mesh"
	"github.com/tulle-mesh/tulle/proxy/http1"
	"github.com/tulle-mesh/tulle/proxy/mux"
	"github.com/tulle-mesh/tulle/proxy/tcp"
)

// HTTP/1.1 is forwarded message by message: heads are checked by the strict
// codec and leave as they came, so an application sees the bytes that it would
// see without the mesh.
//
// Between two proxies (ALPN tulle-http1/2) the connection outlives what the two
// applications agree about theirs. One flag octet in front of each response
// head says what the bytes themselves don't:
const (
	flagRechunked byte = 1 << iota // the body ends where the application closed; on this hop it is chunked
	flagUnsent                     // made by the proxy: the application has seen nothing of the request
)

const (
	maxAttempts  = 3
	maxInterim   = 100              // 1xx answers to one request
	headPatience = 60 * time.Second // from the first byte of a request head to its last
	keepIdle     = time.Hour        // between requests
	lingerTime   = 5 * time.Second  // in which a client may read an answer that came before it had sent all
	lingerBytes  = 4 << 20
)

// router finds the sessions that requests are sent on, and hears how it went.
type router interface {
	// session returns a session for one attempt, of the given age. Its error
	// is what the last attempt failed with, if there is nowhere else to go.
	session(ctx context.Context, attempt int, age age) (*session, error)
	// answered says that the first byte of the answer came. done follows it.
	answered(s *session, firstByte time.Duration)
	// failed says that no answer will come, and whether that is the fault of
	// the other side. The session is closed by the caller.
	failed(s *session, blame bool)
	// done gives an answered session back. reusable says that another request
	// may follow; else the caller has closed it, or done does.
	done(s *session, reusable bool)
	// edge returns the counters of what s connects to; s is nil if there was none.
	edge(s *session) *edge
	// security is that of the way between the two workloads; s is nil if it was not gone.
	security(s *session) mesh.Security
	// server describes the other side in an exchange.
	server(s *session) mesh.Peer
}

// httpConn serves the requests of one client connection, one after the other.
type httpConn struct {
	proxy     *Proxy
	direction mesh.Direction
	conn      accepted    // what to read from and write to: tcp or hop
	tcp       *tcp.Conn   // nil: the client is a proxy
	hop       *mux.Stream // the client is a proxy: flag octets in front of response heads; else nil
	client    mesh.Peer
	route     router
	track     *tracked

	in     inbox
	req    http1.Request
	resp   http1.Response
	asked  http1.Asked
	body   http1.Body
	served int // answers sent

	gone atomic.Uint32 // hangup, once it has happened

	hang    sync.Mutex // guards what follows, and is held while a hang-up is passed on
	waiting *session   // set while the client's hang-up concerns this session
}

// serve runs until the connection ends, which it closes, or has been asked to
// park: it is the caller's then, who has to wait for the next request.
func (c *httpConn) serve(ctx context.Context) (asked bool) {
	c.track.parks(c)
	defer c.track.parks(nil)
	defer c.watch()()
	defer c.in.drop()
	for {
		n, err := c.readHead()
		if err == errParked {
			return true
		}
		if err != nil {
			c.refuse(err)
			return false
		}
		if !c.exchange(ctx, n) {
			return false
		}
		c.in.release()
	}
}

func (c *httpConn) sweep(now, enough time.Duration) bool { return c.track.askLocked(now, enough) }

// wake is told once the connection has been cut: its request is not sent again.
func (c *httpConn) wake() { c.hungUp(hangupReset) }

// readHead reads a whole request head. While the connection is idle there is
// no buffer and nothing but a coarse limit of time.
func (c *httpConn) readHead() (int, error) {
	if c.in.len() == 0 {
		c.track.expect(keepIdle, true)
		err := c.readFirst()
		if err != nil && isTimeout(err) && c.track.wasAsked() {
			return 0, errParked
		}
		if err != nil && c.hop != nil && isTimeout(err) && !c.hop.Refuse() {
			// It came before the other side could hear that we take no more: the last one.
			c.track.expect(headPatience, false)
			err = c.readFirst()
		}
		if err != nil {
			return 0, err
		}
	}
	c.track.expect(headPatience, false)
	for {
		n, err := c.req.Parse(c.in.bytes())
		if c.req.H2C && n > 0 {
			c.in.take(http1.WithoutH2C(c.in.bytes()[:n]))
			continue
		}
		if n > 0 || err != nil {
			c.track.expect(0, false)
			return n, err
		}
		if err := c.in.fill(c.conn); err != nil {
			return 0, err
		}
	}
}

// readFirst waits for the next request without holding a buffer.
func (c *httpConn) readFirst() error {
	c.req.Reset() // it still points into the buffer
	c.resp.Reset()
	return c.in.next(c.conn, tcp.Small)
}

// refuse ends the connection after what was not a request.
func (c *httpConn) refuse(err error) {
	var bad *http1.Error
	if !errors.As(err, &bad) {
		switch {
		case c.in.len() > 0 && errors.Is(err, io.ErrShortBuffer):
			bad = &http1.Error{Status: 431, Code: "head-too-large", Text: "the head is longer than 64 KiB"}
		case isTimeout(err) && c.in.len() > 0:
			bad = &http1.Error{Status: 408, Code: "slow-head", Text: "the request head did not come in time"}
		case isReset(err) && !errors.Is(err, io.EOF):
			c.conn.Reset()
			return
		default:
			_ = c.conn.Close()
			return
		}
	}
	x := c.begin()
	x.Outcome, x.Status = mesh.BadMessage, bad.Status
	c.answerError(bad.Status, bad.Code, bad.Text)
	c.finish(&x, nil)
}

func (c *httpConn) begin() mesh.Exchange {
	return mesh.Exchange{
		Direction: c.direction, Protocol: mesh.HTTP1, Client: c.client,
		Start: time.Now(),
	}
}

func (c *httpConn) finish(x *mesh.Exchange, s *session) {
	x.Duration = time.Since(x.Start)
	x.Server, x.Security = c.route.server(s), c.route.security(s)
	c.proxy.recorder.record(c.route.edge(s), x)
}

// exchange forwards the request whose head is the first n bytes of c.in, and
// its answer. It reports whether the connection is good for another request;
// if not, it has closed it.
func (c *httpConn) exchange(ctx context.Context, n int) bool {
	x := c.begin()
	if c.proxy.recorder.tapped() {
		x.Method, x.Host, x.Path = string(c.req.Method), string(c.req.Host), string(c.req.Path)
	}
	q := request{close: c.req.Close, idempotent: c.req.Idempotent, skip: n - len(c.req.Raw)}
	c.asked = c.req.Asked()
	c.body.Reset(c.req.Body, c.req.ContentLength)
	here, whole, err := c.body.Advance(c.in.bytes()[n:])
	if err != nil {
		c.refuse(err)
		return false
	}
	q.size, q.whole = n+here, whole

	s, err := c.send(ctx, &q, &x)
	if err != nil {
		return c.sendFailed(&x, s, &q, err)
	}
	return c.answer(&x, s, &q)
}

// request is what has to be kept of a request while it is under way.
type request struct {
	skip       int  // empty line in front of the head, not forwarded
	size       int  // bytes of head and body at the start of c.in
	whole      bool // these are all of it, so that it can be sent again
	close      bool
	idempotent bool
	upload     *upload // what sends the rest
}

// send sends the request to wherever the router says, and waits for the first
// byte of the answer. It tries elsewhere as long as no other application can
// have acted on the request.
func (c *httpConn) send(ctx context.Context, q *request, x *mesh.Exchange) (*session, error) {
	first := c.in.bytes()[q.skip:q.size]
	repeatable := q.idempotent && q.whole
	age := checked
	if repeatable {
		age = anyAge // if it has been closed meanwhile, the request is sent again
	}
	for attempt := 0; ; attempt++ {
		s, err := c.route.session(ctx, attempt, age)
		if err != nil {
			return nil, err
		}
		sent := time.Now()
		err = c.attempt(s, q, first)
		if err == nil && s.meshed && s.in.bytes()[0]&flagUnsent != 0 && q.whole && attempt+1 < maxAttempts {
			// The peer's application is not there and has seen nothing: elsewhere.
			c.stopWaiting()
			c.route.failed(s, true)
			s.close()
			continue
		}
		if err == nil {
			x.BytesSent = uint64(len(first))
			x.FirstByte = time.Since(x.Start)
			c.route.answered(s, time.Since(sent))
			return s, nil
		}
		c.stopWaiting()
		gone := c.gone.Load() != hangupNone || c.tcp != nil && c.tcp.Ended()
		c.route.failed(s, !gone && !s.reused)
		again := s.reused && repeatable || q.whole && errors.Is(err, mux.ErrRefused)
		if !again || attempt+1 == maxAttempts || gone {
			return s, err
		}
		s.close()
		age = fresh // whatever closed an idle session may have closed the others
	}
}

// attempt sends the request on s and waits for the first byte of the answer.
func (c *httpConn) attempt(s *session, q *request, first []byte) error {
	s.tracked(c.track)
	err := s.write(first)
	switch {
	case err != nil && q.whole:
		return err
	case !q.whole:
		// The answer may come before the body has been sent, and often says why.
		q.upload = c.startUpload(s, q.size, err)
	case c.in.len() == q.size:
		c.waitFor(s)
	}
	if s.in.len() > 0 {
		return errUnasked
	}
	return s.next()
}

var errUnasked = errors.New("the server sent something before it was asked")

// sendFailed answers a request that got no answer.
func (c *httpConn) sendFailed(x *mesh.Exchange, s *session, q *request, err error) bool {
	x.Outcome = outcomeOf(err)
	if s == nil { // no application has seen it
		status, code, text := unsentAnswer(err)
		if errors.Is(err, errNoEndpoint) {
			x.Outcome = mesh.NoEndpoint
		}
		x.Status = status
		c.in.take(q.size)
		keep := c.answerUnsent(q, status, code, text)
		c.finish(x, s)
		return keep
	}
	// The application ended the connection without an answer: so does the proxy.
	if x.Outcome != mesh.TLSFail {
		x.Outcome = mesh.Reset
	}
	q.upload.stop(c)
	s.abort()
	if errors.Is(err, io.EOF) {
		_ = c.conn.Close()
	} else {
		c.conn.Reset()
	}
	c.finish(x, s)
	return false
}

// unsentAnswer says to a person why the request could not be sent.
func unsentAnswer(err error) (status int, code, text string) {
	switch {
	case errors.Is(err, errNoEndpoint):
		return 503, "no-endpoint", "nobody is there to answer; try `tulle ps`"
	case errors.Is(err, errNoCredentials):
		return 503, "no-certificate", "the proxy has no certificate yet; try `tulle check`"
	}
	switch outcomeOf(err) {
	case mesh.TLSFail:
		return 502, "tls-failed", err.Error()
	case mesh.TimedOut:
		return 504, "connect-timeout", err.Error()
	}
	return 502, "connect-failed", err.Error()
}

// answerUnsent answers for an application that has seen nothing. A hop survives
// that, since the proxy behind it may go elsewhere.
func (c *httpConn) answerUnsent(q *request, status int, code, text string) bool {
	if c.hop != nil && q.whole {
		b := http1.AppendError([]byte{flagUnsent}, status, code, text)
		_, err := c.conn.Write(b)
		return err == nil
	}
	c.answerError(status, code, text)
	return false
}

// answerError sends an answer of the proxy's own and closes the connection.
func (c *httpConn) answerError(status int, code, text string) {
	b := make([]byte, 0, 512)
	if c.hop != nil {
		b = append(b, flagUnsent)
	}
	_, _ = c.conn.Write(http1.AppendError(b, status, code, text))
	c.linger()
}

// linger closes the connection in such a way that the client can read what was
// sent to it though it may still be sending: closing at once would reset it.
func (c *httpConn) linger() {
	_ = c.conn.CloseWrite()
	c.in.drop()
	_ = c.conn.SetReadDeadline(time.Now().Add(lingerTime))
	for total := 0; total < lingerBytes; {
		if err := c.in.fill(c.conn); err != nil {
			break
		}
		total += c.in.len()
		c.in.take(c.in.len())
	}
	_ = c.conn.Close()
}

func isTimeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}
