package http2

import (
	"runtime"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// TestFloods: each is sent without end; the connection ends long before a
// million frames, and says why.
func TestFloods(t *testing.T) {
	for _, c := range []struct {
		name string
		conf Config
		hold bool
		send func(p *peer, i uint32)
		want string
	}{
		{name: "rapid reset (CVE-2023-44487)", hold: true, want: "ENHANCE_YOUR_CALM", send: func(p *peer, i uint32) {
			p.headers(2*i+1, true, get...)
			p.WriteRSTStream(2*i+1, http2.ErrCodeCancel)
		}},
		{name: "rapid reset by error (CVE-2025-8671)", hold: true, want: "ENHANCE_YOUR_CALM", send: func(p *peer, i uint32) {
			p.headers(2*i+1, false, post...)
			p.WriteWindowUpdate(2*i+1, 0)
		}},
		{name: "rapid reset by overflow (CVE-2025-8671)", hold: true, want: "ENHANCE_YOUR_CALM", send: func(p *peer, i uint32) {
			p.headers(2*i+1, false, post...)
			p.WriteWindowUpdate(2*i+1, 1<<31-1)
		}},
		{name: "rapid reset by data behind the end (CVE-2025-8671)", hold: true, want: "ENHANCE_YOUR_CALM", send: func(p *peer, i uint32) {
			p.headers(2*i+1, true, get...)
			p.WriteData(2*i+1, true, []byte("x"))
		}},
		{name: "rapid reset by headers behind the end (CVE-2025-8671)", hold: true, want: "ENHANCE_YOUR_CALM", send: func(p *peer, i uint32) {
			p.headers(2*i+1, true, get...)
			p.headers(2*i+1, true, "a", "b")
		}},
		{name: "rapid reset by a wrong priority (CVE-2025-8671)", hold: true, want: "ENHANCE_YOUR_CALM", send: func(p *peer, i uint32) {
			p.headers(2*i+1, true, get...)
			p.WriteRawFrame(http2.FramePriority, 0, 2*i+1, []byte{0})
		}},
		{name: "rapid reset by a wrong length (CVE-2025-8671)", hold: true, want: "ENHANCE_YOUR_CALM", send: func(p *peer, i uint32) {
			p.headers(2*i+1, false, with(post, "content-length", "1")...)
			p.WriteData(2*i+1, false, []byte("xy"))
		}},
		{name: "malformed requests", want: "ENHANCE_YOUR_CALM", send: func(p *peer, i uint32) { p.headers(2*i+1, true, "x", "y") }},
		{name: "streams beyond the limit", conf: Config{Streams: 1}, hold: true, want: "ENHANCE_YOUR_CALM", send: func(p *peer, i uint32) {
			p.headers(2*i+1, false, post...)
		}},
		{name: "settings", want: "ENHANCE_YOUR_CALM", send: func(p *peer, _ uint32) { p.WriteSettings() }},
		{name: "settings acks", want: "ENHANCE_YOUR_CALM", send: func(p *peer, _ uint32) { p.WriteSettingsAck() }},
		{name: "ping", want: "ENHANCE_YOUR_CALM", send: func(p *peer, _ uint32) { p.WritePing(false, [8]byte{}) }},
		{name: "priority", want: "ENHANCE_YOUR_CALM", send: func(p *peer, i uint32) {
			p.WritePriority(2*i+1, http2.PriorityParam{StreamDep: 2*i + 3})
		}},
		{name: "unknown frames", want: "ENHANCE_YOUR_CALM", send: func(p *peer, _ uint32) { p.WriteRawFrame(0xbe, 0, 0, nil) }},
		{name: "window updates", want: "ENHANCE_YOUR_CALM", send: func(p *peer, _ uint32) { p.WriteWindowUpdate(0, 1) }},
		{name: "empty data", hold: true, want: "ENHANCE_YOUR_CALM", send: func(p *peer, i uint32) {
			if i == 0 {
				p.headers(1, false, post...)
			}
			p.WriteData(1, false, nil)
		}},
		{name: "padding only", hold: true, want: "ENHANCE_YOUR_CALM", send: func(p *peer, i uint32) {
			if i == 0 {
				p.headers(1, false, post...)
			}
			p.WriteDataPadded(1, false, nil, make([]byte, 8))
		}},
		{name: "empty continuation (CVE-2024-27919)", want: "ENHANCE_YOUR_CALM", send: func(p *peer, i uint32) {
			if i == 0 {
				p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(get...)})
			}
			p.WriteContinuation(1, false, nil)
		}},
		{name: "continuation", want: "ENHANCE_YOUR_CALM", send: func(p *peer, i uint32) {
			if i == 0 {
				p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(get...)})
			}
			p.WriteContinuation(1, false, p.block("x-large", strings.Repeat("x", 1000)))
		}},
		{name: "headers for a stream that was reset", want: "ENHANCE_YOUR_CALM", send: func(p *peer, i uint32) {
			if i == 0 {
				p.headers(1, false, with(post, "content-length", "1")...)
				p.WriteData(1, false, []byte("xy"))
			}
			p.headers(1, true, "a", "b")
		}},
		{name: "frames for closed streams", want: "STREAM_CLOSED", send: func(p *peer, i uint32) {
			if i == 0 {
				p.headers(1, true, get...)
			}
			p.WriteData(1, false, []byte("x"))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := newServer(t, &echo{hold: c.hold}, c.conf)
			p.hello()
			said := make(chan string)
			go func() { said <- p.read() }()
			i := uint32(0)
			for ; i < 1_000_000; i++ {
				c.send(p, i)
				if p.buf.Len() > 32<<10 && p.flush() != nil {
					break
				}
			}
			// Who goes on sending may find the reason cut off by a reset.
			got := <-said
			if i == 1_000_000 || !strings.HasSuffix(got, "end") || strings.Contains(got, "goaway") && !strings.HasSuffix(got, "goaway "+c.want+", end") {
				t.Errorf("after %d: %s", i, got[max(0, len(got)-200):])
			}
		})
	}
}

