package http1

import (
	"bytes"
	"math"
	"strings"
	"testing"
)

func TestBodyFramings(t *testing.T) {
	for _, tc := range []struct {
		name    string
		framing Framing
		length  int64
		in      string
		n       int
		done    bool
	}{
		{"none", None, 0, "GET /", 0, true},
		{"length zero", Length, 0, "GET /", 0, true},
		{"length, part", Length, 9, "hello", 5, false},
		{"length, all", Length, 5, "hello", 5, true},
		{"length, more", Length, 5, "helloGET /", 5, true},
		{"largest length", Length, math.MaxInt64, "hello", 5, false},
		{"eof", EOF, 0, "hello", 5, false},
		{"chunked", Chunked, 0, "5\r\nhello\r\n0\r\n\r\nGET /", 15, true},
		{"chunked, part", Chunked, 0, "5\r\nhel", 6, false},
		{"chunked without its end", Chunked, 0, "5\r\nhello\r\n0\r\n\r", 14, false},
		{"several chunks", Chunked, 0, "1\r\na\r\n00b\r\nhello world\r\nA\r\n0123456789\r\n000\r\n\r\n", 46, true},
		{"extensions", Chunked, 0, "1;a=b;c=\"d;\te\"\r\nx\r\n0;z\r\n\r\n", 26, true},
		{"trailers", Chunked, 0, "1\r\nx\r\n0\r\nGrpc-Status: 0\r\nX:\r\nY: \xe9\t\r\n\r\nGET", 38, true},
		{"a long trailer name", Chunked, 0, "0\r\nTransfer-Encoding-Is-Not-It: x\r\n\r\n", 37, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var b Body
			b.Reset(tc.framing, tc.length)
			n, done, err := b.Advance([]byte(tc.in))
			if n != tc.n || done != tc.done || err != nil || done != b.Done() {
				t.Errorf("Advance = %d, %v, %v; want %d, %v", n, done, err, tc.n, tc.done)
			}
			if want := tc.done || tc.framing == EOF; b.EndsAtEOF() != want {
				t.Errorf("EndsAtEOF = %v, want %v", b.EndsAtEOF(), want)
			}
			n, done = inBytes(t, tc.framing, tc.length, tc.in)
			if n != tc.n || done != tc.done {
				t.Errorf("byte by byte: %d, %v; want %d, %v", n, done, tc.n, tc.done)
			}
		})
	}
}

func TestZeroBody(t *testing.T) {
	var b Body
	if n, done, err := b.Advance([]byte("GET /")); n != 0 || !done || err != nil || !b.Done() || !b.EndsAtEOF() {
		t.Errorf("Advance = %d, %v, %v", n, done, err)
	}
}

// inBytes follows a body one byte at a time.
func inBytes(t *testing.T, framing Framing, length int64, in string) (n int, done bool) {
	var b Body
	b.Reset(framing, length)
	for done = b.Done(); n < len(in) && !done; {
		used, d, err := b.Advance([]byte(in[n : n+1]))
		if err != nil || used != 1 {
			t.Fatalf("Advance = %d, %v", used, err)
		}
		n, done = n+used, d
	}
	return n, done
}

var chunksRefused = []struct{ name, in, code string }{
	{"no size", "\r\n", "bad-chunk-size"},
	{"letters", "xyz\r\n", "bad-chunk-size"},
	{"0x", "0x5\r\nhello\r\n", "bad-chunk-size"},
	{"plus", "+5\r\nhello\r\n", "bad-chunk-size"},
	{"minus", "-5\r\nhello\r\n", "bad-chunk-size"},
	{"space before", " 5\r\nhello\r\n", "bad-chunk-size"},
	{"space behind", "5 \r\nhello\r\n", "bad-chunk-size"},
	{"space before extension", "5 ;a\r\nhello\r\n", "bad-chunk-size"},
	{"tab", "5\t\r\nhello\r\n", "bad-chunk-size"},
	{"underscore", "1_0\r\n", "bad-chunk-size"},
	{"quoted", "\"5\"\r\n", "bad-chunk-size"},
	{"only an extension", ";a\r\n", "bad-chunk-size"},
	{"overflow", "10000000000000005\r\n", "chunk-too-large"},
	{"overflow to the sign", "8000000000000000\r\n", "chunk-too-large"},
	{"17 zeros", "00000000000000000\r\n", "chunk-too-large"},
	{"bare LF after size", "5\nhello\r\n", "bare-lf"},
	{"bare CR after size", "5\rhello\r\n", "bare-cr"},
	{"bare LF in extension", "5;a\nhello\r\n0\r\n\r\n", "bare-lf"},
	{"bare CR in extension", "5;a\rb\r\nhello\r\n", "bare-cr"},
	{"NUL in extension", "5;a\x00\r\nhello\r\n", "control-byte"},
	{"long extension", "5;" + strings.Repeat("a", 1<<20) + "\r\n", "chunk-line-too-long"},
	{"many extensions", strings.Repeat("1;"+strings.Repeat("a", 250)+"\r\nx\r\n", 200), "chunk-overhead"},
	{"data too long", "5\r\nhello!\r\n", "bad-chunk-end"},
	{"data ends in LF", "5\r\nhello\n", "bad-chunk-end"},
	{"data ends in CR", "5\r\nhello\r0", "bad-chunk-end"},
	{"bare LF after last chunk", "0\n\r\n", "bare-lf"},
	{"bare LF at the end", "0\r\n\n", "bare-lf"},
	{"bare CR at the end", "0\r\n\rX", "bare-cr"},
	{"trailer: host", "0\r\nHost: a\r\n\r\n", "forbidden-trailer"},
	{"trailer: length", "0\r\ncontent-LENGTH: 5\r\n\r\n", "forbidden-trailer"},
	{"trailer: coding", "0\r\nX: y\r\nTransfer-Encoding: chunked\r\n\r\n", "forbidden-trailer"},
	{"trailer: connection", "0\r\nConnection: x\r\n\r\n", "forbidden-trailer"},
	{"trailer: folded", "0\r\nX: a\r\n b\r\n\r\n", "obs-fold"},
	{"trailer: bare LF", "0\r\nX: a\n\r\n", "bare-lf"},
	{"trailer: bare CR", "0\r\nX: a\rb\r\n\r\n", "bare-cr"},
	{"trailer: NUL", "0\r\nX: a\x00\r\n\r\n", "control-byte"},
	{"trailer: no name", "0\r\n: a\r\n\r\n", "empty-name"},
	{"trailer: space before colon", "0\r\nHost : a\r\n\r\n", "space-before-colon"},
	{"trailer: no colon", "0\r\nGET / HTTP/1.1\r\n\r\n", "space-before-colon"},
	{"trailer: no token", "0\r\na/b: c\r\n\r\n", "bad-name"},
	{"trailer: too long", "0\r\nX: " + strings.Repeat("x", MaxTrailers) + "\r\n\r\n", "trailer-too-large"},
	{"trailer: long name", "0\r\n" + strings.Repeat("x", MaxTrailers) + ":\r\n\r\n", "trailer-too-large"},
	{"trailer: too many", "0\r\n" + strings.Repeat("X:\r\n", MaxFields+1) + "\r\n", "trailer-too-large"},
}

