// Package stream carries plain TCP connections, one after the other, over one
// mutual-TLS connection between two proxies (ALPN tulle-tcp/2).
//
// TLS over TCP has one way to end; an application's TCP connection has three:
// a half-close, a full close and a reset. So bytes travel in frames, and the
// end of a stream is a frame, too. A stream that ended on both sides leaves
// its connection ready for the next one: the handshake is paid once. Streams
// are never multiplexed, so none waits for another one's bytes, and the
// connection's own flow control is the stream's.
//
//	frame = type (1 byte) length (3 bytes, big endian) payload
//
//	dialling side                      accepting side
//	OPEN [client's address]  ------->  dials the application
//	DATA (at most one)       ------->
//	                         <-------  ACCEPT, or RESET(refused)
//	DATA… FIN | RESET        <------>  DATA… FIN | RESET
//
// A stream is over when each side has sent FIN or RESET. Until ACCEPT the
// dialling side sends one DATA frame at most, and keeps it: if the application
// refuses, the same bytes go to another endpoint.
//
// Whatever else arrives is malformed and ends the connection. That includes
// DATA without a byte: a peer could keep us busy with it at no cost.
package stream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

type frameType byte

const (
	frameOpen frameType = iota + 1
	frameAccept
	frameData
	frameFIN
	frameReset
)

// HeaderLen is the size of a frame header. Buffers passed to WriteFramed keep
// that much room in front of the payload.
const HeaderLen = 4

// MaxPayload bounds what one frame carries: header and payload fill exactly
// sixteen TLS records (RFC 8446 section 5.1), which leave in one write.
const MaxPayload = 256<<10 - HeaderLen

// FirstMaxPayload is what it was for proxies of the first version (ALPN tulle-tcp).
const FirstMaxPayload = 64<<10 - HeaderLen

const maxOpen = 64 // bytes of an OPEN payload

// Reasons of a RESET.
const (
	reasonReset   = 0 // the application or the client tore its connection down
	reasonRefused = 1 // the application is not there; it has seen no byte
)

// Errors that callers branch on. ErrReset reads as ECONNRESET does elsewhere.
var (
	ErrRefused = errors.New("stream: the application refused the connection")
	ErrReset   = fmt.Errorf("stream: %w", syscall.ECONNRESET)
)

// Transport is the connection below: a *tls.Conn, or a pipe in tests.
type Transport interface {
	io.ReadWriteCloser
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
}

// Conn runs streams over a Transport. One goroutine may read and another one
// write; Abort may be called by anybody at any time.
type Conn struct {
	t    Transport
	kill func() // tears the transport down so that the peer sees a reset
	most int    // payload of a frame that is sent

	head     [HeaderLen]byte // read side
	left     int             // payload bytes of the current DATA frame not yet read
	ended    error           // why reading ended: io.EOF, ErrReset, ErrRefused, or what broke the connection
	endRead  atomic.Bool     // peer has sent FIN or RESET
	opened   bool            // accepting side has answered
	inStream bool            // OPEN was sent or received

	writeMu   sync.Mutex
	scratch   [HeaderLen + maxOpen]byte
	endWrite  atomic.Bool // we have sent FIN or RESET
	sentReset atomic.Bool // it was RESET
	broken    atomic.Bool // the transport can't be used again
}

// New returns a Conn over t. kill must make the peer see a TCP reset; it may
// be called more than once and from any goroutine.
func New(t Transport, kill func()) *Conn { return &Conn{t: t, kill: kill, most: MaxPayload} }

// Limit makes frames carry at most n bytes. It comes before anything is sent.
func (c *Conn) Limit(n int) { c.most = n }

// Open begins a stream on behalf of client, with first as its first bytes
// (may be empty, at most MaxPayload). It does not wait for the answer: the
// first read or Accepted does. The caller keeps first until Accepted. buf is
// space to put the frames together in; it grows if it is too short.
func (c *Conn) Open(client netip.AddrPort, first []byte, buf []byte) error {
	c.reset()
	c.inStream = true
	// The zone of a link-local address means nothing on another machine.
	client = netip.AddrPortFrom(client.Addr().Unmap().WithZone(""), client.Port())
	if !client.IsValid() {
		return fmt.Errorf("stream: client address %v is not valid", client)
	}
	b := appendHeader(buf[:0], frameOpen, 0)
	b, err := client.AppendBinary(b)
	if err != nil {
		return err
	}
	b[HeaderLen-1] = byte(len(b) - HeaderLen)
	if len(first) > 0 {
		b = appendHeader(b, frameData, len(first))
		b = append(b, first...)
	}
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	return c.writeLocked(b)
}

// Accepted waits for the accepting side's answer: nil, ErrRefused, or what
// broke the connection. An answer that takes longer than answerPatience breaks it.
func (c *Conn) Accepted() error {
	if c.opened {
		return nil
	}
	if c.ended != nil {
		return c.ended
	}
	c.limitRead(time.Now().Add(answerPatience))
	kind, n, err := c.readHeader()
	if err != nil {
		return c.broke(err)
	}
	c.limitRead(time.Time{})
	switch {
	case kind == frameAccept && n == 0:
		c.opened = true
		return nil
	case kind == frameReset:
		return c.readReset(n)
	}
	return c.malformed("frame %d of %d bytes where an answer was due", kind, n)
}

