package mtls

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/tulle-mesh/tulle/mesh"
	"github.com/tulle-mesh/tulle/proxy/tcp"
)

// Conn is a connection between two proxies after the handshake. crypto/tls
// makes the handshake; the records behind it are sealed and opened here, which
// saves an allocation and a copy per read, lets many records leave in one
// write, and keeps no buffer for a connection that waits.
//
// One goroutine reads and one writes at a time; CloseWrite and Close may be
// called by anybody.
type Conn struct {
	*tcp.Conn         // the connection below; its deadlines apply
	Peer      mesh.ID // who the peer proved to be
	Protocol  string  // the ALPN name agreed on

	reading sync.Mutex // held while somebody does, and guards what follows

	in    half
	raw   *tcp.Buffer // ciphertext read and not opened, and plaintext not yet taken
	r, w  int         // ciphertext: raw.B[r:w]
	plain []byte      // of raw.B
	size  int         // how much to read at once: as much as keeps coming
	empty int         // records without data since the last one with data
	ended error

	mu               sync.Mutex // guards what follows
	out              half
	closed           bool        // close_notify was sent
	unsent           *tcp.Buffer // records that Offer had no room for: unsent.B[unsentR:unsentW]
	unsentR, unsentW int
}

// HandshakeTimeout bounds a handshake on either side.
const HandshakeTimeout = 10 * time.Second

// Client makes the handshake as the dialling side. It owns c: if the handshake
// fails, c has been closed.
func Client(c *tcp.Conn, conf *tls.Config) (*Conn, error) {
	var keys secrets
	return handshake(c, tls.Client(&recordReader{Conn: c}, keys.logged(conf)), &keys.server, &keys.client)
}

// Server makes the handshake as the accepting side, like Client.
func Server(c *tcp.Conn, conf *tls.Config) (*Conn, error) {
	var keys secrets
	return handshake(c, tls.Server(&recordReader{Conn: c}, keys.logged(conf)), &keys.client, &keys.server)
}

// handshake lets t make the handshake, which yields the secrets in and out. It
// runs on a stack of its own: it needs some 16 KiB, which the caller's goroutine
// would keep for the life of the connection.
func handshake(c *tcp.Conn, t *tls.Conn, in, out *[]byte) (*Conn, error) {
	done := make(chan error, 1)
	conn := &Conn{Conn: c}
	go func() {
		done <- conn.handshake(t, in, out)
	}()
	if err := <-done; err != nil {
		_ = c.Close()
		c.DropAhead()
		return nil, err
	}
	return conn, nil
}

func (c *Conn) handshake(t *tls.Conn, in, out *[]byte) error {
	_ = c.Conn.SetDeadline(time.Now().Add(HandshakeTimeout))
	if err := t.Handshake(); err != nil {
		return err
	}
	_ = c.Conn.SetDeadline(time.Time{})
	state := t.ConnectionState()
	c.Peer, c.Protocol = PeerID(state), state.NegotiatedProtocol
	return errors.Join(c.in.init(state.CipherSuite, *in), c.out.init(state.CipherSuite, *out))
}

// Record layer: RFC 8446 section 5.
const (
	headerLen       = 5
	maxPlaintext    = 1 << 14
	maxCiphertext   = maxPlaintext + 256
	overhead        = headerLen + 1 + 16 // header, content type, tag
	recordAlert     = 21
	recordHandshake = 22
	recordData      = 23
	alertClose      = 0 // close_notify
	alertWarning    = 1
	maxRecords      = 1 << 24 // under one key; AES-GCM allows 2^24.5 full ones (section 5.5)
	maxEmpty        = 16      // records without data in a row: a peer could keep us busy with them
	recordsPerWrite = 16
)

// keyUpdate is the message before the sender's next key; no answer is asked for
// (section 4.6.3).
const keyUpdate = "\x18\x00\x00\x01\x00"

// Errors of reading. An alert of the peer is a tls.AlertError.
var (
	errRecord    = errors.New("tls: malformed record")
	errEmpty     = errors.New("tls: too many records without data")
	errExhausted = errors.New("tls: too many records under one key")
)

// Read reads application data. While it waits there is no buffer. It returns
// io.EOF only after the peer's close_notify: an end without one may be an attack
// and is io.ErrUnexpectedEOF.
func (c *Conn) Read(p []byte) (int, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	return c.read(p)
}

func (c *Conn) read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	total := 0
	for {
		if len(c.plain) > 0 {
			n := copy(p[total:], c.plain)
			c.plain = c.plain[n:]
			total += n
		}
		// Go on as long as there is room for a record that is already here.
		if total > 0 && (total == len(p) || c.ended != nil || !c.whole() && !c.more()) {
			c.release()
			return total, nil //nolint:nilerr // the next call returns c.ended
		}
		if c.ended != nil {
			c.r = c.w // whatever else came
			c.release()
			return 0, c.ended
		}
		if err := c.fill(); err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) { // after that, it can go on
				c.ended = err
				continue
			}
			return 0, err
		}
		n, err := c.open(p[total:])
		total += n
		if n > 0 || len(c.plain) > 0 {
			c.empty = 0
		} else if c.empty++; c.empty > maxEmpty && err == nil {
			err = errEmpty
		}
		if err != nil {
			c.ended = err
		}
	}
}

