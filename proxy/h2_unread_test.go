package proxy

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// unreader opens streams over a connection of its own and reads none of the answers'
// bodies: its windows are shut.
type unreader struct {
	t    *testing.T
	conn net.Conn
	*http2.Framer
	frames bytes.Buffer
	heads  chan uint32 // ids of the streams whose answers have begun
}

func newUnreader(t *testing.T, addr string) *unreader {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	u := &unreader{t: t, conn: c, heads: make(chan uint32, 1<<16)}
	u.Framer = http2.NewFramer(&u.frames, c)
	u.frames.WriteString(http2.ClientPreface)
	_ = u.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	_ = u.WriteSettingsAck()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			f, err := u.ReadFrame()
			if err != nil {
				return
			}
			if f, ok := f.(*http2.HeadersFrame); ok {
				u.heads <- f.StreamID
			}
		}
	}()
	t.Cleanup(func() { c.Close(); <-done })
	return u
}

// send sends the frames that were written.
func (u *unreader) send() {
	u.t.Helper()
	if _, err := u.conn.Write(u.frames.Bytes()); err != nil {
		u.t.Fatal(err)
	}
	u.frames.Reset()
}

// get opens n streams from id on, and waits until all answers have begun.
func (u *unreader) get(id uint32, n int, path string) {
	u.t.Helper()
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for i := range uint32(n) {
		block.Reset()
		for _, f := range [...][2]string{{":method", "GET"}, {":scheme", "http"}, {":path", path}, {":authority", "a"}} {
			_ = enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
		}
		_ = u.WriteHeaders(http2.HeadersFrameParam{StreamID: id + 2*i, BlockFragment: block.Bytes(), EndStream: true, EndHeaders: true})
	}
	u.send()
	for i := range n {
		select {
		case <-u.heads:
		case <-time.After(time.Minute):
			u.t.Fatalf("%d of %d answers have begun", i, n)
		}
	}
}

// TestH2Unread: hundreds of answers that one client does not read are kept within
// bounds, and what others ask for over the same connection between the proxies
// comes all the same.
func TestH2Unread(t *testing.T) {
	const streams = 400 // a window of each is more than one connection may hold
	large := bytes.Repeat([]byte("large"), 1<<20/5)
	app := newH2App(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/large":
			_, _ = w.Write(large)
		case "/answer":
			_, _ = w.Write(large[:60<<10])
		case "/endless":
			for {
				if _, err := w.Write(large[:64<<10]); err != nil {
					return
				}
			}
		}
	}, func(s *http.Server) { s.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: 10_000} })
	pair := newTestPair(t, app, false)
	most := make(chan int64)
	go func() {
		var n int64
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			n = max(n, pair.client.kept.Bytes(), pair.server.kept.Bytes())
			select {
			case <-tick.C:
			case most <- n:
				return
			}
		}
	}()

	client := newH2Client(t)
	client.Timeout = 2 * time.Minute
	fetch := func() {
		t.Helper()
		resp, err := client.Get("http://" + pair.addr + "/large")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if b, err := io.ReadAll(resp.Body); err != nil || len(b) != len(large) {
			t.Fatalf("%d bytes, %v", len(b), err)
		}
	}
	fetch()
	bad := newUnreader(t, pair.addr)
	bad.get(1, streams, "/endless")
	for range 5 {
		fetch()
	}
	bad.get(1+2*streams, streams, "/answer")
	for range 5 {
		fetch()
	}
	ep := pair.dest.set.Endpoints()[0].Value
	ep.h2.mu.Lock()
	sessions := len(ep.h2.sessions)
	ep.h2.mu.Unlock()
	n := <-most
	t.Logf("%d bytes were kept, over %d sessions", n, sessions)
	if n > 24<<20 {
		t.Errorf("%d bytes were kept", n)
	}
	if sessions != 1 {
		t.Errorf("%d sessions: the streams did not share one", sessions)
	}
}
