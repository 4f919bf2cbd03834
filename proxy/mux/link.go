// Package mux carries many byte streams side by side over one connection
// between two proxies (ALPN tulle-http1/2): what would be a connection of its own
// for each of them, with its half-closes and resets, but without its handshake,
// memory, packets and system calls. What streams send at about the same time
// leaves in one write.
//
//	frame = type (1 byte) length (3 bytes) stream (4 bytes) payload; big endian
//
//	dialling side                         accepting side
//	DATA of a new stream, 1, 2, 3… ---->  serves it
//	DATA… FIN | RESET              <--->  DATA… FIN | RESET
//	WINDOW                         <--->  WINDOW
//	LEAVE                          <--->  LEAVE
//
// A stream is over when both sides have sent FIN, or one RESET. (There is a RESET
// that says no more than that its sender has stopped reading.) Each side takes
// some bytes of a stream ahead (see window.go), and more as they are read: whoever
// reads slowly slows the stream's sender and nobody else. LEAVE asks the dialling side
// to open no more streams; once it has answered with LEAVE, the last stream
// closes the connection.
//
// Whatever else arrives is malformed and ends the connection.
package mux

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/tulle-mesh/tulle/proxy/tcp"
)

const (
	// MaxStreams is how many streams a link carries at a time.
	MaxStreams = 128

	enoughOut  = 64 << 10  // unsent bytes that are worth a write of their own
	maxOut     = 128 << 10 // and beyond which writers wait
	maxControl = 4 << 20   // unsent bytes, of answers to a peer that does not read them, beyond which it is given up
	// maxServing is more than MaxStreams because a stream that was reset is over
	// for the peer before it is for whoever serves it.
	maxServing = 2 * MaxStreams
	// closePatience is how long the dialling side may take to close a link after
	// the accepting side has.
	closePatience = 5 * time.Second
)

// Serve serves a stream that the peer has opened, in a goroutine of its own, and
// closes it. Or it returns what goes on with it, in another goroutine, once there is
// something to read, an end and a deadline included: until then the stream takes none.
type Serve func(*Stream) (next Serve)

// Config says which side of a link it is.
type Config struct {
	// Serve is called for each stream that the peer opens. nil: this side dials.
	Serve Serve
	// Left is called, by the reading goroutine, when no more streams can be
	// opened; it may be called more than once. May be nil.
	Left func()
	// Interrupted decides what to do about a read deadline that has passed: go
	// on reading if it returns nil, else end with the error. May be nil.
	Interrupted func() error
	// Growth is what the windows of all links may grow by; nil: nothing.
	Growth *Growth
}

// Link is one side of a connection that carries streams. Its methods are safe
// for concurrent use.
type Link struct {
	t      tcp.Transport
	config Config

	// Of the reading goroutine.
	buf     *tcp.Buffer
	r, w    int
	large   bool // much comes at once: read with a large buffer
	serving sync.WaitGroup
	growth  *Growth // of this link; constant

	mu      sync.Mutex         // guards what follows
	streams map[uint32]*Stream // that have an id and are not over
	last    uint32             // the last stream that something was sent on
	open    int                // streams that are not over
	served  int                // streams that Serve has not done with
	dead    error              // why the link has ended
	leaving bool               // LEAVE was sent
	left    bool               // LEAVE has come
	closing bool               // it was closed for writing, after the last stream
	out     *outBuffer         // frames to be sent; nil if there are none
	writing bool               // somebody sends, and will see what is appended
	soon    bool               // somebody is about to: see flush
	asking  int                // streams on which a question has no answer yet
	room    sync.Cond
}

// New returns a link over t, on which Run is to be called.
func New(t tcp.Transport, config Config) *Link {
	l := &Link{t: t, config: config, streams: map[uint32]*Stream{}, growth: NewGrowth(linkGrowth)}
	l.room.L = &l.mu
	return l
}

// Errors of streams. ErrRefused says that nobody has seen a byte of what was
// sent, or of what was sent behind the last answer; it is seen by the dialling
// side only.
var (
	ErrRefused = errors.New("mux: the peer takes no more on this stream")
	errFull    = errors.New("mux: it does not read what it asks for")
)

