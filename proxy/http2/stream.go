package http2

import (
	"errors"

	"golang.org/x/net/http2/hpack"
)

// Handler hears what happens on a stream, from the goroutine that reads its
// connection; Sent, from whoever sends.
type Handler interface {
	// Head is a request's or an answer's header list, interim ones included, or
	// the trailer. m is valid until Head returns.
	Head(m *Message, end bool)
	// Data is a piece of the body, valid until Data returns. The handler gives
	// it back with Credit once it has been sent on.
	Data(p []byte, end bool)
	// Sent says that n more bytes of what SendData kept have left.
	Sent(n int)
	// Reset ends the stream before its time, once: by the peer's RST_STREAM (err
	// is nil), by an error of the peer (which was told), or with the connection.
	Reset(code Code, err error)
	// Unread says that the stream was reset because its peer does not read while
	// too much is kept. It is called by whoever sends, like Sent.
	Unread()
}

// Stream is one end of a stream. Its zero value is ready for Accept or Start.
type Stream struct {
	conn    *Conn // constant from then on
	id      uint32
	handler Handler

	// Of the reading goroutine.
	head     bool  // the final head has come
	headOnly bool  // client: the request is HEAD
	length   int64 // of the body, still to come; -1: not declared

	// Guarded by conn.mu.
	open       bool // in conn.streams
	recvEnd    bool // the peer has ended its message
	sentEnd    bool // we have: everything has left
	endPending bool // we will, behind pending and trailer
	sendWindow int64
	recvWindow int64
	base       int64 // what recvWindow began with, or would have by the settings of now
	settings   int   // how many of ours that takes into account
	target     int64 // what recvWindow is topped up to
	unacked    int64 // sent on and not given back to recvWindow
	held       int64 // received and not sent on
	pending    []byte
	from       *Conn // whose peer has sent pending; nil: nobody's
	trailer    []hpack.HeaderField
	after      *Code // RST_STREAM behind all that is pending
	queued     bool  // in conn.ready
}

// SetHandler says who hears of the stream. It comes before Accept returns, or Start.
func (s *Stream) SetHandler(h Handler) { s.handler = h }

// Conn returns the connection; nil before Start.
func (s *Stream) Conn() *Conn { return s.conn }

func (s *Stream) init(c *Conn, id uint32) {
	h := s.handler
	*s = Stream{conn: c, id: id, handler: h, length: -1, open: true}
}

// ErrClosed is returned by Start on a connection that takes no new streams.
var ErrClosed = errors.New("http2: the connection takes no new streams")

// Reserve takes a place for a stream, if the peer's limit allows one more. Start
// or Release follows.
func (c *Conn) Reserve() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.away || c.slots >= int(min(c.peerStreams, maxStreamID)) || c.nextID > maxStreamID-2 {
		return false
	}
	c.slots++
	return true
}

// Release gives a place back that no stream was started in.
func (c *Conn) Release() {
	c.mu.Lock()
	c.slots--
	c.closeIfDoneLocked()
	closing := c.closing
	c.mu.Unlock()
	if closing {
		c.Flush()
	}
}

// Start opens s with a request in a place that was reserved. If it fails, the
// place has been given back.
func (c *Conn) Start(s *Stream, fields []hpack.HeaderField, headOnly, end bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.away {
		c.slots--
		c.closeIfDoneLocked()
		return ErrClosed
	}
	s.init(c, c.nextID)
	c.nextID += 2
	s.headOnly = headOnly
	c.openLocked(s)
	c.headLocked(s, fields, end)
	return nil
}

// SendHead sends a header list: a head, or a trailer, which waits until what is
// pending has left. The caller flushes.
func (s *Stream) SendHead(fields []hpack.HeaderField, end bool) {
	c := s.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case !s.open || s.sentEnd || s.endPending:
	case len(s.pending) > 0:
		s.trailer = append([]hpack.HeaderField(nil), fields...)
		s.endPending = end
	default:
		c.headLocked(s, fields, end)
	}
}

func (c *Conn) headLocked(s *Stream, fields []hpack.HeaderField, end bool) {
	c.roomLocked()
	c.encoded.Reset()
	for _, f := range fields {
		_ = c.enc.WriteField(f) // to memory
	}
	c.out = appendBlock(c.out, s.id, c.encoded.Bytes(), end)
	c.sentFrames++
	if len(c.out) > maxOut { // of heads that nobody reads
		c.t.Reset()
	}
	if c.encoded.Cap() > maxFrame {
		c.encoded = *newBuffer()
	}
	if end {
		s.endLocked()
	}
}

// endLocked notes that our message is complete.
func (s *Stream) endLocked() {
	s.sentEnd = true
	if s.recvEnd {
		s.conn.removeLocked(s)
	}
}

