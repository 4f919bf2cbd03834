package http2

import (
	"net"
	"strings"
	"testing"

	"golang.org/x/net/http2"
)

// TestWindowWalks: a few bytes of SETTINGS change the windows of all streams. How
// often that may be depends on how many there are.
func TestWindowWalks(t *testing.T) {
	for _, c := range []struct {
		name                     string
		streams, frames, inFrame int
		ends                     bool
	}{
		{"few streams", 100, 1000, 1, false},
		{"many streams", 6400, 200, 1, true},
		{"many streams, many changes in few frames", 6400, 20, maxFrame / 6, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			e := &echo{hold: true}
			p := newServer(t, e, Config{})
			p.hello()
			for i := range uint32(c.streams) {
				p.headers(2*i+1, false, post...)
			}
			if got := p.probe(); got != "" {
				t.Fatal(got)
			}
			for i := range c.frames {
				list := make([]http2.Setting, c.inFrame)
				for j := range list {
					list[j] = http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(1000 + (i+j)%2)}
				}
				list[len(list)-1].Val = uint32(2000 + i%2)
				_ = p.WriteSettings(list...)
			}
			got := p.probe()
			if ended := strings.HasSuffix(got, "goaway ENHANCE_YOUR_CALM, end"); ended != c.ends {
				t.Error(got)
			}
			if !c.ends {
				e.conn.mu.Lock()
				window := e.conn.streams[1].sendWindow
				e.conn.mu.Unlock()
				if want := int64(2000 + (c.frames-1)%2); window != want {
					t.Errorf("the window is %d, should be %d", window, want)
				}
			}
		})
	}
}

// TestUnreadResets: who asks for nothing but errors, and does not read them, is left
// before they take up much.
func TestUnreadResets(t *testing.T) {
	e := &echo{}
	p := newServer(t, e, Config{Resets: 1 << 30})
	_ = p.conn.(*net.TCPConn).SetReadBuffer(4096)
	p.hello()
	const most = 4_000_000
	i := uint32(0)
	for ; i < most; i++ {
		p.headers(2*i+1, true, "x", "y")
		if p.buf.Len() > 32<<10 && p.flush() != nil {
			break
		}
		if i%1000 == 0 {
			e.conn.mu.Lock()
			waiting := len(e.conn.out)
			e.conn.mu.Unlock()
			if waiting > 2*maxOut {
				t.Fatalf("%d bytes wait to be sent", waiting)
			}
		}
	}
	if i == most {
		t.Error("it may go on for ever")
	}
}
