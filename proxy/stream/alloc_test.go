package stream

import (
	"io"
	"testing"
)

// loop is a transport that gives back what was written to it.
type loop struct {
	script
	buf []byte
}

func (l *loop) Write(p []byte) (int, error) { l.buf = append(l.buf, p...); return len(p), nil }

func (l *loop) Read(p []byte) (int, error) {
	n := copy(p, l.buf)
	l.buf = l.buf[:copy(l.buf, l.buf[n:])]
	return n, nil
}

// Bytes on their way cost no garbage.
func TestDataDoesNotAllocate(t *testing.T) {
	l := &loop{buf: make([]byte, 0, 1<<20)}
	c := New(l, func() {})
	c.inStream, c.opened = true, true
	out, in := make([]byte, HeaderLen+MaxPayload), make([]byte, MaxPayload)
	if n := testing.AllocsPerRun(100, func() {
		if err := c.WriteFramed(out); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, in); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations for a frame there and back, want none", n)
	}
}

func TestWriteFramedOfNothingSendsNothing(t *testing.T) {
	l := &loop{}
	c := New(l, func() {})
	if err := c.WriteFramed(make([]byte, HeaderLen)); err != nil || len(l.buf) != 0 {
		t.Errorf("%v, sent %q", err, l.buf)
	}
	if n, err := c.Write(nil); n != 0 || err != nil || len(l.buf) != 0 {
		t.Errorf("Write(nil) = %d, %v, sent %q", n, err, l.buf)
	}
}

func BenchmarkFrame(b *testing.B) {
	l := &loop{buf: make([]byte, 0, 1<<20)}
	c := New(l, func() {})
	c.inStream, c.opened = true, true
	out, in := make([]byte, HeaderLen+MaxPayload), make([]byte, MaxPayload)
	b.SetBytes(MaxPayload)
	for b.Loop() {
		_ = c.WriteFramed(out)
		_, _ = io.ReadFull(c, in)
	}
}
