package http2

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2/hpack"

	"github.com/tulle-mesh/tulle/proxy/tcp"
)

// Owner hears what concerns a connection as a whole. It is called by the
// reading goroutine.
type Owner interface {
	// Accept returns the stream for a request, with its handler set; nil refuses it.
	Accept() *Stream
	// Settled says that the peer's settings have come or changed.
	Settled()
	// Away says that the peer has sent GOAWAY or that the connection ends: it
	// takes no new streams. It may be called more than once.
	Away()
	// Interrupted decides what to do about a read deadline that has passed: go
	// on reading if it returns nil, else end with the error.
	Interrupted() error
}

// Config says what end of a connection it is.
type Config struct {
	Server  bool // the peer is a client
	Owner   Owner
	Streams uint32 // server: how many streams the peer may have open; 0: DefaultStreams
	Connect bool   // server: take extended CONNECT (RFC 8441)
	Resets  int    // server: streams that may end before their answer in ten seconds; 0: DefaultResets
	Kept    *Kept  // what all connections of the process keep; nil: this one counts alone
}

// Defaults.
const (
	DefaultStreams = 1 << 16
	DefaultResets  = 10_000
)

// Memory of a connection.
const (
	connWindow   = 4 << 20  // bytes that the peer may send ahead: what 50 ms of round trip take at 80 MB/s
	maxHeld      = 16 << 20 // bytes received and not yet sent on; beyond, the peer has to wait. See kept.go
	maxStreamWin = 1 << 20  // a stream's window grows up to this while its receiver keeps up
	maxGrowth    = 4 << 20  // of all windows of a connection together
	outRoom      = 128 << 10
	maxOut       = 8 << 20   // of frames other than DATA for a peer that does not read
	maxBlock     = 256 << 10 // of an encoded header list
	maxBlocks    = 128       // CONTINUATION frames of one
)

// Conn is one end of an HTTP/2 connection.
type Conn struct {
	t      tcp.Transport
	config Config

	// Of the reading goroutine.
	buf      *tcp.Buffer
	r, w     int
	large    bool // much comes at once: read with a large buffer
	preface  int  // bytes of the client's preface that are still to come
	settled  bool // the first SETTINGS have come
	blockID  uint32
	block    []byte // of a header list that came in more than one frame
	blocks   int
	blockEnd bool
	dec      *hpack.Decoder
	msg      Message
	touched  []*Conn
	noise    meter // frames that do nothing
	resets   meter // streams that ended before their answer
	connect  bool  // extended CONNECT may come

	mu       sync.Mutex // guards what follows, and the streams' fields that say so
	streams  map[uint32]*Stream
	ring     closedRing
	slots    int    // client: streams that are open or reserved
	lastPeer uint32 // the highest stream id the peer has opened
	nextID   uint32 // the next one of ours
	away     bool   // the peer takes no new streams, or we don't
	leaving  bool   // GOAWAY was sent: the connection closes with its last stream
	drained  bool   // the last one was sent, with the last stream id taken
	dead     error  // why the connection has ended
	closing  bool   // close once out has been sent
	enc      *hpack.Encoder
	encoded  bytes.Buffer

	out        []byte     // frames to be sent
	pooled     *outBuffer // what out is from; nil if it is not from the pool
	writing    bool       // somebody is at it, and will see what is appended
	broken     bool       // writing has failed
	ready      []*Stream
	sendWindow int64
	recvWindow int64
	unacked    int64 // received and not given back to the connection's window
	held       int64 // received and not sent on
	kept       int64 // of all streams' pending: what the peer has no room for
	grown      int64 // of all streams' windows, beyond what they began with
	windows    windows
	sentFrames int // DATA and HEADERS sent since noise was last paid for

	peerWindow  int64 // SETTINGS_INITIAL_WINDOW_SIZE
	peerStreams uint32
	peerConnect bool

	fed atomic.Int64 // of what the peer sent: kept by other connections
}

