package proxy

import (
	"errors"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/tulle-mesh/tulle/mesh"
	"github.com/tulle-mesh/tulle/proxy/http1"
	"github.com/tulle-mesh/tulle/proxy/tcp"
)

// answer forwards the answer to a request; its first bytes are in s.in.
func (c *httpConn) answer(x *mesh.Exchange, s *session, q *request) bool {
	flags, err := c.answerHead(x, s)
	if err != nil {
		return c.answerFailed(x, s, q, err)
	}
	if c.resp.Tunnel {
		c.stopWaiting()
		return c.tunnel(x, s, q)
	}
	err = c.answerBody(x, s, flags)
	c.stopWaiting()
	c.served++
	if err != nil {
		return c.answerFailed(x, s, q, err)
	}
	uploaded := q.upload.wait(c, c.resp.Close)
	if q.upload == nil {
		c.in.take(q.size)
	} else {
		x.BytesSent += q.upload.sent
	}
	x.Outcome = mesh.Success
	switch {
	case flags&flagUnsent != 0:
		x.Outcome = mesh.ConnectFail
	case x.Status >= 500:
		x.Outcome = mesh.AppFailure
	}
	// Bytes behind the answer are nobody's; a connection that has them is not used again.
	endsAtEOF := c.resp.Body == http1.EOF && flags&flagRechunked == 0
	reusable := uploaded && s.in.len() == 0 && !s.halfClosed.Load() && !endsAtEOF &&
		(s.meshed || !c.resp.Close && !q.close)
	c.finish(x, s)
	c.route.done(s, reusable)
	switch {
	case c.hop != nil && uploaded && !s.halfClosed.Load() && !c.proxy.draining():
		return true
	case uploaded && c.hop == nil && !c.resp.Close && !q.close && !c.proxy.draining() && flags&flagRechunked == 0:
		return true
	case !uploaded:
		c.linger()
	default:
		_ = c.conn.Close()
	}
	return false
}

// answerHead forwards heads up to and including the final one, of which it
// keeps the facts. The final head is not sent yet but left at the start of
// s.in, with its flag octet in front if the client is a hop.
func (c *httpConn) answerHead(x *mesh.Exchange, s *session) (flags byte, err error) {
	for range maxInterim {
		flags, n, err := c.parseHead(s)
		if err != nil {
			return 0, err
		}
		if !c.resp.Interim {
			x.Status = c.resp.Status
			return flags, nil
		}
		if err := c.writeFrom(s, n, 0); err != nil {
			return 0, err
		}
		x.BytesReceived += uint64(n)
	}
	return 0, errors.New("too many interim answers")
}

func (c *httpConn) parseHead(s *session) (flags byte, n int, err error) {
	skip := 0
	if s.meshed {
		skip = 1
	}
	for {
		if b := s.in.bytes(); len(b) > skip {
			n, err := c.resp.Parse(b[skip:], c.asked)
			if err != nil {
				return 0, 0, err
			}
			if n > 0 {
				if s.meshed {
					flags = b[0]
					s.in.take(1)
				}
				return flags, n, nil
			}
		}
		if err := s.in.fill(s.conn); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return 0, 0, err
		}
	}
}

// writeFrom sends the first n bytes of s.in to the client and consumes them. A
// head gets its flag octet by that, since there is always a byte before it.
func (c *httpConn) writeFrom(s *session, n int, flags byte) error {
	b := s.in.bytes()[:n]
	if c.hop != nil {
		b = s.in.buf.B[s.in.r-1 : s.in.r+n]
		b[0] = flags
	}
	_, err := c.conn.Write(b)
	s.in.take(n)
	if err != nil {
		return &clientError{err}
	}
	return nil
}

// clientError is a failure on the client's side.
type clientError struct{ error }

func (e *clientError) Unwrap() error { return e.error }

// answerBody sends the final head and the body.
func (c *httpConn) answerBody(x *mesh.Exchange, s *session, flags byte) error {
	head := len(c.resp.Raw)
	switch {
	case flags&flagRechunked != 0 && c.resp.Body == http1.EOF:
		if c.hop != nil {
			return errors.New("a hop behind a hop")
		}
		return c.dechunk(x, s, head)
	case c.resp.Body == http1.EOF && c.hop != nil:
		return c.rechunk(x, s, head)
	}
	var body http1.Body
	body.Reset(c.resp.Body, c.resp.ContentLength)
	n, done, err := body.Advance(s.in.bytes()[head:])
	if err != nil {
		return err
	}
	// Head and as much of the body as is there leave in one write.
	x.BytesReceived += uint64(head + n)
	if err := c.writeFrom(s, head+n, 0); err != nil {
		return err
	}
	for !done {
		if c.resp.Body != http1.None && s.in.len() == 0 {
			s.in.upgrade()
		}
		if err := s.in.fill(s.conn); err != nil {
			if err == io.EOF && body.EndsAtEOF() {
				return nil
			}
			return incomplete(err)
		}
		n, done, err = body.Advance(s.in.bytes())
		if err != nil {
			return err
		}
		if _, err := c.conn.Write(s.in.bytes()[:n]); err != nil {
			return &clientError{err}
		}
		x.BytesReceived += uint64(n)
		s.in.take(n)
	}
	return nil
}

