package proxy

import (
	"io"
	"sync"

	"github.com/tulle-mesh/tulle/proxy/http1"
	"github.com/tulle-mesh/tulle/proxy/stream"
)

// Sizes of pooled buffers: heads and small messages, one TLS record, and the
// largest head.
const (
	smallBuffer = 4 << 10
	bulkBuffer  = stream.HeaderLen + stream.MaxPayload
	largeBuffer = http1.MaxHead + 4<<10
)

// buffer is a slice from a pool. Whoever holds it calls free once.
type buffer struct {
	b    []byte
	pool *sync.Pool
}

var (
	smallBuffers = sync.Pool{New: func() any { return &buffer{b: make([]byte, smallBuffer)} }}
	bulkBuffers  = sync.Pool{New: func() any { return &buffer{b: make([]byte, bulkBuffer)} }}
	largeBuffers = sync.Pool{New: func() any { return &buffer{b: make([]byte, largeBuffer)} }}
)

// newBuffer returns a buffer of at least n bytes, n <= largeBuffer.
func newBuffer(n int) *buffer {
	pool := &largeBuffers
	switch {
	case n <= smallBuffer:
		pool = &smallBuffers
	case n <= bulkBuffer:
		pool = &bulkBuffers
	}
	buf := pool.Get().(*buffer)
	buf.pool = pool
	return buf
}

func (b *buffer) free() {
	if b != nil {
		b.pool.Put(b)
	}
}

// headroom is kept free in front of the first byte of an inbox, so that a flag
// octet can be put before a head without copying it.
const headroom = 1

// inbox holds what was read from a connection and not yet consumed. It has no
// buffer while it is empty and its connection idle.
type inbox struct {
	buf  *buffer
	r, w int
}

func (in *inbox) bytes() []byte {
	if in.buf == nil {
		return nil
	}
	return in.buf.b[in.r:in.w]
}

func (in *inbox) len() int { return in.w - in.r }

// take consumes n bytes. They stay where they are until the next read.
func (in *inbox) take(n int) { in.r += n }

// release gives the buffer back if nothing is left in it.
func (in *inbox) release() {
	if in.buf != nil && in.r == in.w {
		in.buf.free()
		in.buf = nil
		in.r, in.w = 0, 0
	}
}

// drop gives the buffer back with all that is in it.
func (in *inbox) drop() {
	in.r = in.w
	in.release()
}

// room makes space for at least one more byte behind those not consumed. It
// reports false if these fill the largest buffer.
func (in *inbox) room() bool {
	switch {
	case in.buf == nil:
		in.buf = newBuffer(smallBuffer)
		in.r, in.w = headroom, headroom
	case in.r == in.w:
		in.r, in.w = headroom, headroom
	case in.w < len(in.buf.b):
	case in.r > headroom:
		in.w = headroom + copy(in.buf.b[headroom:], in.buf.b[in.r:in.w])
		in.r = headroom
	default:
		return in.grow(len(in.buf.b) + 1)
	}
	return true
}

// grow moves the bytes to a buffer of at least n bytes.
func (in *inbox) grow(n int) bool {
	if in.buf != nil && len(in.buf.b) >= n {
		return true
	}
	if n > largeBuffer {
		return false
	}
	larger := newBuffer(n)
	if in.buf == nil {
		in.r, in.w = headroom, headroom
	} else {
		in.w = headroom + copy(larger.b[headroom:], in.bytes())
		in.r = headroom
		in.buf.free()
	}
	in.buf = larger
	return true
}

// fill reads once, appending to what is there.
func (in *inbox) fill(from io.Reader) error {
	if !in.room() {
		return io.ErrShortBuffer
	}
	n, err := from.Read(in.buf.b[in.w:])
	in.w += n
	if n > 0 {
		return nil
	}
	return err
}

// add appends bytes that were read elsewhere.
func (in *inbox) add(p []byte) {
	in.grow(headroom + in.len() + len(p))
	in.w += copy(in.buf.b[in.w:], p)
}
