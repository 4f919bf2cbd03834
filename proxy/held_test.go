package proxy

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/tulle-mesh/tulle/proxy/tcp"
)

// greedyApp sends without end to who asks for "/endless", or is opaque, and reads
// nothing of who says "unread".
func greedyApp(t *testing.T) net.Addr {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var open sync.Map
	done := make(chan struct{})
	t.Cleanup(func() {
		close(done)
		ln.Close()
		open.Range(func(c, _ any) bool { c.(net.Conn).Close(); return true })
	})
	large := make([]byte, 64<<10)
	serve := func(c net.Conn) {
		defer c.Close()
		r := bufio.NewReaderSize(c, 4096)
		line, err := r.ReadString('\n')
		switch {
		case err != nil:
			return
		case strings.Contains(line, "unread"):
			<-done
			return
		case strings.Contains(line, "endless"):
		default:
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
			return
		}
		if strings.Contains(line, "HTTP/1.1") {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n")
		}
		for err == nil {
			_, err = c.Write(large)
		}
	}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_ = c.(*net.TCPConn).SetReadBuffer(4096)
			open.Store(c, nil)
			go serve(c)
		}
	}()
	return ln.Addr()
}

// greedyH2 is the same with HTTP/2.
func greedyH2(t *testing.T) net.Addr {
	large := make([]byte, 64<<10)
	return newH2App(t, func(w http.ResponseWriter, _ *http.Request) {
		for {
			if _, err := w.Write(large); err != nil {
				return
			}
		}
	})
}

// What is kept for peers that do not read, or do not send the rest, has one bound,
// whatever they speak and on whichever side they are: those who have been still for
// longest go. Others are served all the while.
func TestHeldIsBounded(t *testing.T) {
	const (
		limit   = 4 << 20
		batch   = 16
		batches = 6
	)
	upload := func(head string) func(*testing.T, string) *net.TCPConn {
		return func(t *testing.T, addr string) *net.TCPConn {
			c := dialTest(t, addr)
			go func() {
				_, err := io.WriteString(c, head)
				for piece := make([]byte, 64<<10); err == nil; {
					_, err = c.Write(piece)
				}
			}()
			return c
		}
	}
	download := func(head string) func(*testing.T, string) *net.TCPConn {
		return func(t *testing.T, addr string) *net.TCPConn {
			c := dialTest(t, addr)
			_ = c.SetReadBuffer(4096)
			if _, err := io.WriteString(c, head); err != nil {
				t.Fatal(err)
			}
			return c
		}
	}
	h2 := func(path string, window uint32) func(*testing.T, string) *net.TCPConn {
		return func(t *testing.T, addr string) *net.TCPConn {
			c := dialTest(t, addr)
			_ = c.SetReadBuffer(4096)
			go func() { _, _ = c.Write(greedyFrames(path, window)) }()
			return c
		}
	}
	for _, way := range []struct {
		name    string
		app     func(*testing.T) net.Addr
		open    func(t *testing.T, addr string) *net.TCPConn
		through []string
	}{
		{"HTTP/1.1 answers", greedyApp, download("GET /endless HTTP/1.1\r\nHost: a\r\n\r\n"), []string{"pair"}},
		{"HTTP/1.1 requests", greedyApp, upload("POST /unread HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000000\r\n\r\n"), []string{"pair"}},
		{"HTTP/1.1 heads without an end", greedyApp, download("GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("x", 60<<10)), []string{"pair"}},
		{"TCP to the client", greedyApp, download("*endless\n"), []string{"pair"}},
		{"TCP to the application", greedyApp, upload("*unread\n"), []string{"pair"}},
		{"HTTP/2 answers, windows shut", greedyH2, h2("/endless", 0), []string{"pair", "one proxy"}},
		{"HTTP/2 answers, windows open", greedyH2, h2("/endless", 1<<29), []string{"pair", "one proxy"}},
		{"HTTP/2 heads without an end", greedyH2, h2("", 0), []string{"pair"}},
	} {
		for _, through := range way.through {
			start := tcp.Held()
			t.Run(way.name+", "+through, func(t *testing.T) {
				before := tcp.Limit()
				tcp.SetLimit(limit)
				ctx, cancel := context.WithCancel(context.Background())
				var running sync.WaitGroup
				running.Go(func() { tcp.KeepBelow(ctx) })
				t.Cleanup(func() { cancel(); running.Wait(); tcp.SetLimit(before) })
				pair := newTestPair(t, way.app(t), false)
				addr := pair.addr
				if through == "one proxy" {
					addr = pair.plain
				}
				most := int64(0)
				var all []*net.TCPConn
				for range batches {
					for range batch {
						all = append(all, way.open(t, addr))
					}
					await(t, "what is held is below the limit", func() bool {
						most = max(most, tcp.Held())
						return tcp.Held() < limit
					})
				}
				await(t, "much was held", func() bool {
					most = max(most, tcp.Held())
					return most > limit/4*3
				})
				await(t, "nobody needs to go", func() bool { return !tcp.Much() })
				t.Logf("at most %d KiB were held, in the end %d", most>>10, tcp.Held()>>10)
				for _, c := range all {
					_ = c.SetLinger(0)
					c.Close()
				}
			})
			await(t, "nothing is held any more", func() bool { return tcp.Held() <= start+tcp.Large })
		}
	}
}

// greedyFrames is what a client says that asks for path on some streams and reads as
// much as windows say; path "": it begins a header list, and does not end it.
func greedyFrames(path string, window uint32) []byte {
	var b, block bytes.Buffer
	b.WriteString(http2.ClientPreface)
	f := http2.NewFramer(&b, nil)
	_ = f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: window})
	if window > 0 {
		_ = f.WriteWindowUpdate(0, window)
	}
	enc := hpack.NewEncoder(&block)
	for id := uint32(1); id < 8; id += 2 {
		block.Reset()
		for _, h := range [...][2]string{{":method", "POST"}, {":scheme", "http"}, {":path", path}, {":authority", "a"}} {
			_ = enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]})
		}
		if path == "" {
			_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes()})
			for range 10 {
				_ = f.WriteContinuation(id, false, make([]byte, 16<<10))
			}
			break
		}
		_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndStream: true, EndHeaders: true})
	}
	return b.Bytes()
}
