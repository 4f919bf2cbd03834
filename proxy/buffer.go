package proxy

import (
	"io"

	"github.com/tulle-mesh/tulle/proxy/mux"
	"github.com/tulle-mesh/tulle/proxy/tcp"
)

// headroom is kept free in front of the first byte of an inbox, so that a flag
// octet can be put before a head without copying it.
const headroom = 1 // at most mux.Room

// inbox holds what was read from a connection and not yet consumed. It has no
// buffer while it is empty and its connection idle.
type inbox struct {
	buf  *tcp.Buffer
	r, w int
}

func (in *inbox) bytes() []byte {
	if in.buf == nil {
		return nil
	}
	return in.buf.B[in.r:in.w]
}

func (in *inbox) len() int { return in.w - in.r }

// take consumes n bytes. They stay where they are until the next read.
func (in *inbox) take(n int) { in.r += n }

// release gives the buffer back if nothing is left in it.
func (in *inbox) release() {
	if in.buf != nil && in.r == in.w {
		in.buf.Free()
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
		in.buf = tcp.NewBuffer(tcp.Small)
		in.r, in.w = headroom, headroom
	case in.r == in.w:
		in.r, in.w = headroom, headroom
	case in.w < len(in.buf.B):
	case in.r > headroom:
		in.w = headroom + copy(in.buf.B[headroom:], in.buf.B[in.r:in.w])
		in.r = headroom
	default:
		return in.grow(len(in.buf.B) + 1)
	}
	return true
}

// grow moves the bytes to a buffer of at least n bytes.
func (in *inbox) grow(n int) bool {
	if in.buf != nil && len(in.buf.B) >= n {
		return true
	}
	if n > tcp.Large {
		return false
	}
	larger := tcp.NewBuffer(n)
	if in.buf == nil {
		in.r, in.w = headroom, headroom
	} else {
		in.w = headroom + copy(larger.B[headroom:], in.bytes())
		in.r = headroom
		in.buf.Free()
	}
	in.buf = larger
	return true
}

// next waits for bytes where there are none, without a buffer, and reads at most
// size of them (a Stream has its own idea of that).
func (in *inbox) next(from io.Reader, size int) error {
	in.release()
	switch from := from.(type) {
	case *tcp.Conn:
		buf, n, err := from.Next(headroom, size)
		if err != nil {
			return err
		}
		*in = inbox{buf: buf, r: headroom, w: headroom + n}
		return nil
	case *mux.Stream:
		buf, r, w, err := from.Next()
		if err != nil {
			return err
		}
		*in = inbox{buf: buf, r: r, w: w}
		return nil
	}
	return in.fill(from)
}

// fill reads once, appending to what is there.
func (in *inbox) fill(from io.Reader) error {
	if s, ok := from.(*mux.Stream); ok && in.len() == 0 {
		return in.next(s, tcp.Small)
	}
	if !in.room() {
		return io.ErrShortBuffer
	}
	n, err := from.Read(in.buf.B[in.w:])
	in.w += n
	if n > 0 {
		return nil
	}
	return err
}
