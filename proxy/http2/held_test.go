package http2

import (
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// What streams held that are reset is room for others, and the peer learns of it at
// once: on a connection whose window is shut it has nothing else to wait for.
func TestResetOpensTheWindow(t *testing.T) {
	p := newServer(t, &echo{hold: true, keep: true}, Config{})
	p.hello()
	window := int64(initialWindow)
	// await reads until the window has opened, or the answer to a ping has come.
	await := func() bool {
		if err := p.conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		for {
			f, err := p.ReadFrame()
			if err != nil {
				t.Fatal(err)
			}
			switch f := f.(type) {
			case *http2.WindowUpdateFrame:
				if f.StreamID == 0 {
					window += int64(f.Increment)
					return true
				}
			case *http2.PingFrame:
				return false
			}
		}
	}
	const upload = 3 * maxFrame
	flush := func() {
		t.Helper()
		if err := p.flush(); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	for {
		for ; window >= upload; window -= upload {
			p.headers(uint32(2*n+1), false, post...)
			for range 3 {
				_ = p.WriteData(uint32(2*n+1), false, make([]byte, maxFrame))
			}
			flush()
			n++
		}
		_ = p.WritePing(false, [8]byte{1})
		flush()
		opened := false
		for await() {
			opened = true
		}
		if !opened {
			break
		}
	}
	if n*upload < maxHeld {
		t.Fatalf("%d bytes are held, and the window is shut", n*upload)
	}
	for i := range n {
		_ = p.WriteRSTStream(uint32(2*i+1), http2.ErrCodeCancel)
	}
	flush()
	if !await() {
		t.Error("the window is still shut")
	}
}