// Next waits for application data, without a buffer for it while there is none,
// and returns at most size-room bytes behind room free ones. The caller frees
// the buffer.
func (c *Conn) Next(room, size int) (*tcp.Buffer, int, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	if len(c.plain) == 0 && c.ended == nil {
		if err := c.fill(); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return nil, 0, err
			}
			c.ended = err
		}
	}
	buf := tcp.NewBuffer(size)
	n, err := c.read(buf.B[room:size])
	if n == 0 {
		buf.Free()
		return nil, 0, err
	}
	return buf, n, nil
}

// more reads the rest of a record, and those behind it, if they have come
// meanwhile: what comes in bulk shall leave in few writes.
func (c *Conn) more() bool {
	if c.size != tcp.Huge || c.r == c.w {
		return false
	}
	c.room(headerLen + maxCiphertext)
	n, err := c.Conn.More(c.raw.B[c.w:])
	c.w += n
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		c.ended = unexpected(err)
	}
	return c.whole()
}

// unexpected is what an error of the connection below means here.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// whole reports whether a whole record is in raw.
func (c *Conn) whole() bool {
	if c.w-c.r < headerLen {
		return false
	}
	n, err := recordLen(c.raw.B[c.r:])
	return err == nil && c.w-c.r >= headerLen+n
}

func recordLen(header []byte) (int, error) {
	n := int(header[3])<<8 | int(header[4])
	if header[0] != recordData || header[1] != 3 || header[2] != 3 || n > maxCiphertext || n < overhead-headerLen {
		return 0, errRecord
	}
	return n, nil
}

// fill reads until raw holds a whole record.
func (c *Conn) fill() error {
	for {
		need := headerLen
		if c.w-c.r >= headerLen {
			n, err := recordLen(c.raw.B[c.r:])
			if err != nil {
				return err
			}
			if need += n; c.w-c.r >= need {
				return nil
			}
		}
		if err := c.readRaw(need); err != nil {
			return err
		}
	}
}

// readRaw reads once; need is the size of the record that c.r begins.
func (c *Conn) readRaw(need int) error {
	var n, room int
	var err error
	if c.r == c.w {
		c.release()
		c.r, c.w = 0, 0
		size := max(c.size, tcp.Small)
		if c.raw, n, err = c.Conn.Next(0, size); err == nil {
			room = min(size, len(c.raw.B))
		}
	} else {
		c.room(need)
		room = len(c.raw.B) - c.w
		n, err = c.Conn.Read(c.raw.B[c.w:])
	}
	if n > 0 {
		c.w += n
		c.adapt(n, room)
		return nil
	}
	return unexpected(err)
}

// adapt chooses how much to read next time, after n bytes have come where there
// was room for so many.
func (c *Conn) adapt(n, room int) {
	switch {
	case n == room && len(c.raw.B) >= tcp.Large:
		c.size = tcp.Huge
	case n > tcp.Large:
	case n == room || n >= tcp.Small:
		c.size = tcp.Large
	case c.w == n: // not just the rest of a record
		c.size = tcp.Small
	}
}

// room makes space for a record of need bytes at c.r and, if much comes, for
// those behind it.
func (c *Conn) room(need int) {
	buf := c.raw
	if want := max(need, c.size); len(buf.B) < want {
		if larger := tcp.NewBuffer(want); len(larger.B) > len(buf.B) {
			buf = larger
		} else {
			larger.Free() // there are many such already
		}
	}
	if buf == c.raw && len(buf.B)-c.r >= need && c.w <= len(buf.B)/2 {
		return
	}
	c.w = copy(buf.B, c.raw.B[c.r:c.w])
	c.r = 0
	if buf != c.raw {
		c.raw.Free()
		c.raw = buf
	}
}

// release gives the buffer back once nothing is in it.
func (c *Conn) release() {
	if c.raw != nil && c.r == c.w && len(c.plain) == 0 {
		c.raw.Free()
		c.raw, c.r, c.w, c.plain = nil, 0, 0, nil
	}
}

// open opens the record at c.r: into p if it fits, else in place.
func (c *Conn) open(p []byte) (int, error) {
	record := c.raw.B[c.r:]
	size, err := recordLen(record)
	if err != nil {
		return 0, err
	}
	record = record[:headerLen+size]
	c.r += len(record)
	body := record[headerLen:]
	dst := body[:0]
	direct := len(p) >= len(body) // tag included: the cipher may want to write that far
	if direct {
		dst = p[:0]
	}
	plain, err := c.in.open(dst, body, record[:headerLen])
	if err != nil {
		return 0, err
	}
	// Padding is zeros behind the content type (section 5.4).
	end := len(plain) - 1
	for end >= 0 && plain[end] == 0 {
		end--
	}
	if end < 0 || end > maxPlaintext {
		return 0, errRecord
	}
	kind := plain[end]
	plain = plain[:end]
	switch kind {
	case recordData:
		if direct {
			return len(plain), nil
		}
		c.plain = plain
		return 0, nil
	case recordAlert:
		if len(plain) == 2 && plain[1] == alertClose {
			return 0, io.EOF
		}
		if len(plain) == 2 {
			return 0, tls.AlertError(plain[1])
		}
	case recordHandshake: // no tickets are issued
		if string(plain) == keyUpdate {
			return 0, c.in.update()
		}
	}
	return 0, errRecord
}

