package http1

import (
	"bufio"
	"bytes"
	"net/http"
	"strings"
	"testing"
)

var heads = []struct{ name, request string }{
	{"wrk", "GET / HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n"},
	{"curl", "GET /products/42?currency=EUR HTTP/1.1\r\nHost: catalog.mesh:8080\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\n\r\n"},
	{"browser", "GET /assets/app.js?v=81f3 HTTP/1.1\r\nHost: shop.example.com\r\nConnection: keep-alive\r\n" +
		"sec-ch-ua: \"Chromium\";v=\"130\", \"Not?A_Brand\";v=\"99\"\r\nsec-ch-ua-mobile: ?0\r\n" +
		"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0.0.0 Safari/537.36\r\n" +
		"Accept: */*\r\nSec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: no-cors\r\nSec-Fetch-Dest: script\r\n" +
		"Referer: https://shop.example.com/\r\nAccept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: de-CH,de;q=0.9,en;q=0.8\r\n" +
		"Cookie: session=" + strings.Repeat("0123456789abcdef", 16) + "\r\n\r\n"},
}

const answer = "HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Sun, 22 Nov 2026 21:00:00 GMT\r\nContent-Type: text/plain\r\n" +
	"Content-Length: 256\r\nLast-Modified: Sun, 22 Nov 2026 20:00:00 GMT\r\nConnection: keep-alive\r\nETag: \"674f2c3a-100\"\r\nAccept-Ranges: bytes\r\n\r\n"

func TestNoAllocations(t *testing.T) {
	var (
		req   Request
		resp  Response
		body  Body
		de    Dechunker
		buf   = make([]byte, 0, 1<<10)
		get   = []byte(heads[2].request)
		good  = []byte(answer)
		bad   = []byte("GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n")
		chunk = []byte("5;a=b\r\nhello\r\n0\r\nGrpc-Status: 0\r\n\r\n")
		post  = []byte("POST http://a/x HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, upgrade\r\nUpgrade: h2c\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n")
	)
	for name, f := range map[string]func(){
		"request":         func() { mustParse(req.Parse(get)) },
		"upgrade request": func() { mustParse(req.Parse(post)) },
		"incomplete":      func() { req.Reset(); req.Parse(post[:len(post)/2]); mustParse(req.Parse(post)) },
		"response":        func() { mustParse(resp.Parse(good, req.Asked())) },
		"refused": func() {
			req.Reset()
			if _, err := req.Parse(bad); err == nil {
				panic("not refused")
			}
		},
		"body":      func() { body.Reset(Chunked, 0); n, _, err := body.Advance(chunk); mustParse(n, err) },
		"dechunker": func() { de.Reset(); _, n, _, err := de.Next(chunk); mustParse(n, err) },
		"encoder":   func() { buf = AppendChunk(buf[:0], chunk) },
		"error":     func() { buf = AppendError(buf[:0], 400, "bad-name", "text") },
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func mustParse(n int, err error) {
	if n == 0 || err != nil {
		panic(err)
	}
}

func BenchmarkRequest(b *testing.B) {
	for _, h := range heads {
		b.Run(h.name, func(b *testing.B) {
			buf := []byte(h.request)
			b.SetBytes(int64(len(buf)))
			var r Request
			for b.Loop() {
				mustParse(r.Parse(buf))
			}
		})
	}
}

// The baseline: what a proxy built on net/http pays.
func BenchmarkRequestNetHTTP(b *testing.B) {
	for _, h := range heads {
		b.Run(h.name, func(b *testing.B) {
			in := strings.NewReader(h.request)
			br := bufio.NewReader(in)
			b.SetBytes(in.Size())
			for b.Loop() {
				in.Reset(h.request)
				br.Reset(in)
				if _, err := http.ReadRequest(br); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkResponse(b *testing.B) {
	buf := []byte(answer)
	b.SetBytes(int64(len(buf)))
	var r Response
	for b.Loop() {
		mustParse(r.Parse(buf, Asked{}))
	}
}

// The largest head in segments of one byte: time per head must stay in
// proportion to its size.
func BenchmarkRequestBytewise(b *testing.B) {
	buf := []byte("GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("x", 60_000) + "\r\n\r\n")
	b.SetBytes(int64(len(buf)))
	var r Request
	for b.Loop() {
		for i := range buf {
			if _, err := r.Parse(buf[:i+1]); err != nil {
				b.Fatal(err)
			}
		}
	}
}

func BenchmarkChunked(b *testing.B) {
	for _, size := range []int{1, 256, 16 << 10} {
		b.Run(itoa(size), func(b *testing.B) {
			var wire []byte
			for len(wire) < 32<<10 {
				wire = AppendChunk(wire, bytes.Repeat([]byte{'x'}, size))
			}
			wire = append(wire, LastChunk...)
			b.SetBytes(int64(len(wire)))
			var body Body
			for b.Loop() {
				body.Reset(Chunked, 0)
				mustParse2(body.Advance(wire))
			}
		})
	}
}

func mustParse2(n int, done bool, err error) {
	if !done || err != nil {
		panic(err)
	}
}