// incomplete marks an end of the connection in the middle of a message.
func incomplete(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// rechunk sends, to a hop, a body that ends with the application's connection.
func (c *httpConn) rechunk(x *mesh.Exchange, s *session, head int) error {
	x.BytesReceived += uint64(head)
	n := s.in.len() - head
	if err := c.writeFrom(s, head, flagRechunked); err != nil {
		return err
	}
	out := tcp.NewBuffer(tcp.Large)
	defer out.Free()
	for {
		if n > 0 {
			if _, err := c.conn.Write(http1.AppendChunk(out.B[:0], s.in.bytes())); err != nil {
				return &clientError{err}
			}
			x.BytesReceived += uint64(n)
			s.in.take(n)
		}
		s.in.upgrade()
		if err := s.in.fill(s.conn); err != nil {
			if err != io.EOF {
				return err
			}
			if _, err := c.conn.Write([]byte(http1.LastChunk)); err != nil {
				return &clientError{err}
			}
			return nil
		}
		n = s.in.len()
	}
}

// dechunk sends, to the client, a body that came rechunked over a hop. The
// client's connection ends with it, as the application's did.
func (c *httpConn) dechunk(x *mesh.Exchange, s *session, head int) error {
	x.BytesReceived += uint64(head)
	if err := c.writeFrom(s, head, 0); err != nil {
		return err
	}
	var chunks http1.Dechunker
	chunks.Reset()
	for {
		for s.in.len() > 0 {
			payload, n, done, err := chunks.Next(s.in.bytes())
			if err != nil {
				return err
			}
			if len(payload) > 0 {
				if _, err := c.conn.Write(payload); err != nil {
					return &clientError{err}
				}
				x.BytesReceived += uint64(len(payload))
			}
			s.in.take(n)
			if done {
				return nil
			}
		}
		if err := s.in.fill(s.conn); err != nil {
			return incomplete(err)
		}
	}
}

// answerFailed ends both sides after an answer that did not arrive as a whole.
func (c *httpConn) answerFailed(x *mesh.Exchange, s *session, q *request, err error) bool {
	c.stopWaiting()
	var bad *http1.Error
	var client *clientError
	x.Outcome = mesh.Reset
	q.upload.stop(c)
	switch {
	case errors.As(err, &client): // the client went away: the application shall notice
		s.abort()
		c.conn.Reset()
	case errors.As(err, &bad) && x.BytesReceived == 0:
		x.Outcome, x.Status = mesh.BadMessage, bad.Status
		s.abort()
		c.answerError(bad.Status, bad.Code, bad.Text)
	case errors.Is(err, io.ErrUnexpectedEOF): // half an answer, then FIN: so it shall arrive
		s.close()
		_ = c.conn.Close()
	default:
		s.abort()
		c.conn.Reset()
	}
	c.route.done(s, false)
	c.finish(x, s)
	return false
}

// tunnel forwards the head that ended HTTP on this connection, then bytes both ways.
func (c *httpConn) tunnel(x *mesh.Exchange, s *session, q *request) bool {
	head := len(c.resp.Raw)
	c.in.take(q.size)
	err := c.writeFrom(s, head, 0)
	if err == nil {
		x.BytesReceived += uint64(head)
		sent, received, rerr := c.proxy.relay(c.track, c.end(), s.end())
		x.BytesSent += sent
		x.BytesReceived += received
		if rerr != nil {
			x.Outcome = mesh.Reset
		}
	}
	s.close()
	_ = c.conn.Close()
	c.route.done(s, false)
	c.finish(x, s)
	return false
}

// end returns the client's side of a tunnel.
func (c *httpConn) end() end {
	if c.hop != nil {
		return &muxEnd{Stream: c.hop, in: &c.in}
	}
	return &connEnd{conn: c.conn, tcp: c.tcp, in: &c.in}
}

// upload sends the part of a request's body that was not there with its head.
// Its goroutine owns c.in and c.body until it ends.
type upload struct {
	ended   chan struct{}
	stopped atomic.Bool
	sent    uint64
	whole   bool // the body was read to its end and sent
}

// startUpload goes on after the first sent bytes, unless sending these failed.
func (c *httpConn) startUpload(s *session, sent int, err error) *upload {
	c.in.take(sent)
	u := &upload{ended: make(chan struct{})}
	if err != nil {
		close(u.ended)
		return u
	}
	go u.run(c, s)
	return u
}

func (u *upload) run(c *httpConn, s *session) {
	defer close(u.ended)
	for {
		c.in.upgrade()
		if err := c.in.fill(c.conn); err != nil {
			if u.stopped.Load() {
				return
			}
			if err == io.EOF {
				s.halfClose() // as the client did, in the middle of its request
			} else if !isTimeout(err) {
				s.abort()
			}
			return
		}
		n, done, err := c.body.Advance(c.in.bytes())
		if err != nil {
			s.abort() // a malformed body: the application must not take it for a whole one
			return
		}
		if err := s.write(c.in.bytes()[:n]); err != nil {
			return // the answer may say why
		}
		u.sent += uint64(n)
		c.in.take(n)
		if done {
			u.whole = true
			return
		}
	}
}

// wait waits for the upload to end after the answer has been sent, and reports
// whether all of the request was. If the connection is going to close anyway,
// the client is not waited for.
func (u *upload) wait(c *httpConn, closing bool) bool {
	if u == nil {
		return true
	}
	if closing {
		select {
		case <-u.ended:
		default:
			u.stop(c)
		}
	}
	<-u.ended
	return u.whole
}

// stop makes the upload's goroutine end, and waits for that.
func (u *upload) stop(c *httpConn) {
	if u == nil {
		return
	}
	u.stopped.Store(true)
	_ = c.conn.SetReadDeadline(time.Unix(1, 0))
	<-u.ended
	_ = c.conn.SetReadDeadline(time.Time{})
}

// upgrade makes room for bulk data.
func (in *inbox) upgrade() {
	if in.len() == 0 && in.buf != nil && len(in.buf.B) < tcp.Bulk {
		in.release()
		in.buf = tcp.NewBuffer(tcp.Bulk)
		in.r, in.w = headroom, headroom
	}
}

var _ net.Conn = (*tcp.Conn)(nil)
