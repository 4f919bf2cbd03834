package mux

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/tulle-mesh/tulle/proxy/tcp"
)

// Room is how many bytes are free in front of what Next returns.
const Room = 4

// Stream is a byte stream to the other side of a link. One goroutine reads and
// one writes at a time; CloseWrite, Close and Reset may be called by anybody.
type Stream struct {
	link *Link

	// Guarded by the link's mu.
	id       uint32 // 0 until something is sent or received
	asking   bool   // see turnLocked
	over     bool   // the link has forgotten it
	finished bool   // FIN was sent, or would have been if the peer knew of it

	mu       sync.Mutex // guards what follows
	came     []chunk    // received and not read
	in       intake
	credit   int   // bytes that we may still send
	ended    error // why nothing more comes: io.EOF after the peer's FIN
	closed   error // why nothing more is sent
	late     bool  // the read deadline has passed
	deadline *time.Timer
	hungUp   func(reset bool)
	next     Serve // goes on once there is something to read; nil: somebody serves it
	readable sync.Cond
	writable sync.Cond
}

// chunk is a part of what was received: buf.B[r:w].
type chunk struct {
	buf  *tcp.Buffer
	r, w int
}

func newStream(l *Link) *Stream {
	s := &Stream{link: l, in: newIntake(), credit: window}
	s.readable.L, s.writable.L = &s.mu, &s.mu
	return s
}

// serve calls f, and what f returns when its time has come.
func (s *Stream) serve(f Serve) {
	for f != nil {
		if f = f(s); f != nil && s.rest(f) {
			return
		}
	}
	l := s.link
	l.mu.Lock()
	l.served--
	l.mu.Unlock()
	l.serving.Done()
}

// rest leaves the stream without a goroutine until there is something to read. It
// reports false if there is already.
func (s *Stream) rest(next Serve) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.late || len(s.came) > 0 || s.ended != nil {
		return false
	}
	s.next = next
	return true
}

// wakeLocked tells whoever waits for something to read.
func (s *Stream) wakeLocked() {
	s.readable.Broadcast()
	if next := s.next; next != nil {
		s.next = nil
		go s.serve(next)
	}
}

// Link returns what the stream runs over.
func (s *Stream) Link() *Link { return s.link }

// receive takes a frame. It is called by the link's reading goroutine.
func (s *Stream) receive(kind frameType, payload []byte) error {
	switch kind {
	case frameData:
		return s.receiveData(payload)
	case frameWindow:
		return s.receiveWindow(int(binary.BigEndian.Uint32(payload)))
	case frameFIN:
		s.end(io.EOF, nil)
	case frameReset:
		return s.receiveReset(payload[0])
	}
	return nil
}

func (s *Stream) receiveReset(reason byte) error {
	switch reason {
	case reasonReset:
		s.link.forget(s)
		s.mu.Lock()
		s.dropLocked()
		s.ended = nil // also if it was io.EOF
		s.mu.Unlock()
		s.lost(syscall.ECONNRESET)
	case reasonRefused:
		s.lost(ErrRefused) // behind what has come; first, so that a writer hears why
		s.link.forget(s)
	case reasonUnread:
		s.close(syscall.ECONNRESET, false)
	default:
		return errors.New("mux: unknown reason of a reset")
	}
	return nil
}

func (s *Stream) receiveData(p []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended == io.EOF {
		return errors.New("mux: data after the end of a stream")
	}
	kept, ok := s.in.receive(len(p), len(s.came) == 0)
	if !ok {
		return errors.New("mux: more data than was asked for")
	}
	if s.ended != nil {
		return nil
	}
	s.in.grow(kept, s.link.growth, s.link.config.Growth)
	for len(p) > 0 {
		if last := len(s.came) - 1; last >= 0 && s.came[last].w < len(s.came[last].buf.B) {
			c := &s.came[last]
			n := copy(c.buf.B[c.w:], p)
			c.w += n
			p = p[n:]
			continue
		}
		s.came = append(s.came, chunk{buf: tcp.NewBuffer(min(Room+len(p), tcp.Bulk)), r: Room, w: Room})
	}
	s.wakeLocked()
	return nil
}

func (s *Stream) receiveWindow(n int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n == 0 || n > maxWindow || s.credit+n > maxWindow {
		return errors.New("mux: window out of range")
	}
	s.credit += n
	s.writable.Signal()
	return nil
}

// lost notes that nothing more comes and nothing more can be sent. What has come
// can still be read.
func (s *Stream) lost(err error) { s.end(err, err) }

// end notes why nothing more comes, and, if closed is not nil, why nothing more
// is sent, unless that is known already.
func (s *Stream) end(ended, closed error) {
	s.mu.Lock()
	hungUp := s.hungUp
	if s.ended == nil {
		s.ended = ended
	}
	if s.closed == nil {
		s.closed = closed
	}
	s.wakeLocked()
	s.writable.Broadcast()
	s.mu.Unlock()
	if hungUp != nil {
		hungUp(ended != io.EOF)
	}
}

// dropLocked frees what was received and will not be read.
func (s *Stream) dropLocked() {
	for _, c := range s.came {
		c.buf.Free()
	}
	s.came = nil
}

// Watch calls f, from then on, when the peer sends no more or has reset the
// stream, which may be at once. f must not block. nil ends that.
func (s *Stream) Watch(f func(reset bool)) {
	s.mu.Lock()
	s.hungUp = f
	ended := s.ended
	s.mu.Unlock()
	if f != nil && ended != nil {
		f(ended != io.EOF)
	}
}