// Write seals p into records and sends them.
func (c *Conn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return 0, net.ErrClosed
	}
	if err := c.finishLocked(); err != nil {
		return 0, err
	}
	sent := 0
	for sent < len(p) {
		n, err := c.writeLocked(recordData, p[sent:])
		if err != nil {
			return sent, err
		}
		sent += n
	}
	return sent, nil
}

// Offer seals and sends as much of p as there is room for, without waiting, and
// returns how much it took. sent reports whether all of p has left; else Write,
// CloseWrite or Close has to come next, and sends first what Offer could not.
func (c *Conn) Offer(p []byte) (taken int, sent bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return 0, false, net.ErrClosed
	}
	for taken < len(p) {
		buf, size, n, err := c.sealLocked(recordData, p[taken:])
		if err != nil {
			return taken, false, err
		}
		taken += n
		wrote, all, err := c.Conn.Offer(buf.B[:size])
		if err != nil {
			buf.Free()
			c.closed = true
			return taken, false, err
		}
		if !all {
			c.unsent, c.unsentR, c.unsentW = buf, wrote, size
			return taken, false, nil
		}
		buf.Free()
	}
	return taken, true, nil
}

// finishLocked sends what Offer could not.
func (c *Conn) finishLocked() error {
	if c.unsent == nil {
		return nil
	}
	_, err := c.Conn.Write(c.unsent.B[c.unsentR:c.unsentW])
	c.unsent.Free()
	c.unsent = nil
	if err != nil {
		c.closed = true
	}
	return err
}

// writeLocked sends as much of p as leaves in one write, as records of a kind,
// and returns how much that was.
func (c *Conn) writeLocked(kind byte, p []byte) (taken int, err error) {
	if err := c.finishLocked(); err != nil {
		return 0, err
	}
	buf, n, taken, err := c.sealLocked(kind, p)
	if err != nil {
		return 0, err
	}
	defer buf.Free()
	if _, err = c.Conn.Write(buf.B[:n]); err != nil {
		c.closed = true // half a record may be out: nothing can follow it
	}
	return taken, err
}

// closeNotifyLocked tells the peer that nothing more comes.
func (c *Conn) closeNotifyLocked() error {
	_, err := c.writeLocked(recordAlert, []byte{alertWarning, alertClose})
	return err
}

// sealLocked makes records of a kind out of as much of p as one write shall
// take, in a buffer that the caller frees: buf.B[:n].
func (c *Conn) sealLocked(kind byte, p []byte) (buf *tcp.Buffer, n, taken int, err error) {
	size := min(len(p), recordsPerWrite*maxPlaintext)
	records := (size + maxPlaintext - 1) / maxPlaintext
	buf = tcp.NewBuffer(size + records*overhead + len(keyUpdate) + overhead)
	defer func() {
		if err != nil {
			buf.Free()
		}
	}()
	b := buf.B[:0]
	if c.out.seq+uint64(records) >= maxRecords {
		if b, err = c.out.seal(b, recordHandshake, []byte(keyUpdate)); err == nil {
			err = c.out.update()
		}
		if err != nil {
			return buf, 0, 0, err
		}
	}
	for taken < size {
		one := p[taken:min(taken+maxPlaintext, size)]
		if len(b)+len(one)+overhead > len(buf.B) {
			break // it is smaller than was asked for
		}
		if b, err = c.out.seal(b, kind, one); err != nil {
			return buf, 0, 0, err
		}
		taken += len(one)
	}
	return buf, len(b), taken, nil
}

// CloseWrite tells the peer that nothing more comes: close_notify, then FIN.
func (c *Conn) CloseWrite() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	if err := c.closeNotifyLocked(); err != nil {
		return err
	}
	return c.Conn.CloseWrite()
}

const closePatience = time.Second

// Close closes the connection, with a close_notify unless a write is stuck.
func (c *Conn) Close() error {
	if c.mu.TryLock() {
		if !c.closed {
			c.closed = true
			_ = c.Conn.SetWriteDeadline(time.Now().Add(closePatience))
			_ = c.closeNotifyLocked()
		}
		c.mu.Unlock()
	}
	defer c.drop()
	return c.Conn.Close()
}

// Reset closes the connection so that the peer sees ECONNRESET.
func (c *Conn) Reset() {
	defer c.drop()
	c.Conn.Reset()
}

// drop forgets what was read and is not taken, unless somebody reads, who will.
func (c *Conn) drop() {
	if c.reading.TryLock() {
		c.ended = net.ErrClosed
		c.plain, c.r = nil, c.w
		c.release()
		c.reading.Unlock()
	}
}