// New returns a connection over t, whose first frames leave with the first Flush.
func New(t tcp.Transport, config Config) *Conn {
	if config.Streams == 0 {
		config.Streams = DefaultStreams
	}
	if config.Resets == 0 {
		config.Resets = DefaultResets
	}
	if config.Kept == nil {
		config.Kept = &Kept{}
	}
	c := &Conn{
		t: t, config: config, streams: map[uint32]*Stream{}, sendWindow: initialWindow, recvWindow: connWindow,
		peerWindow: initialWindow, peerStreams: 100, nextID: 1, windows: newWindows(),
	}
	c.dec = hpack.NewDecoder(4096, c.msg.add)
	c.dec.SetMaxStringLength(maxBlock)
	c.enc = hpack.NewEncoder(&c.encoded)
	if config.Server {
		c.preface = len(Preface)
		list := []setting{{settingMaxStreams, config.Streams}, {settingMaxHeaderList, MaxHeaderList}}
		if config.Connect {
			list = append(list, setting{settingConnect, 1})
		}
		c.out = appendSettings(c.out, list...)
	} else {
		c.out = append(c.out, Preface...)
		c.out = appendSettings(c.out, setting{settingEnablePush, 0}, setting{settingMaxHeaderList, MaxHeaderList})
	}
	c.out = appendWindowUpdate(c.out, 0, connWindow-initialWindow)
	return c
}

// Run reads until the connection ends and says why; first is what was read
// already. Before it returns, every open stream has been told.
func (c *Conn) Run(first []byte) error {
	if len(first) > 0 {
		c.buf = tcp.NewBuffer(max(len(first), tcp.Small))
		c.w = copy(c.buf.B, first)
	}
	c.Flush()
	err := c.read()
	c.end(err)
	c.buf.Free()
	c.buf = nil
	return err
}

// read turns what comes into calls, batch by batch. A FIN ends the connection with
// all its streams: HTTP/2 has no half-closed connections, and servers (Go's, gRPC's,
// nginx) do not answer a client that sends no more, either.
func (c *Conn) read() error {
	for {
		for {
			more, err := c.next()
			if err != nil {
				return err
			}
			if !more {
				break
			}
		}
		c.flushTouched()
		if err := c.fill(); err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				return err
			}
			if err := c.config.Owner.Interrupted(); err != nil {
				return err
			}
		}
	}
}

// fill reads once. While it waits for a frame's first byte there is no buffer.
func (c *Conn) fill() error {
	if c.r == c.w {
		c.buf.Free()
		size := tcp.Small
		if c.large {
			size = tcp.Large
		}
		var err error
		c.r, c.w = 0, 0
		c.buf, c.w, err = c.t.Next(0, size)
		c.large = c.w > size/2
		return err
	}
	need := headerLen
	if c.w-c.r >= headerLen {
		need += parseHeader(c.buf.B[c.r:]).length
	}
	switch {
	case need > len(c.buf.B):
		larger := tcp.NewBuffer(tcp.Large)
		c.w = copy(larger.B, c.buf.B[c.r:c.w])
		c.r = 0
		c.buf.Free()
		c.buf = larger
	case c.r+need > len(c.buf.B) || c.w == len(c.buf.B):
		c.w = copy(c.buf.B, c.buf.B[c.r:c.w])
		c.r = 0
	}
	n, err := c.t.Read(c.buf.B[c.w:])
	c.w += n
	if n > 0 {
		c.large = true
		return nil
	}
	return err
}

// next handles one frame; false says that there is no whole one.
func (c *Conn) next() (bool, error) {
	if c.preface > 0 {
		n := min(c.preface, c.w-c.r)
		if n == 0 {
			return false, nil
		}
		if at := len(Preface) - c.preface; string(c.buf.B[c.r:c.r+n]) != Preface[at:at+n] {
			return false, &ConnError{ProtocolError, "no preface"}
		}
		c.r += n
		c.preface -= n
		return true, nil
	}
	if c.w-c.r < headerLen {
		return false, nil
	}
	h := parseHeader(c.buf.B[c.r:])
	if h.length > maxFrame {
		return false, &ConnError{FrameSizeError, "frame of more than 16384 bytes"}
	}
	if c.w-c.r < headerLen+h.length {
		return false, nil
	}
	payload := c.buf.B[c.r+headerLen : c.r+headerLen+h.length]
	c.r += headerLen + h.length
	err := c.frame(h, payload)
	if bad, ok := errors.AsType[*streamError](err); ok {
		return true, c.refuse(bad)
	}
	return err == nil, err
}

// refuse resets a stream for what the peer did on it.
func (c *Conn) refuse(bad *streamError) error {
	if c.config.Server && c.resets.add(1, c.config.Resets) {
		return &ConnError{EnhanceYourCalm, "too many streams end in errors"}
	}
	c.mu.Lock()
	s := c.streams[bad.id]
	if s != nil {
		c.removeLocked(s)
	}
	c.ring.add(bad.id, true)
	c.out = appendReset(c.out, bad.id, bad.code)
	c.mu.Unlock()
	c.Touch(c)
	if s != nil {
		s.handler.Reset(bad.code, bad)
	}
	return nil
}

