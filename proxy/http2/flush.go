package http2

import (
	"bytes"
	"sync"
	"time"
)

// Buffers of what is to be sent. Most connections need none most of the time.
const (
	outSize = 16 << 10
	outMost = 256 << 10 // larger ones are left to the collector
)

// outBuffer is a pooled buffer; it stays the same object as b grows, so that
// giving it back allocates nothing.
type outBuffer struct{ b []byte }

var outBuffers = sync.Pool{New: func() any { return &outBuffer{make([]byte, 0, outSize)} }}

// roomLocked takes a buffer from the pool if there is none. What is appended
// without it, now and then a small frame, is left to the collector.
func (c *Conn) roomLocked() {
	if c.out == nil {
		c.pooled = outBuffers.Get().(*outBuffer)
		c.out = c.pooled.b
	}
}

// free takes the buffer back with b, which it has grown to.
func (o *outBuffer) free(b []byte) {
	if o != nil && cap(b) <= outMost {
		o.b = b[:0]
		outBuffers.Put(o)
	}
}

func newBuffer() *bytes.Buffer { return &bytes.Buffer{} }

// left is what has left of a stream's pending bytes.
type left struct {
	s *Stream
	n int
}

// Flush sends what has been appended. It does not wait for the peer: what the
// socket has no room for is sent by a goroutine that lives as long as it takes.
func (c *Conn) Flush() {
	c.mu.Lock()
	unread := c.shedLocked()
	if c.writing {
		if len(c.out) > maxOut { // resets, and window updates for one that sends without reading
			c.t.Reset()
		}
		c.mu.Unlock()
	} else {
		c.writing = true
		c.flushLocked()
	}
	for _, s := range unread {
		s.handler.Unread()
	}
}

// flushLocked writes until nothing is left or there is no more room. It is
// called with c.writing set by the caller, and unlocks.
func (c *Conn) flushLocked() {
	for {
		gone := c.pumpLocked()
		if len(c.out) == 0 || c.broken {
			c.writing = false
			c.pooled.free(c.out)
			c.out, c.pooled = nil, nil
			closing := c.closing && !c.broken
			c.broken = c.broken || closing
			c.mu.Unlock()
			report(gone)
			if closing {
				c.close()
			}
			return
		}
		out, pooled := c.out, c.pooled
		c.out, c.pooled = nil, nil
		c.mu.Unlock()
		report(gone)
		n, sent, err := c.t.Offer(out)
		if err == nil && !sent {
			go c.finish(out, pooled, n)
			return
		}
		pooled.free(out)
		c.mu.Lock()
		c.wroteLocked(err)
	}
}

// close ends a connection that nothing more can happen on. Its peer may be sending
// still (an ACK, a PING): a socket that is closed answers that with a reset, which
// can take from the peer what it has not read yet. So this one is closed when the
// peer has closed, too, or has had time to.
func (c *Conn) close() {
	_ = c.t.SetWriteDeadline(time.Now().Add(lingerTime))
	_ = c.t.CloseWrite()
	time.AfterFunc(lingerTime, func() { _ = c.t.Close() })
}

// finish waits for room, in a goroutine of its own.
func (c *Conn) finish(out []byte, pooled *outBuffer, n int) {
	_, err := c.t.Write(out[n:])
	pooled.free(out)
	c.mu.Lock()
	c.wroteLocked(err)
	c.flushLocked()
}

// wroteLocked ends a connection that can't be written to; its reader notices.
func (c *Conn) wroteLocked(err error) {
	if err != nil && !c.broken {
		c.broken = true
		c.t.Reset()
	}
}

// readyLocked queues s if some of what is pending may leave.
func (s *Stream) readyLocked() {
	if s.open && !s.queued && len(s.pending) > 0 && s.sendWindow > 0 {
		s.queued = true
		s.conn.ready = append(s.conn.ready, s)
	}
}

// pumpLocked lets pending bytes leave as far as windows and room allow, a frame
// of each stream in turn.
func (c *Conn) pumpLocked() (gone []left) {
	for len(c.ready) > 0 && c.sendWindow > 0 && len(c.out) < outRoom {
		s := c.ready[0]
		c.ready[0] = nil
		c.ready = c.ready[1:]
		s.queued = false
		if n := c.pumpStreamLocked(s); n > 0 {
			gone = append(gone, left{s, n})
		}
		s.readyLocked()
	}
	if len(c.ready) == 0 {
		c.ready = nil
	}
	return gone
}

func (c *Conn) pumpStreamLocked(s *Stream) int {
	if !s.open {
		return 0
	}
	n := int(max(0, min(int64(len(s.pending)), maxFrame, s.sendWindow, c.sendWindow)))
	p := s.pending[:n]
	s.pending = s.pending[n:]
	s.keepLocked(-int64(n))
	last := len(s.pending) == 0
	if last {
		s.pending = nil
	}
	trailer, after := s.trailer, s.after
	c.dataLocked(s, p, last && s.endPending && trailer == nil)
	if last && s.endPending && trailer != nil {
		c.headLocked(s, trailer, true)
	}
	if last && after != nil && s.open {
		c.out = appendReset(c.out, s.id, *after)
		c.removeLocked(s)
	}
	return n
}

func report(gone []left) {
	for _, l := range gone {
		l.s.handler.Sent(l.n)
	}
}