// Run reads until the link ends, and says why: io.EOF if the peer has closed it.
// Before it returns, every stream has been told, and Serve has returned for each.
func (l *Link) Run() error {
	err := l.read()
	l.mu.Lock()
	l.dead = err
	all := make([]*Stream, 0, len(l.streams))
	for id, s := range l.streams {
		all = append(all, s)
		delete(l.streams, id)
	}
	l.room.Broadcast()
	l.mu.Unlock()
	if l.config.Left != nil {
		l.config.Left()
	}
	lost := err
	if lost == io.EOF {
		lost = io.ErrUnexpectedEOF // of the link it was a goodbye; the streams were in the middle of something
	}
	for _, s := range all {
		s.lost(lost)
	}
	_ = l.t.Close()
	l.buf.Free()
	l.buf = nil
	l.serving.Wait()
	return err
}

func (l *Link) read() error {
	for {
		for l.w-l.r >= headerLen {
			h := parseHeader(l.buf.B[l.r:])
			if !h.fits() {
				return fmt.Errorf("mux: malformed frame %d of %d bytes", h.kind, h.length)
			}
			size := headerLen + h.length
			if l.w-l.r < size {
				break
			}
			payload := l.buf.B[l.r+headerLen : l.r+size]
			l.r += size
			if err := l.frame(h, payload); err != nil {
				return err
			}
		}
		l.flush(false)
		if err := l.fill(); err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) || l.config.Interrupted == nil || l.isClosing() {
				return err
			}
			if err := l.config.Interrupted(); err != nil {
				return err
			}
		}
	}
}

func (l *Link) isClosing() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closing
}

// fill reads once. While it waits for a frame's first byte there is no buffer.
func (l *Link) fill() error {
	if l.r == l.w {
		l.buf.Free()
		size := tcp.Small
		if l.large {
			size = tcp.Large
		}
		var err error
		l.r, l.w = 0, 0
		l.buf, l.w, err = l.t.Next(0, size)
		l.large = l.w > size/2
		return err
	}
	if len(l.buf.B)-l.r < headerLen+maxPayload {
		// The rest of the frame may not fit.
		larger := tcp.NewBuffer(tcp.Large)
		l.w = copy(larger.B, l.buf.B[l.r:l.w])
		l.r = 0
		l.buf.Free()
		l.buf = larger
	}
	n, err := l.t.Read(l.buf.B[l.w:])
	l.w += n
	if n > 0 {
		l.large = true
		return nil
	}
	return err
}

// frame handles one frame whose header fits.
func (l *Link) frame(h frameHeader, payload []byte) error {
	if h.kind == frameLeave {
		l.peerLeaves()
		return nil
	}
	l.mu.Lock()
	s := l.streams[h.id]
	switch {
	case s != nil && h.kind == frameData:
		l.turnLocked(s, false)
	case s == nil && h.id > l.last:
		if l.config.Serve == nil || l.left || h.kind != frameData || h.id != l.last+1 {
			l.mu.Unlock()
			return fmt.Errorf("mux: frame %d of a stream that was not opened", h.kind)
		}
		if s = l.acceptLocked(); s != nil {
			// Only once there is something to read: a link that is being left takes
			// a stream without for one that is idle.
			defer l.serve(s)
		}
	}
	l.mu.Unlock()
	if s == nil {
		return nil // it was closed here, of which the peer has not heard yet
	}
	return s.receive(h.kind, payload)
}

func (l *Link) serve(s *Stream) {
	l.serving.Add(1)
	go s.serve(l.config.Serve)
}

// acceptLocked takes the stream that the peer has opened, and returns nil if
// that was refused.
func (l *Link) acceptLocked() *Stream {
	l.last++
	if l.served >= maxServing {
		l.appendLocked(frameReset, l.last, reasonRefused)
		return nil
	}
	l.served++
	l.open++
	s := newStream(l)
	s.id = l.last
	l.streams[s.id] = s
	l.turnLocked(s, false)
	return s
}