// limitRead sets a deadline for reading, unless Abort or Finish has set its own.
func (c *Conn) limitRead(t time.Time) {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	if !c.endWrite.Load() {
		_ = c.t.SetReadDeadline(t)
	}
}

// Next waits for the next stream on the accepting side and returns the
// client's address. It returns io.EOF once the peer has closed the connection.
func (c *Conn) Next() (netip.AddrPort, error) {
	if c.broken.Load() {
		return netip.AddrPort{}, net.ErrClosed
	}
	c.reset()
	c.opened = true
	kind, n, err := c.readHeader()
	if err != nil {
		return netip.AddrPort{}, err
	}
	if kind != frameOpen || n > maxOpen {
		return netip.AddrPort{}, c.malformed("frame %d of %d bytes where a stream should open", kind, n)
	}
	var buf [maxOpen]byte
	if err := c.readPayload(buf[:n]); err != nil {
		return netip.AddrPort{}, err
	}
	client, err := parseClient(buf[:n])
	if err != nil {
		return netip.AddrPort{}, c.malformed("client address: %v", err)
	}
	c.inStream = true
	return client, nil
}

// parseClient takes the one spelling that Open writes: what the peer says ends
// up in records, where a zone would be text of its choice.
func parseClient(b []byte) (client netip.AddrPort, err error) {
	if err := client.UnmarshalBinary(b); err != nil {
		return netip.AddrPort{}, err
	}
	if a := client.Addr(); !a.IsValid() || a.Zone() != "" || a.Is4In6() {
		return netip.AddrPort{}, errors.New("not a plain one")
	}
	return client, nil
}

// Accept tells the dialling side that the application has taken the stream.
func (c *Conn) Accept() error { return c.writeFrame(frameAccept, nil) }

// Refuse tells the dialling side that the application could not be reached.
func (c *Conn) Refuse() error {
	c.endWrite.Store(true)
	return c.writeFrame(frameReset, []byte{reasonRefused})
}

func (c *Conn) reset() {
	c.left, c.ended, c.opened, c.inStream = 0, nil, false, false
	c.endRead.Store(false)
	c.endWrite.Store(false)
	c.sentReset.Store(false)
}

// Wait blocks until there is a byte to read, without needing a buffer for it.
func (c *Conn) Wait() error {
	if c.left > 0 {
		return nil
	}
	if c.ended != nil {
		return c.ended
	}
	if err := c.Accepted(); err != nil {
		return err
	}
	kind, n, err := c.readHeader()
	if err != nil {
		return err
	}
	switch {
	case kind == frameData && n > 0:
		c.left = n
		return nil
	case kind == frameFIN && n == 0:
		c.ended = io.EOF
		c.endRead.Store(true)
		return io.EOF
	case kind == frameReset:
		return c.readReset(n)
	}
	return c.malformed("frame %d of %d bytes inside a stream", kind, n)
}

// Left returns how many bytes of the present frame are to be read: after Wait,
// at least one.
func (c *Conn) Left() int { return c.left }

// Read reads the stream's bytes. After the peer's half-close it returns
// io.EOF, after a reset ErrReset or ErrRefused. After a deadline of the
// transport it may be called again.
func (c *Conn) Read(p []byte) (int, error) {
	if err := c.Wait(); err != nil {
		return 0, err
	}
	n, err := c.t.Read(p[:min(len(p), c.left)])
	c.left -= n
	if err != nil && n == 0 {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF // in the middle of a frame
		}
		return 0, c.fail(err)
	}
	return n, nil
}

// WriteFramed sends b[HeaderLen:] as the stream's bytes; it overwrites the
// first HeaderLen bytes of b, and so spares a copy. len(b) is at least
// HeaderLen, at most HeaderLen+MaxPayload.
func (c *Conn) WriteFramed(b []byte) error {
	if len(b) == HeaderLen {
		return nil
	}
	for len(b)-HeaderLen > c.most { // each header takes the place of what has been sent
		if err := c.writeData(b[:HeaderLen+c.most]); err != nil {
			return err
		}
		b = b[c.most:]
	}
	return c.writeData(b)
}

func (c *Conn) writeData(b []byte) error {
	appendHeader(b[:0], frameData, len(b)-HeaderLen)
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	if c.endWrite.Load() {
		return net.ErrClosed
	}
	return c.writeLocked(b)
}

// Write sends p, cut into frames.
func (c *Conn) Write(p []byte) (int, error) {
	buf := make([]byte, 0, HeaderLen+min(len(p), MaxPayload))
	for sent := 0; sent < len(p); {
		n := min(len(p)-sent, MaxPayload)
		if err := c.WriteFramed(append(buf[:HeaderLen], p[sent:sent+n]...)); err != nil {
			return sent, err
		}
		sent += n
	}
	return len(p), nil
}

// CloseWrite half-closes the stream: the peer's application reads EOF.
func (c *Conn) CloseWrite() error {
	if c.endWrite.Swap(true) {
		return nil
	}
	return c.writeFrame(frameFIN, nil)
}

