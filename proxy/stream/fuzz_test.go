package stream

import (
	"io"
	"testing"
)

// FuzzConn plays a peer of arbitrary bytes to both roles: no panic, no hang, no
// more bytes out than came in, and whatever was not a clean end is none.
func FuzzConn(f *testing.F) {
	open, accept := openFrame(testClient), frame(frameAccept, "")
	for _, s := range []string{
		"", open, open + frame(frameData, "hello") + frame(frameFIN, ""), open + frame(frameReset, "\x00"),
		open + frame(frameFIN, "") + open + frame(frameData, "second") + frame(frameFIN, ""),
		open + frame(frameData, ""), open + open, frame(frameData, "x"), "\x03\xff\xff\xff",
		accept, accept + frame(frameData, "hello") + frame(frameFIN, ""), frame(frameReset, "\x01"),
		accept + frame(frameReset, "\x01") + accept + frame(frameFIN, ""), "GET / HTTP/1.1\r\n\r\n",
	} {
		f.Add([]byte(s), uint8(0))
		f.Add([]byte(s), uint8(1))
	}
	buf := make([]byte, MaxPayload)
	f.Fuzz(func(t *testing.T, in []byte, chunk uint8) {
		s := &script{in: in, chunk: int(chunk)}
		c := New(s, func() {})
		total, streams := 0, 0
		for {
			if _, err := c.Next(); err != nil {
				break
			}
			streams++
			_ = c.Accept()
			total += drainFuzzed(t, c, buf)
			if !c.Finish(buf) {
				break
			}
		}
		dialled := New(&script{in: in, chunk: int(chunk)}, func() {})
		dialledTotal := 0
		for dialled.Open(testClient, nil, buf) == nil {
			if dialled.Accepted() == nil {
				dialledTotal += drainFuzzed(t, dialled, buf)
			}
			if !dialled.Finish(buf) {
				break
			}
		}
		if total > len(in) || dialledTotal > len(in) || streams > len(in)/HeaderLen {
			t.Errorf("%d and %d bytes in %d streams out of %d", total, dialledTotal, streams, len(in))
		}
		// Control frames and nothing else: the answer to each byte is bounded.
		if s.wrote > 16*(len(in)+1) {
			t.Errorf("%d bytes answered to %d", s.wrote, len(in))
		}
	})
}

func drainFuzzed(t *testing.T, c *Conn, buf []byte) (total int) {
	for {
		n, err := c.Read(buf)
		total += n
		if err == nil && n == 0 {
			t.Fatal("read nothing without a reason")
		}
		if err != nil {
			if err == io.EOF && !c.endRead.Load() {
				t.Error("a clean end without FIN")
			}
			return total
		}
	}
}