// turnLocked notes whose turn it is on s, now that data was sent or received:
// the dialling side asks, the accepting side answers.
func (l *Link) turnLocked(s *Stream, sent bool) {
	asking := sent == (l.config.Serve == nil)
	switch {
	case asking && !s.asking:
		l.asking++
	case !asking && s.asking:
		l.asking--
	}
	s.asking = asking
}

// Open opens a stream, which the peer hears of with its first byte. It returns
// nil if there is no room for another one, or never will be again.
func (l *Link) Open() *Stream {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dead != nil || l.leaving || l.left || l.open >= MaxStreams || l.last > maxID-MaxStreams {
		return nil
	}
	l.open++
	return newStream(l)
}

// Alive reports whether streams that are open may go on being used.
func (l *Link) Alive() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dead == nil && !l.leaving && !l.left
}

// Streams returns how many there are.
func (l *Link) Streams() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.open
}

// Leave ends the link with its last stream; the peer is asked to open no more.
func (l *Link) Leave() {
	l.mu.Lock()
	l.leaveLocked()
	l.mu.Unlock()
	l.flush(false)
	l.closeIfDone()
}

func (l *Link) leaveLocked() {
	if !l.leaving {
		l.leaving = true
		l.appendLocked(frameLeave, 0)
	}
}

// peerLeaves answers LEAVE with LEAVE. From then on the dialling side opens no
// more streams, and the accepting side knows that none is on its way.
func (l *Link) peerLeaves() {
	l.mu.Lock()
	l.left = true
	l.leaveLocked()
	l.mu.Unlock()
	if l.config.Left != nil {
		l.config.Left()
	}
	l.flush(false)
	l.closeIfDone()
}

// closeIfDone closes a link that nothing more can happen on. The accepting side
// says so and lets the dialling side close it: closing while something comes in
// would take away from the peer what it has not read.
func (l *Link) closeIfDone() {
	l.mu.Lock()
	done := l.leaving && l.open == 0 && !l.writing && l.out == nil && !l.closing
	dials := l.config.Serve == nil
	if done = done && (dials || l.left); done {
		l.closing = true
	}
	l.mu.Unlock()
	switch {
	case done && dials:
		_ = l.t.Close()
	case done:
		_ = l.t.SetReadDeadline(time.Now().Add(closePatience))
		_ = l.t.SetWriteDeadline(time.Now().Add(closePatience)) // it may read nothing
		_ = l.t.CloseWrite()
	}
}

// finish tells the peer that s sends no more. A writer that has come as far as
// waiting for room must not send behind that.
func (l *Link) finish(s *Stream) {
	l.mu.Lock()
	s.finished = true
	l.room.Broadcast()
	if l.dead == nil && s.id != 0 && !s.over {
		l.appendLocked(frameFIN, s.id)
	}
	l.mu.Unlock()
	l.flush(false)
}

// forget drops a stream that was closed.
func (l *Link) forget(s *Stream) {
	l.mu.Lock()
	l.forgetLocked(s)
	leaving := l.leaving
	l.mu.Unlock()
	if leaving {
		l.closeIfDone()
	}
}

func (l *Link) forgetLocked(s *Stream) {
	if s.over {
		return
	}
	s.over = true
	l.room.Broadcast() // its writer may be waiting
	l.open--
	delete(l.streams, s.id)
	s.in.release(l.growth, l.config.Growth)
	if s.asking {
		l.asking--
	}
}

// reset drops a stream and tells the peer why, in one step: no data of it may
// come after that, and a link that is left must not end before it.
func (l *Link) reset(s *Stream, reason byte) {
	l.mu.Lock()
	if l.dead == nil && s.id != 0 && !s.over {
		l.appendLocked(frameReset, s.id, reason)
	}
	l.forgetLocked(s)
	leaving := l.leaving
	l.mu.Unlock()
	l.flush(false)
	if leaving {
		l.closeIfDone()
	}
}