// SendData sends a piece of the body, which the peer of from has sent (nil: nobody
// has), and returns how much of it has left; what the windows don't allow yet is
// kept, and reported by Handler.Sent. On a stream that is closed everything has
// left. The caller flushes.
func (s *Stream) SendData(from *Conn, p []byte, end bool) int {
	c := s.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	if !s.open || s.sentEnd || s.endPending {
		return len(p)
	}
	n := 0
	if len(s.pending) == 0 && (len(c.out) < outRoom || len(p) == 0) {
		n = int(max(0, min(int64(len(p)), s.sendWindow, c.sendWindow)))
		c.dataLocked(s, p[:n], end && n == len(p))
		if n == len(p) {
			return n
		}
	}
	if len(s.pending) == 0 {
		s.from = from
	}
	s.pending = append(s.pending, p[n:]...)
	s.keepLocked(int64(len(p) - n))
	s.endPending = end
	s.readyLocked()
	return n
}

// dataLocked appends DATA. Payload without a byte is sent only to end a stream.
func (c *Conn) dataLocked(s *Stream, p []byte, end bool) {
	c.roomLocked()
	s.sendWindow -= int64(len(p))
	c.sendWindow -= int64(len(p))
	c.sentFrames++
	for len(p) > maxFrame {
		c.out = appendHeader(c.out, maxFrame, frameData, 0, s.id)
		c.out = append(c.out, p[:maxFrame]...)
		p = p[maxFrame:]
	}
	if len(p) == 0 && !end {
		return
	}
	flags := byte(0)
	if end {
		flags = flagEndStream
	}
	c.out = appendHeader(c.out, len(p), frameData, flags, s.id)
	c.out = append(c.out, p...)
	if end {
		s.endLocked()
	}
}

// SendReset ends the stream. NoError behind a whole message waits for what is
// pending. The caller flushes.
func (s *Stream) SendReset(code Code) {
	c := s.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	if !s.open {
		return
	}
	if code == NoError && s.endPending {
		s.after = &code
		return
	}
	c.out = appendReset(c.out, s.id, code)
	c.ring.add(s.id, true)
	c.removeLocked(s)
}

// Sending reports whether more is to be sent on the stream: it has neither been
// reset nor ended by us.
func (s *Stream) Sending() bool {
	s.conn.mu.Lock()
	defer s.conn.mu.Unlock()
	return s.open && !s.sentEnd && !s.endPending
}

// Credit opens the windows for n bytes that Data brought: they have been sent
// on. It reports whether the caller has to flush.
func (s *Stream) Credit(n int) bool {
	c := s.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	released := min(int64(n), s.held) // what a closed stream held is released already
	s.held -= released
	c.held -= released
	opened := s.creditLocked(int64(n))
	resized := c.resizeLocked()
	return c.creditLocked() || opened || resized
}

// giveBack is Credit for bytes that nobody gets.
func (s *Stream) giveBack(n int) {
	if s.Credit(n) {
		s.conn.Touch(s.conn)
	}
}

// creditLocked opens the stream's window in large steps, and wider while its
// receiver keeps up.
func (s *Stream) creditLocked(n int64) bool {
	s.unacked += n
	c := s.conn
	if !s.open || s.recvEnd || s.unacked < s.target/2 {
		return false
	}
	if more := s.target; s.held == 0 && 2*more <= maxStreamWin && c.grown+more <= maxGrowth && !c.config.Kept.scarce() {
		s.unacked += more // twice as much from now on
		s.target += more
		c.grown += more
	}
	s.recvWindow += s.unacked
	c.out = appendWindowUpdate(c.out, s.id, uint32(s.unacked))
	s.unacked = 0
	return true
}

// creditLocked opens the connection's window for what has been received, sent on
// or not: one slow stream must not keep the others waiting. Only when all
// together hold too much, the peer has to wait.
func (c *Conn) creditLocked() bool {
	if c.unacked < connWindow/4 || c.held > maxHeld {
		return false
	}
	c.recvWindow += c.unacked
	c.out = appendWindowUpdate(c.out, 0, uint32(c.unacked))
	c.unacked = 0
	return true
}

// removeLocked forgets a stream that is closed.
func (c *Conn) removeLocked(s *Stream) {
	if !s.open {
		return
	}
	s.open = false
	c.held -= s.held
	c.grown -= s.target - s.base
	s.keepLocked(-int64(len(s.pending)))
	c.creditLocked()
	s.held, s.pending, s.trailer, s.after = 0, nil, nil, nil
	delete(c.streams, s.id)
	if c.config.Server {
		c.ring.add(s.id, false)
	} else {
		c.slots--
	}
	c.closeIfDoneLocked()
}