// Quiet reports whether the stream is open and has nothing to read.
func (s *Stream) Quiet() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ended == nil && s.closed == nil && len(s.came) == 0
}

// Refuse ends a stream that rests: the peer reads what was sent to it and then
// ErrRefused, which tells it that nobody has seen what it may be sending just now.
// Refuse reports false, and does nothing, if something has come already.
func (s *Stream) Refuse() bool {
	s.mu.Lock()
	if len(s.came) > 0 {
		s.mu.Unlock()
		return false
	}
	if s.ended == nil {
		s.ended = net.ErrClosed // what comes from now on is not kept
	}
	s.mu.Unlock()
	s.close(net.ErrClosed, true)
	s.link.reset(s, reasonRefused)
	return true
}

// waitLocked waits until there is something to read.
func (s *Stream) waitLocked() error {
	for {
		switch {
		case s.late:
			return os.ErrDeadlineExceeded
		case len(s.came) > 0:
			return nil
		case s.ended != nil:
			return s.ended
		}
		s.readable.Wait()
	}
}

// Next waits for bytes, and returns a buffer that holds them in B[r:w], with at
// least Room bytes in front. The caller frees it.
func (s *Stream) Next() (buf *tcp.Buffer, r, w int, err error) {
	s.mu.Lock()
	if err := s.waitLocked(); err != nil {
		s.mu.Unlock()
		return nil, 0, 0, err
	}
	c := s.came[0]
	s.came = slices.Delete(s.came, 0, 1)
	s.readLocked(c.w - c.r)
	return c.buf, c.r, c.w, nil
}

// Read reads the stream's bytes. After the peer's half-close it returns io.EOF,
// after a reset ECONNRESET or ErrRefused.
func (s *Stream) Read(p []byte) (int, error) {
	s.mu.Lock()
	if err := s.waitLocked(); err != nil || len(p) == 0 {
		s.mu.Unlock()
		return 0, err
	}
	c := &s.came[0]
	n := copy(p, c.buf.B[c.r:c.w])
	if c.r += n; c.r == c.w {
		c.buf.Free()
		s.came = slices.Delete(s.came, 0, 1)
	}
	s.readLocked(n)
	return n, nil
}

// readLocked lets the peer send more, in place of n bytes that were read. It
// unlocks.
func (s *Stream) readLocked(n int) {
	grant := 0
	if s.ended == nil {
		grant = s.in.read(n)
	}
	s.mu.Unlock()
	if grant > 0 {
		s.link.sendWindow(s, grant)
	}
}

// Write sends the whole of p.
func (s *Stream) Write(p []byte) (int, error) {
	sent := 0
	for sent < len(p) {
		n, err := s.reserve(len(p) - sent)
		if err == nil {
			err = s.link.sendData(s, p[sent:sent+n])
		}
		if err != nil {
			return sent, err
		}
		sent += n
	}
	return sent, nil
}

// reserve waits until some of n bytes may be sent, and returns how many.
func (s *Stream) reserve(n int) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.credit == 0 && s.closed == nil {
		s.writable.Wait()
	}
	if s.closed != nil {
		return 0, s.closed
	}
	n = min(n, s.credit, maxPayload)
	s.credit -= n
	return n, nil
}

// why returns why nothing can be sent on a stream that is over.
func (s *Stream) why() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed == ErrRefused { // nobody has seen it: it can be sent elsewhere
		return s.closed
	}
	return net.ErrClosed
}

// CloseWrite half-closes the stream: the peer reads io.EOF.
func (s *Stream) CloseWrite() error {
	if news, _ := s.close(net.ErrClosed, false); news {
		s.link.finish(s)
	}
	return nil
}

// Close ends the stream in peace: what was sent arrives, and the peer can send
// no more.
func (s *Stream) Close() error {
	news, reading := s.close(net.ErrClosed, true)
	if news {
		s.link.finish(s)
	}
	if reading {
		s.link.send(frameReset, s, reasonUnread)
	}
	s.link.forget(s)
	return nil
}

// Reset ends the stream so that the peer sees ECONNRESET.
func (s *Stream) Reset() {
	s.mu.Lock()
	over := s.ended != nil && s.ended != io.EOF
	s.mu.Unlock()
	s.close(net.ErrClosed, true)
	if !over {
		s.link.reset(s, reasonReset)
	}
}

// close notes that nothing more is sent and, if both, that nothing is read. It
// reports whether either is news for the peer.
func (s *Stream) close(err error, both bool) (sending, reading bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sending = s.closed == nil; sending {
		s.closed = err
	}
	if both {
		reading = s.ended == nil
		if s.ended == nil || s.ended == io.EOF {
			s.ended = err
		}
		s.hungUp = nil
		s.dropLocked()
		if s.deadline != nil {
			s.deadline.Stop()
		}
	}
	s.wakeLocked()
	s.writable.Broadcast()
	return sending, reading
}

// SetReadDeadline makes reading fail from t on with os.ErrDeadlineExceeded; the
// zero time takes that back.
func (s *Stream) SetReadDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.deadline != nil {
		s.deadline.Stop()
		s.deadline = nil
	}
	s.late = false
	switch wait := time.Until(t); {
	case t.IsZero():
	case wait <= 0:
		s.late = true
		s.wakeLocked()
	default:
		var timer *time.Timer
		timer = time.AfterFunc(wait, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.deadline == timer {
				s.late = true
				s.wakeLocked()
			}
		})
		s.deadline = timer
	}
	return nil
}