// Touch makes sure that what was appended to other leaves at the end of the
// batch that c is reading. Only Handlers of c's streams may call it.
func (c *Conn) Touch(other *Conn) {
	if !slices.Contains(c.touched, other) {
		c.touched = append(c.touched, other)
	}
}

func (c *Conn) flushTouched() {
	for _, other := range c.touched {
		other.Flush()
	}
	clear(c.touched)
	c.touched = c.touched[:0]
}

// end tells the peer why, if it is the peer's fault, and all streams.
func (c *Conn) end(err error) {
	c.flushTouched()
	bad, ours := errors.AsType[*ConnError](err)
	c.mu.Lock()
	c.away = true
	if c.dead == nil {
		c.dead = err
	}
	if ours && !c.broken {
		c.out = appendGoAway(c.out, c.lastPeer, bad.Code, bad.Reason)
	}
	left := make([]*Stream, 0, len(c.streams))
	for _, s := range c.streams {
		left = append(left, s)
	}
	for _, s := range left {
		c.removeLocked(s)
	}
	c.mu.Unlock()
	c.config.Owner.Away()
	for _, s := range left {
		s.handler.Reset(InternalError, err)
	}
	c.flushTouched()
	if ours {
		_ = c.t.SetWriteDeadline(time.Now().Add(lingerTime)) // it may not read, either
		c.Flush()
		c.linger()
	}
	_ = c.t.Close()
}

const (
	lingerTime  = time.Second
	lingerBytes = 1 << 20
)

// linger lets the peer read why the connection ends: closing while it still
// sends would take that away from it.
func (c *Conn) linger() {
	_ = c.t.SetReadDeadline(time.Now().Add(lingerTime))
	_ = c.t.CloseWrite()
	buf := tcp.NewBuffer(tcp.Small)
	defer buf.Free()
	for total := 0; total < lingerBytes; {
		n, err := c.t.Read(buf.B)
		if err != nil {
			return
		}
		total += n
	}
}

// Transport returns the connection below.
func (c *Conn) Transport() tcp.Transport { return c.t }

// Peer returns what the peer's settings allow: streams at once, and extended CONNECT.
func (c *Conn) Peer() (streams uint32, connect bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.peerStreams, c.peerConnect
}

// Open returns how many streams are open or reserved, and whether more may follow.
func (c *Conn) Open() (n int, more bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return max(c.slots, len(c.streams)), !c.away
}

// Announce tells the peer a new limit of streams (0: as before), and extended
// CONNECT once the other side takes it. It reports whether the caller has to flush.
func (c *Conn) Announce(streams uint32, connect bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []setting
	if streams != 0 && streams != c.config.Streams {
		c.config.Streams = streams
		list = append(list, setting{settingMaxStreams, streams})
	}
	if connect && !c.config.Connect {
		c.config.Connect = true
		list = append(list, setting{settingConnect, 1})
	}
	if len(list) > 0 {
		c.out = appendSettings(c.out, list...)
		c.windows.sent()
	}
	return len(list) > 0
}

// Leave ends the connection gracefully (section 6.8): the peer is asked to open
// no more streams, and what is open goes on. With the last one it is closed.
func (c *Conn) Leave() {
	c.mu.Lock()
	if c.leaving {
		c.mu.Unlock()
		return
	}
	c.leaving = true
	switch {
	case !c.config.Server:
		c.away = true
		c.out = appendGoAway(c.out, 0, NoError, "")
	default:
		// What the peer has sent by now is still taken; after a round trip, no more.
		c.out = appendGoAway(c.out, maxStreamID, NoError, "")
		c.out = appendHeader(c.out, len(leavePing), framePing, 0, 0)
		c.out = append(c.out, leavePing...)
	}
	c.closeIfDoneLocked()
	c.mu.Unlock()
	c.Flush()
}

const leavePing = "leaving." // the payload of the PING that measures the round trip

// leftLocked goes on after that round trip.
func (c *Conn) leftLocked() {
	if c.leaving && c.config.Server && !c.drained {
		c.drained = true
		c.out = appendGoAway(c.out, c.lastPeer, NoError, "")
		c.closeIfDoneLocked()
	}
}

// closeIfDoneLocked closes a connection that nothing more can happen on.
func (c *Conn) closeIfDoneLocked() {
	if len(c.streams) == 0 && c.slots == 0 && (c.drained || c.away && (c.leaving || !c.config.Server)) {
		c.closing = true
	}
}

// Abort tears the connection down at once.
func (c *Conn) Abort() { c.t.Reset() }

// Closed reports whether err is no more than the end of a connection.
func Closed(err error) bool { return err == io.EOF || errors.Is(err, net.ErrClosed) }
