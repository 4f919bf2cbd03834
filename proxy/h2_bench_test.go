package proxy

import (
	"io"
	"net"
	"net/http"
	"testing"

	"golang.org/x/net/http2"
)

// h2Pinger returns a function that makes one unary request over addr: HEADERS
// and DATA there, HEADERS, DATA and a trailer back. It allocates nothing.
func h2Pinger(t testing.TB, addr string) func() {
	t.Helper()
	c, err := net.Dial("tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_, _ = io.WriteString(c, http2.ClientPreface)
	f := http2.NewFramer(c, c)
	f.SetReuseFrames()
	_ = f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30})
	_ = f.WriteWindowUpdate(0, 1<<30)
	// POST http / and fields that are in the static table, and two literals.
	block := []byte("\x83\x86\x84\x00\x0acontent-ty\x03abc\x00\x02te\x08trailers")
	id := uint32(1)
	message := make([]byte, 100)
	return func() {
		_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block, EndHeaders: true})
		_ = f.WriteData(id, true, message)
		for {
			frame, err := f.ReadFrame()
			if err != nil {
				t.Fatal(err)
			}
			h := frame.Header()
			if h.StreamID == id && h.Flags.Has(http2.FlagDataEndStream) && (h.Type == http2.FrameData || h.Type == http2.FrameHeaders) {
				break
			}
			if h.Type == http2.FrameRSTStream || h.Type == http2.FrameGoAway {
				t.Fatal(frame)
			}
		}
		id += 2
	}
}

// rawEcho answers each request of an HTTP/2 connection with HEADERS and DATA,
// with few allocations of its own.
func rawEcho(t testing.TB) net.Addr {
	answer := make([]byte, 100)
	return rawApp(t, func(f *http2.Framer, _ net.Conn, id uint32) {
		_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: []byte{0x88}, EndHeaders: true})
		_ = f.WriteData(id, true, answer)
	})
}

// BenchmarkHTTP2 reports what a unary request through both proxies costs; the
// test's own client and application are in the figures.
func BenchmarkHTTP2(b *testing.B) {
	for _, way := range h2Ways {
		b.Run(way.name, func(b *testing.B) {
			ping := h2Pinger(b, way.target(b, rawEcho(b)))
			ping()
			b.ReportAllocs()
			for b.Loop() {
				ping()
			}
		})
	}
}

// BenchmarkHTTP2Bulk moves large bodies.
func BenchmarkHTTP2Bulk(b *testing.B) {
	app := newH2App(b, func(w http.ResponseWriter, r *http.Request) { _, _ = io.CopyN(w, zeros{}, 64<<20) })
	for _, way := range h2Ways {
		b.Run(way.name, func(b *testing.B) {
			c := newH2Client(b)
			url := "http://" + way.target(b, app)
			b.SetBytes(64 << 20)
			for b.Loop() {
				resp, err := c.Get(url)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, resp.Body); err != nil {
					b.Fatal(err)
				}
				resp.Body.Close()
			}
		})
	}
}
