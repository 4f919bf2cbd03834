package stream

import (
	"errors"
	"io"
	"net/netip"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// What a peer may not say to the accepting side. Each is sent byte for byte,
// in chunks of every size: the outcome is the same.
func TestMalformedToTheAcceptingSide(t *testing.T) {
	open := openFrame(testClient)
	zoned, _ := netip.MustParseAddrPort("[fe80::1%\xff\xfe]:1").MarshalBinary()
	mapped, _ := netip.MustParseAddrPort("[::ffff:1.2.3.4]:1").MarshalBinary()
	for _, tt := range []struct{ name, in string }{
		{"unknown type", "\x00\x00\x00\x00"},
		{"unknown type, high", "\xff\x00\x00\x00"},
		{"HTTP", "GET / HTTP/1.1\r\n\r\n"},
		{"DATA before OPEN", frame(frameData, "x")},
		{"FIN before OPEN", frame(frameFIN, "")},
		{"RESET before OPEN", frame(frameReset, "\x00")},
		{"ACCEPT before OPEN", frame(frameAccept, "")},
		{"OPEN too long", frame(frameOpen, strings.Repeat("x", maxOpen+1))},
		{"OPEN without an address", frame(frameOpen, "")},
		{"OPEN with half an address", frame(frameOpen, "\x0a\x54\x00")},
		{"OPEN with a port only", frame(frameOpen, "\x00\x50")},
		{"OPEN with a zone", frame(frameOpen, string(zoned))},
		{"OPEN with a mapped address", frame(frameOpen, string(mapped))},
		{"OPEN twice", open + open},
		{"ACCEPT from the dialling side", open + frame(frameAccept, "")},
		{"DATA too long", open + string(appendHeader(nil, frameData, MaxPayload+1))},
		{"DATA of 16 MiB", open + string(appendHeader(nil, frameData, 0xffffff))},
		{"DATA without a byte", open + frame(frameData, "")},
		{"FIN with payload", open + frame(frameFIN, "x")},
		{"RESET without reason", open + frame(frameReset, "")},
		{"RESET with two", open + frame(frameReset, "\x00\x00")},
		{"unknown type inside", open + frame(99, "")},
	} {
		for _, chunk := range []int{0, 1, 2, 3, 5} {
			s := &script{in: []byte(tt.in), chunk: chunk}
			c := New(s, func() {})
			_, err := c.Next()
			if err == nil {
				_, err = c.Read(make([]byte, 10))
			}
			if err == nil || !strings.Contains(err.Error(), "malformed") {
				t.Errorf("%s by %d: %v, want it called malformed", tt.name, chunk, err)
			}
			if _, again := c.Read(make([]byte, 10)); again == nil || again == io.EOF {
				t.Errorf("%s: reading goes on with %v", tt.name, again)
			}
			if !c.Broken() || c.Finish(make([]byte, 10)) {
				t.Errorf("%s: the connection is used again", tt.name)
			}
		}
	}
}

func TestMalformedToTheDiallingSide(t *testing.T) {
	accept := frame(frameAccept, "")
	for _, tt := range []struct{ name, in string }{
		{"DATA before ACCEPT", frame(frameData, "x")},
		{"FIN before ACCEPT", frame(frameFIN, "")},
		{"OPEN for ACCEPT", openFrame(testClient)},
		{"ACCEPT with payload", frame(frameAccept, "x")},
		{"ACCEPT twice", accept + accept},
		{"OPEN inside", accept + openFrame(testClient)},
		{"DATA without a byte", accept + frame(frameData, "")},
		{"FIN with payload", accept + frame(frameFIN, "x")},
		{"RESET with two", frame(frameReset, "\x00\x00")},
		{"unknown type", frame(77, "")},
	} {
		c := New(&script{in: []byte(tt.in)}, func() {})
		if err := c.Open(testClient, nil, nil); err != nil {
			t.Fatal(err)
		}
		err := c.Accepted()
		if err == nil {
			_, err = c.Read(make([]byte, 10))
		}
		if err == nil || !strings.Contains(err.Error(), "malformed") {
			t.Errorf("%s: %v, want it called malformed", tt.name, err)
		}
		if c.Finish(make([]byte, 10)) {
			t.Errorf("%s: the connection is used again", tt.name)
		}
	}
}

// A connection that ends at every byte of a good conversation: no hang, no
// clean end unless there was one.
func TestTruncatedAtEveryByte(t *testing.T) {
	whole := openFrame(testClient) + frame(frameData, "hello") + frame(frameFIN, "")
	for n := range len(whole) {
		c := New(&script{in: []byte(whole[:n])}, func() {})
		_, err := c.Next()
		if err == nil {
			_, err = io.ReadAll(c)
		}
		switch {
		case n == 0 && err != io.EOF:
			t.Errorf("nothing: %v, want %v", err, io.EOF)
		case n > 0 && !errors.Is(err, io.ErrUnexpectedEOF):
			t.Errorf("first %d bytes: %v, want %v", n, err, io.ErrUnexpectedEOF)
		}
	}
}

// A deadline in the middle of a frame loses the place: nothing may be read
// from there as if it were the next frame.
func TestDeadlineInsideAFrame(t *testing.T) {
	for _, tt := range []struct {
		name, before, after string
		lost                bool
	}{
		{"between frames", "", frame(frameData, "x"), false},
		{"in a header", "\x03\x00", "\x00\x01x", true},
		{"in a payload", frame(frameData, "xy")[:HeaderLen+1], "y", false},
		{"in a reset", frame(frameReset, "\x00")[:HeaderLen], "\x00", true},
	} {
		s := &script{in: []byte(openFrame(testClient) + tt.before), mute: true}
		c := New(s, func() {})
		if _, err := c.Next(); err != nil {
			t.Fatal(err)
		}
		_ = s.SetReadDeadline(time.Now())
		var err error
		for err == nil {
			_, err = c.Read(make([]byte, 10))
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %v, want the deadline", tt.name, err)
		}
		s.in = []byte(tt.after)
		_, err = c.Read(make([]byte, 10))
		if (err != nil) != tt.lost || c.Broken() != tt.lost {
			t.Errorf("%s: then %v, broken %v; want it lost: %v", tt.name, err, c.Broken(), tt.lost)
		}
	}
}

// endless is a peer that sends the same frame for ever, at once if asked.
type endless struct {
	script
	frame string
	sent  int
	every time.Duration
	until time.Time
}

func (e *endless) SetReadDeadline(t time.Time) error { e.until = t; return nil }

func (e *endless) Read(p []byte) (int, error) {
	time.Sleep(e.every)
	if !e.until.IsZero() && !time.Now().Before(e.until) {
		return 0, os.ErrDeadlineExceeded
	}
	if len(e.in) == 0 {
		e.in = []byte(e.frame)
	}
	n := copy(p, e.in)
	e.in = e.in[n:]
	e.sent += n
	return n, nil
}

func TestFinishIsBounded(t *testing.T) {
	for _, tt := range []struct {
		name  string
		frame string
		every time.Duration
	}{
		{"peer sends as fast as it can", frame(frameData, strings.Repeat("x", MaxPayload)), 0},
		{"peer sends single bytes", frame(frameData, "x"), time.Millisecond},
		{"peer sends a byte now and then", frame(frameData, "x"), 300 * time.Millisecond},
		{"peer says nothing", "", time.Hour},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := &endless{frame: tt.frame, every: tt.every}
				e.in = []byte(openFrame(testClient))
				killed := false
				c := New(e, func() { killed = true })
				if tt.frame == "" {
					waiting, theirs := newQuietPair(t)
					defer theirs()
					c = waiting
				} else if _, err := c.Next(); err != nil {
					t.Fatal(err)
				}
				begin := time.Now()
				if c.Finish(make([]byte, MaxPayload)) {
					t.Error("fit for another stream though the peer has not ended this one")
				}
				if took := time.Since(begin); took > drainPatience+abortPatience {
					t.Errorf("took %v", took)
				}
				if e.sent > drainBytes+2*MaxPayload {
					t.Errorf("read %d bytes from a peer that would not stop", e.sent)
				}
				if tt.frame != "" && !killed {
					t.Error("the connection was not torn down")
				}
			})
		})
	}
}