func TestChunksRefused(t *testing.T) {
	for _, tc := range chunksRefused {
		t.Run(tc.name, func(t *testing.T) {
			status := 400
			if tc.code == "trailer-too-large" {
				status = 431
			}
			var b Body
			b.Reset(Chunked, 0)
			_, _, err := b.Advance([]byte(tc.in))
			wantCode(t, err, tc.code, status)
			b.Reset(Chunked, 0)
			err = nil
			for i := 0; i < len(tc.in) && err == nil; i++ {
				_, _, err = b.Advance([]byte(tc.in[i : i+1]))
			}
			wantCode(t, err, tc.code, status)
		})
	}
}

// A server that flushes every byte is slow, not malicious.
func TestManyTinyChunks(t *testing.T) {
	in := strings.Repeat("1\r\nx\r\n", 1<<16) + LastChunk
	var b Body
	b.Reset(Chunked, 0)
	if n, done, err := b.Advance([]byte(in)); n != len(in) || !done || err != nil {
		t.Errorf("Advance = %d, %v, %v", n, done, err)
	}
}

func TestChunkRoundTrip(t *testing.T) {
	var wire, want []byte
	for _, size := range []int{1, 15, 16, 17, 255, 256, 4095, 4096, 70000} {
		payload := bytes.Repeat([]byte{byte(size)}, size)
		want = append(want, payload...)
		wire = AppendChunk(wire, payload)
	}
	wire = append(wire, LastChunk...)
	for _, step := range []int{1, 2, 3, 7, 1000, len(wire)} {
		var d Dechunker
		d.Reset()
		var got []byte
		done := false
		for rest := append(wire[:len(wire):len(wire)], "next"...); !done; {
			piece := rest[:min(step, len(rest))]
			payload, n, end, err := d.Next(piece)
			if err != nil {
				t.Fatal(err)
			}
			got, rest, done = append(got, payload...), rest[n:], end
			if done && string(rest) != "next" {
				t.Errorf("in steps of %d: %q is left", step, rest)
			}
		}
		if !bytes.Equal(got, want) {
			t.Errorf("in steps of %d: payload differs", step)
		}
	}
}

func TestDechunkerRefuses(t *testing.T) {
	var d Dechunker
	d.Reset()
	payload, n, done, err := d.Next([]byte("2\r\nab\r\n"))
	if string(payload) != "ab" || n != 5 || done || err != nil {
		t.Fatalf("Next = %q, %d, %v, %v", payload, n, done, err)
	}
	_, _, _, err = d.Next([]byte("\r\nx"))
	wantCode(t, err, "bad-chunk-size", 400)
}

func TestAppendChunkHeader(t *testing.T) {
	for n, want := range map[int]string{1: "1", 9: "9", 10: "a", 16: "10", 0xfedcba: "fedcba", math.MaxInt: "7fffffffffffffff"} {
		got := AppendChunkHeader(nil, n)
		if string(got) != want+"\r\n" || len(got) > MaxChunkHeader {
			t.Errorf("%d: %q", n, got)
		}
	}
}

func TestAppendError(t *testing.T) {
	got := AppendError(nil, 400, "bare-lf", "a line ends with LF without CR")
	want := "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 31\r\n" +
		"Connection: close\r\ntulle-error: bare-lf\r\n\r\na line ends with LF without CR\n"
	if string(got) != want {
		t.Errorf("got %q", got)
	}
	for i := shape(1); i < shapes; i++ {
		e, r := requestErrors[i], responseErrors[i]
		if e.Code == "" || e.Text == "" || reason(e.Status) == "Error" || r.Status != 502 || r.Code != e.Code {
			t.Errorf("error %d is incomplete: %+v", i, e)
		}
		var resp Response
		answer := AppendError(nil, e.Status, e.Code, e.Text)
		n, err := resp.Parse(answer, Asked{})
		if err != nil || resp.Status != e.Status || !resp.Close || int64(len(answer)-n) != resp.ContentLength {
			t.Errorf("%s: our own answer is misread: %s, %v", e.Code, describeResponse(&resp), err)
		}
	}
}