// TestBombs: small requests that decode to much are refused in bounded memory.
func TestBombs(t *testing.T) {
	for _, c := range []struct {
		name  string
		block func(p *peer) []byte
	}{
		{"one large field, many times", func(p *peer) []byte {
			b := p.block(with(get, "x-bomb", strings.Repeat("b", 3900))...)
			return append(b, strings.Repeat("\xbe", 15_000)...) // the first entry of the dynamic table
		}},
		{"cookie crumbs", func(p *peer) []byte {
			b := p.block(with(get, "cookie", "")...)
			return append(b, strings.Repeat("\xa0", 16_000)...) // cookie, empty: static table
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newServer(t, &echo{}, Config{})
			p.hello()
			p.probe()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			for i := range uint32(20) {
				b := c.block(p)
				p.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: b[:min(len(b), maxFrame)], EndStream: true, EndHeaders: true})
			}
			got := p.probe()
			runtime.ReadMemStats(&after)
			if n := strings.Count(got, " 431 end"); n != 20 {
				t.Errorf("%d of 20 were refused: %s", n, got)
			}
			if grown := after.TotalAlloc - before.TotalAlloc; grown > 8<<20 {
				t.Errorf("%d bytes were allocated", grown)
			}
		})
	}
}

// TestUnread: a peer that asks and never reads is let go, with a bound on what
// waits for it.
func TestUnread(t *testing.T) {
	e := &echo{}
	p := newServer(t, e, Config{})
	p.hello(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1})
	p.WriteWindowUpdate(0, 1<<30)
	large := strings.Repeat("x", 16_000)
	p.headers(1, false, post...)
	for range 200 {
		p.WriteData(1, false, []byte(large))
		if p.flush() != nil {
			break
		}
		e.conn.mu.Lock()
		waiting, held := len(e.conn.out), e.conn.held
		e.conn.mu.Unlock()
		if waiting > outRoom+maxFrame+1000 {
			t.Fatalf("%d bytes wait to be sent", waiting)
		}
		if held > 1<<20+maxFrame {
			t.Fatalf("%d bytes are held", held)
		}
	}
}

