package http2

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// large answers each piece of a request with 64 KiB, which nobody has sent.
type large struct{ echo }

func (l *large) Accept() *Stream {
	s := &largeStream{echoStream{owner: &l.echo}}
	s.SetHandler(s)
	return &s.Stream
}

type largeStream struct{ echoStream }

func (s *largeStream) Head(*Message, bool) {}

func (s *largeStream) Data(p []byte, _ bool) {
	c := s.Conn()
	s.SendData(nil, make([]byte, initialWindow+1), false)
	s.Credit(len(p))
	c.Touch(c)
}

// Streams that are open already bring more than a peer that does not read may have
// kept: those that most is kept of are reset, and it is told which.
func TestUnreadOpen(t *testing.T) {
	const streams = 2000
	kept := &Kept{}
	l := &large{}
	near, far := socketPair(t)
	l.conn = New(near, Config{Server: true, Owner: l, Kept: kept})
	done := make(chan struct{})
	go func() { defer close(done); _ = l.conn.Run(nil) }()
	t.Cleanup(func() { far.Close(); <-done })
	p := newPeer(t, far)
	_ = far.SetDeadline(time.Now().Add(time.Minute))
	p.hello(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	for i := range uint32(streams) {
		p.headers(2*i+1, false, post...)
	}
	most := int64(0)
	for i := range uint32(streams) {
		_ = p.WriteData(2*i+1, false, []byte("?"))
		if i%100 == 99 {
			_ = p.WritePing(false, [8]byte{1})
			if err := p.flush(); err != nil {
				t.Fatal(err)
			}
			for pong := false; !pong; {
				f, err := p.ReadFrame()
				if err != nil {
					t.Fatal(err)
				}
				switch f := f.(type) {
				case *http2.RSTStreamFrame:
					if f.ErrCode != http2.ErrCodeEnhanceYourCalm {
						t.Fatal(f)
					}
				case *http2.PingFrame:
					pong = true
				}
			}
			most = max(most, kept.Bytes())
		}
	}
	// A batch of frames comes in before it is looked at.
	if most > maxKept+100*(initialWindow+1) || most < maxKept/2 {
		t.Errorf("%d bytes were kept", most)
	}
	far.Close()
	<-done
	unread := 0
	for _, what := range l.heard {
		if strings.HasPrefix(what, "unread") {
			unread++
		}
	}
	if least := (streams*(initialWindow+1) - maxKept) / (initialWindow + 1); unread < least {
		t.Errorf("%d streams were reset, should be at least %d", unread, least)
	}
	if n := kept.Bytes(); n != 0 {
		t.Errorf("%d bytes are kept of a connection that has ended", n)
	}
}

// Where much waits, windows shrink to what the number of streams allows, and open
// again; a window that has shrunk holds from the peer's ACK on.
func TestWindowsShrink(t *testing.T) {
	e := &echo{hold: true, keep: true}
	p := newServer(t, e, Config{})
	p.hello()
	_ = p.WriteSettingsAck()
	window := uint32(0)
	settle := func() {
		t.Helper()
		p.settle(func(f http2.Frame) {
			if f, ok := f.(*http2.SettingsFrame); ok {
				if v, ok := f.Value(http2.SettingInitialWindowSize); ok {
					window = v
				}
			}
		})
	}
	const streams = 100
	for i := range uint32(streams) {
		p.headers(2*i+1, false, post...)
		for range 3 {
			_ = p.WriteData(2*i+1, false, make([]byte, maxFrame))
		}
		settle()
	}
	if window == 0 || window > plenty/streams*2 || window < minWindow {
		t.Fatalf("a window is %d bytes", window)
	}
	_ = p.WriteSettingsAck()
	settle()
	_ = p.WriteData(1, true, nil)          // may come whatever is left of the window (RFC 9113 section 6.9)
	p.headers(2*streams+1, false, post...) // its window is what was acknowledged
	for left := window; left > 0; {
		n := min(left, maxFrame)
		_ = p.WriteData(2*streams+1, false, make([]byte, n))
		left -= n
	}
	if got, want := p.probe(), ""; got != want {
		t.Fatalf("%q", got)
	}
	_ = p.WriteData(2*streams+1, false, []byte("x"))
	if got, want := p.probe(), "reset 201 FLOW_CONTROL_ERROR"; got != want {
		t.Fatalf("%q, should be %q", got, want)
	}
	for i := range uint32(streams) {
		_ = p.WriteRSTStream(2*i+1, http2.ErrCodeCancel)
	}
	p.headers(2*streams+3, false, post...)
	_ = p.WriteData(2*streams+3, false, []byte("x"))
	settle()
	if window != initialWindow {
		t.Errorf("a window is still %d bytes", window)
	}
}

// partly gives room back on its first stream only.
type partly struct{ echo }

func (o *partly) Accept() *Stream {
	s := &partlyStream{echoStream{owner: &o.echo}}
	s.SetHandler(s)
	return &s.Stream
}

type partlyStream struct{ echoStream }

func (s *partlyStream) Data(p []byte, _ bool) {
	if s.id == 1 && s.Credit(len(p)) {
		s.Conn().Touch(s.Conn())
	}
}

// A stream whose bytes were sent on, but too few to open its window for, can go on
// when its window shrinks to less than that.
func TestShrinkStalls(t *testing.T) {
	o := &partly{echo{hold: true}}
	near, far := socketPair(t)
	o.conn = New(near, Config{Server: true, Owner: o})
	done := make(chan struct{})
	go func() { defer close(done); _ = o.conn.Run(nil) }()
	t.Cleanup(func() { far.Close(); <-done })
	p := newPeer(t, far)
	p.hello()
	_ = p.WriteSettingsAck()
	p.headers(1, false, post...)
	window := int64(initialWindow)
	for range 3 {
		_ = p.WriteData(1, false, make([]byte, 10_000))
		window -= 10_000
	}
	shrunk := false
	settle := func() {
		t.Helper()
		p.settle(func(f http2.Frame) {
			switch f := f.(type) {
			case *http2.SettingsFrame:
				if v, ok := f.Value(http2.SettingInitialWindowSize); ok {
					window -= initialWindow - int64(v)
					shrunk = true
				}
			case *http2.WindowUpdateFrame:
				if f.StreamID == 1 {
					window += int64(f.Increment)
				}
			}
		})
	}
	for i := uint32(1); !shrunk && i <= 1000; i++ {
		p.headers(2*i+1, false, post...)
		for range 8 {
			_ = p.WriteData(2*i+1, false, make([]byte, 1000))
		}
		settle()
	}
	if !shrunk || window > 0 {
		t.Fatalf("the first stream's window is %d", window)
	}
	_ = p.WriteSettingsAck()
	settle()
	if window <= 0 {
		t.Errorf("the first stream's window is %d, and nothing will open it", window)
	}
}

// Many peers that each have less kept than one may, and together too much, share what
// there is: those that bring more go down to their share, and nobody to nothing.
func TestKeptIsShared(t *testing.T) {
	const (
		peers   = 60
		streams = 15
	)
	kept := &Kept{}
	for range peers {
		l := &large{}
		near, far := socketPair(t)
		l.conn = New(near, Config{Server: true, Owner: l, Kept: kept})
		done := make(chan struct{})
		go func() { defer close(done); _ = l.conn.Run(nil) }()
		t.Cleanup(func() { far.Close(); <-done })
		p := newPeer(t, far)
		_ = far.SetDeadline(time.Now().Add(time.Minute))
		p.hello(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
		for i := range uint32(streams) {
			p.headers(2*i+1, false, post...)
			_ = p.WriteData(2*i+1, false, []byte("?"))
		}
		p.settle(func(f http2.Frame) {
			if f, ok := f.(*http2.RSTStreamFrame); ok && f.ErrCode != http2.ErrCodeEnhanceYourCalm && f.ErrCode != http2.ErrCodeRefusedStream {
				t.Fatal(f)
			}
		})
		l.conn.mu.Lock()
		mine := l.conn.kept
		l.conn.mu.Unlock()
		if mine < maxKeptAll/2/peers/2 {
			t.Errorf("%d bytes are kept for a peer, less than half a share", mine)
		}
		if all := kept.Bytes(); all > maxKeptAll+maxKeptAll/4 { // each that comes later may bring its share
			t.Fatalf("%d bytes are kept", all)
		}
	}
	if all := kept.Bytes(); all < maxKeptAll/2 {
		t.Errorf("%d bytes are kept, there is room for more", all)
	}
}