// Abort resets the stream: the peer's application sees ECONNRESET. If a write
// is stuck, or the peer does not take the frame soon, the whole connection is
// torn down, which says the same. What the peer has still to say is waited for
// a little, so that the connection can be used again: reading goes on.
func (c *Conn) Abort() {
	if c.endWrite.Load() && c.endRead.Load() {
		return // over already; a reset would hit the next stream
	}
	if !c.writeMu.TryLock() {
		c.tearDown()
		return
	}
	defer c.writeMu.Unlock()
	if c.endWrite.Swap(true) {
		// Even after our FIN: the peer's reader learns that nobody reads any
		// more. After our RESET it knows; the deadline set then sees to the rest.
		if !c.sentReset.Load() {
			c.tearDown()
		}
		return
	}
	c.sentReset.Store(true)
	_ = c.t.SetWriteDeadline(time.Now().Add(abortPatience))
	err := c.writeLocked(append(appendHeader(c.scratch[:0], frameReset, 1), reasonReset))
	if err != nil {
		c.tearDown()
		return
	}
	_ = c.t.SetWriteDeadline(time.Time{})
	_ = c.t.SetReadDeadline(time.Now().Add(drainPatience))
}

const (
	abortPatience = 500 * time.Millisecond
	drainPatience = time.Second
	drainBytes    = 256 << 10
	// answerPatience is longer than the accepting side takes to find out that
	// its application is not there.
	answerPatience = 10 * time.Second
)

// Finish ends the stream on this side if that has not happened, waits a
// little for the peer to end it, too, and reports whether the connection is fit
// for another stream. If not, it has closed it. No other method may run meanwhile.
func (c *Conn) Finish(buf []byte) bool {
	if !c.endWrite.Load() {
		c.Abort()
	}
	if !c.endRead.Load() && !c.broken.Load() {
		c.drain(buf)
	}
	if c.broken.Load() || !c.endRead.Load() {
		c.tearDown()
		return false
	}
	_ = c.t.SetReadDeadline(time.Time{})
	return true
}

// drain discards what the peer sent before it heard of our reset.
func (c *Conn) drain(buf []byte) {
	_ = c.t.SetReadDeadline(time.Now().Add(drainPatience))
	for total := 0; total < drainBytes; {
		n, err := c.Read(buf)
		total += n
		if err != nil {
			break
		}
	}
}

// Broken reports whether the connection below can't be used any more.
func (c *Conn) Broken() bool { return c.broken.Load() }

// Close closes the connection below, with a TLS close_notify.
func (c *Conn) Close() error {
	c.broken.Store(true)
	return c.t.Close()
}

func (c *Conn) tearDown() {
	c.broken.Store(true)
	c.kill()
}

func (c *Conn) readHeader() (frameType, int, error) {
	if c.ended != nil {
		return 0, 0, c.ended
	}
	if n, err := io.ReadFull(c.t, c.head[:]); err != nil {
		if err == io.EOF && c.inStream {
			err = io.ErrUnexpectedEOF // between streams it is a goodbye; here the peer died
		}
		if n > 0 {
			return 0, 0, c.broke(err) // also by a deadline: the rest would be read as something else
		}
		return 0, 0, c.fail(err)
	}
	n := binary.BigEndian.Uint32(c.head[:]) & 0xffffff
	if n > MaxPayload {
		return 0, 0, c.malformed("frame of %d bytes", n)
	}
	return frameType(c.head[0]), int(n), nil
}

// readPayload reads the whole payload of a control frame.
func (c *Conn) readPayload(p []byte) error {
	if _, err := io.ReadFull(c.t, p); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return c.broke(err)
	}
	return nil
}

func (c *Conn) readReset(n int) error {
	if n != 1 {
		return c.malformed("reset of %d bytes", n)
	}
	if err := c.readPayload(c.head[:1]); err != nil {
		return err
	}
	c.ended = ErrReset
	if c.head[0] == reasonRefused && !c.opened {
		c.ended = ErrRefused // once it has accepted, the application may have seen bytes
	}
	c.endRead.Store(true)
	return c.ended
}

// fail notes that reading from the transport went wrong. A deadline passed is
// no such thing: whoever set it decides.
func (c *Conn) fail(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return c.broke(err)
}

// broke notes that nothing can be read from the transport any more, and why.
func (c *Conn) broke(err error) error {
	c.broken.Store(true)
	c.ended = err
	return err
}

func (c *Conn) malformed(format string, args ...any) error {
	return c.broke(fmt.Errorf("stream: malformed: "+format, args...))
}

func (c *Conn) writeFrame(kind frameType, payload []byte) error {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	return c.writeLocked(append(appendHeader(c.scratch[:0], kind, len(payload)), payload...))
}

func (c *Conn) writeLocked(b []byte) error {
	if _, err := c.t.Write(b); err != nil {
		c.broken.Store(true)
		return err
	}
	return nil
}

func appendHeader(b []byte, kind frameType, n int) []byte {
	return append(b, byte(kind), byte(n>>16), byte(n>>8), byte(n))
}