func FuzzServer(f *testing.F) {
	seed := func(send func(p *peer)) {
		p := &peer{t: f}
		p.Framer = http2.NewFramer(&p.buf, nil)
		p.AllowIllegalWrites = true
		p.enc = hpack.NewEncoder(&p.hpk)
		send(p)
		f.Add(p.buf.Bytes())
	}
	seed(func(p *peer) { p.headers(1, true, get...) })
	seed(func(p *peer) { p.headers(1, false, post...); p.WriteDataPadded(1, true, []byte("hi"), []byte{0, 0}) })
	seed(func(p *peer) { p.headers(1, false, post...); p.headers(1, true, "a", "b") })
	seed(func(p *peer) { p.WriteSettings(http2.Setting{ID: 4, Val: 3}); p.WritePing(false, [8]byte{}) })
	seed(func(p *peer) {
		p.headers(1, false, post...)
		p.WriteWindowUpdate(1, 3)
		p.WriteRSTStream(1, 8)
		p.WriteGoAway(0, 0, nil)
	})
	f.Fuzz(func(t *testing.T, b []byte) {
		p := newServer(t, &echo{}, Config{Connect: true})
		p.hello()
		p.buf.Write(b)
		_ = p.flush()
		_ = p.conn.(interface{ CloseWrite() error }).CloseWrite()
		for {
			if _, err := p.ReadFrame(); err != nil {
				return
			}
		}
	})
}

func FuzzMessage(f *testing.F) {
	f.Add(":scheme", "http", ":authority", "a", "x-a", "b")
	f.Add(":scheme", "http://evil/?", ":authority", "a", "host", "a")
	f.Fuzz(func(t *testing.T, n1, v1, n2, v2, n3, v3 string) {
		var m Message
		m.reset()
		for _, h := range []hpack.HeaderField{{Name: ":method", Value: "GET"}, {Name: n1, Value: v1}, {Name: n2, Value: v2}, {Name: ":path", Value: "/"}, {Name: n3, Value: v3}} {
			m.add(h)
		}
		if m.check(requestHead, true) != nil {
			return
		}
		for _, h := range m.Fields {
			if strings.ContainsAny(h.Name+h.Value, "\r\n\x00") || strings.ToLower(h.Name) != h.Name || h.Name == "connection" || h.Name == "" {
				t.Fatalf("%q got through", h)
			}
		}
		if u := m.Scheme + "://" + m.Authority + m.Path; m.Path != "*" && m.Authority != "" {
			if _, rest, _ := strings.Cut(u, "://"); rest[:strings.IndexAny(rest, "/?#")] != m.Authority {
				t.Fatalf("%q is of another host", u)
			}
		}
	})
}

// TestUnreadAbuse: the end of a connection does not wait for who reads nothing.
func TestUnreadAbuse(t *testing.T) {
	e := &echo{}
	near, far := socketPair(t)
	e.conn = New(near, Config{Server: true, Owner: e})
	done := make(chan error)
	go func() { done <- e.conn.Run(nil) }()
	p := newPeer(t, far)
	p.hello(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1})
	p.WriteWindowUpdate(0, 1<<30)
	for i := range uint32(200) {
		p.headers(2*i+1, false, post...)
		for range 3 {
			p.WriteData(2*i+1, false, make([]byte, 16_000))
		}
	}
	_ = p.flush()
	p.WriteWindowUpdate(0, 0)
	_ = p.flush()
	if err := <-done; err == nil {
		t.Error("no error")
	}
}
