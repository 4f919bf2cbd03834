package http1

import (
	"strings"
	"testing"
)

// post is a request with the given fields, each "Name: value".
func post(fields ...string) string {
	return "POST / HTTP/1.1\r\nHost: a\r\n" + strings.Join(fields, "\r\n") + "\r\n\r\n"
}

var smuggling = []struct {
	name, head string
	code       string
	status     int
}{
	// Framing.
	{"length and coding", post("Content-Length: 5", "Transfer-Encoding: chunked"), "length-and-coding", 400},
	{"coding and length", post("Transfer-Encoding: chunked", "Content-Length: 5"), "length-and-coding", 400},
	{"coding and length zero", post("Transfer-Encoding: chunked", "Content-Length: 0"), "length-and-coding", 400},
	{"two lengths that differ", post("Content-Length: 5", "Content-Length: 6"), "two-lengths", 400},
	{"two lengths that agree", post("Content-Length: 5", "Content-Length: 5"), "two-lengths", 400},
	{"two lengths, zero first", post("Content-Length: 0", "Content-Length: 5"), "two-lengths", 400},
	{"length list", post("Content-Length: 5, 5"), "bad-length", 400},
	{"length with plus", post("Content-Length: +5"), "bad-length", 400},
	{"negative length", post("Content-Length: -1"), "bad-length", 400},
	{"length with space behind", post("Content-Length: 5 "), "bad-length", 400},
	{"length with tab before", post("Content-Length:\t5"), "bad-length", 400},
	{"length with space inside", post("Content-Length: 5 0"), "bad-length", 400},
	{"hexadecimal length", post("Content-Length: 0x5"), "bad-length", 400},
	{"octal length", post("Content-Length: 010"), "bad-length", 400},
	{"length with underscore", post("Content-Length: 1_0"), "bad-length", 400},
	{"length with fraction", post("Content-Length: 5.0"), "bad-length", 400},
	{"length that overflows", post("Content-Length: 9223372036854775808"), "bad-length", 400},
	{"length that overflows by far", post("Content-Length: 18446744073709551621"), "bad-length", 400},
	{"empty length", post("Content-Length:"), "bad-length", 400},
	{"length in other digits", post("Content-Length: \xd9\xa5"), "bad-length", 400},
	{"length with underscored name", post("Content_Length: 5"), "underscore-name", 400},
	{"chunked twice", post("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"), "two-codings", 400},
	{"chunked, then identity in a field", post("Transfer-Encoding: chunked", "Transfer-Encoding: identity"), "two-codings", 400},
	{"chunked, identity", post("Transfer-Encoding: chunked, identity"), "bad-coding", 400},
	{"chunked, chunked", post("Transfer-Encoding: chunked, chunked"), "bad-coding", 400},
	{"chunked,", post("Transfer-Encoding: chunked,"), "bad-coding", 400},
	{",chunked", post("Transfer-Encoding: ,chunked"), "bad-coding", 400},
	{"gzip, chunked", post("Transfer-Encoding: gzip, chunked"), "unknown-coding", 501},
	{"identity", post("Transfer-Encoding: identity"), "bad-coding", 400},
	{"xchunked", post("Transfer-Encoding: xchunked"), "bad-coding", 400},
	{"chunked with tab before", post("Transfer-Encoding:\tchunked"), "bad-coding", 400},
	{"chunked with space behind", post("Transfer-Encoding: chunked "), "bad-coding", 400},
	{"chunked with tab behind", post("Transfer-Encoding: chunked\t"), "bad-coding", 400},
	{"chunked with vertical tab", post("Transfer-Encoding: \x0bchunked"), "control-byte", 400},
	{"chunked with parameter", post("Transfer-Encoding: chunked;q=1"), "bad-coding", 400},
	{"quoted chunked", post(`Transfer-Encoding: "chunked"`), "bad-coding", 400},
	{"chunked with NBSP", post("Transfer-Encoding: \xa0chunked"), "bad-coding", 400},
	{"chunked with Kelvin sign", post("Transfer-Encoding: chun\xe2\x84\xaaed"), "bad-coding", 400},
	{"empty coding", post("Transfer-Encoding:"), "bad-coding", 400},
	{"coding with underscored name", post("Transfer_Encoding: chunked"), "underscore-name", 400},
	{"coding in HTTP/1.0", "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", "coding-in-http10", 400},
	{"connection drops length", post("Connection: close, Content-Length", "Content-Length: 5"), "connection-names-framing", 400},
	{"connection drops coding", post("Connection: transfer-encoding"), "connection-names-framing", 400},
	{"connection drops host", post("Connection: HOST"), "connection-names-framing", 400},
	{"connect with length", "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nContent-Length: 5\r\n\r\n", "connect-with-body", 400},
	{"connect with coding", "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nTransfer-Encoding: chunked\r\n\r\n", "connect-with-body", 400},

	// Lines and fields.
	{"folded field", post("X: a\r\n b"), "obs-fold", 400},
	{"folded with tab", post("Transfer-Encoding:\r\n\tchunked"), "bad-coding", 400},
	{"folded first field", "GET / HTTP/1.1\r\n Host: a\r\n\r\n", "obs-fold", 400},
	{"line of white space", post("X: a", " "), "obs-fold", 400},
	{"bare LF", "GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", "bare-lf", 400},
	{"bare LF in request line", "GET / HTTP/1.1\nHost: a\r\n\r\n", "bare-lf", 400},
	{"bare LF at the end", "GET / HTTP/1.1\r\nHost: a\r\n\n", "bare-lf", 400},
	{"bare CR in value", post("X: a\rContent-Length: 5"), "bare-cr", 400},
	{"bare CR before CRLF", post("X: a\r"), "bare-cr", 400},
	{"bare CR in name", post("X\r: a"), "bad-name", 400},
	{"NUL in value", post("X: a\x00b"), "control-byte", 400},
	{"NUL in long value", post("X: 0123456789abcdef\x00123456789"), "control-byte", 400},
	{"DEL in value", post("X: a\x7fb"), "control-byte", 400},
	{"NUL in name", post("X\x00: a"), "bad-name", 400},
	{"space before colon", post("Content-Length : 5"), "space-before-colon", 400},
	{"tab before colon", post("Transfer-Encoding\t: chunked"), "space-before-colon", 400},
	{"empty name", post(": a"), "empty-name", 400},
	{"no colon", post("Content-Length"), "bad-name", 400},
	{"name with space", post("Content Length: 5"), "space-before-colon", 400},
	{"name with slash", post("a/b: 5"), "bad-name", 400},
	{"name with obs-text", post("Content-Length\xa0: 5"), "bad-name", 400},
	{"two empty lines before", "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "empty-start", 400},
	{"bare LF before", "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "bare-lf", 400},
	{"space before", " GET / HTTP/1.1\r\nHost: a\r\n\r\n", "bad-method", 400},

	// Start line.
	{"HTTP/0.9", "GET /\r\n\r\n", "bad-version", 400},
	{"HTTP/0.9 in disguise", "GET / HTTP/0.9\r\n\r\n", "other-version", 505},
	{"HTTP/1.2", "GET / HTTP/1.2\r\nHost: a\r\n\r\n", "other-version", 505},
	{"HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "other-version", 505},
	{"preface of HTTP/1.1", "PRI * HTTP/1.1\r\nHost: a\r\n\r\n", "bad-target", 400},
	{"lower-case version", "GET / http/1.1\r\nHost: a\r\n\r\n", "bad-version", 400},
	{"long version", "GET / HTTP/1.10\r\nHost: a\r\n\r\n", "bad-version", 400},
	{"version of letters", "GET / HTTP/a.1\r\nHost: a\r\n\r\n", "bad-version", 400},
	{"no minor version", "GET / HTTP/1\r\nHost: a\r\n\r\n", "bad-version", 400},
	{"space behind version", "GET / HTTP/1.1 \r\nHost: a\r\n\r\n", "bad-version", 400},
	{"two spaces", "GET  / HTTP/1.1\r\nHost: a\r\n\r\n", "bad-target", 400},
	{"tab for space", "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", "bad-method", 400},
	{"space in target", "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", "bad-target", 400},
	{"no target", "GET HTTP/1.1\r\nHost: a\r\n\r\n", "bad-version", 400},
	{"NUL in target", "GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n", "bad-target", 400},
	{"CR in target", "GET /\r HTTP/1.1\r\nHost: a\r\n\r\n", "bad-target", 400},
	{"tab in target", "GET /\tx HTTP/1.1\r\nHost: a\r\n\r\n", "bad-target", 400},
	{"fragment in target", "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", "bad-target", 400},
	{"relative target", "GET a/b HTTP/1.1\r\nHost: a\r\n\r\n", "bad-target", 400},
	{"asterisk for GET", "GET * HTTP/1.1\r\nHost: a\r\n\r\n", "bad-target", 400},
	{"empty scheme", "GET ://a/ HTTP/1.1\r\nHost: a\r\n\r\n", "bad-target", 400},
	{"scheme of digits", "GET 1x://a/ HTTP/1.1\r\nHost: a\r\n\r\n", "bad-target", 400},
	{"absolute without authority", "GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n", "bad-target", 400},
	{"user in target", "GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n", "bad-target", 400},
	{"method of 33", strings.Repeat("A", 33) + " / HTTP/1.1\r\nHost: a\r\n\r\n", "bad-method", 400},
	{"method of 64 KiB", strings.Repeat("A", 64<<10) + " / HTTP/1.1\r\nHost: a\r\n\r\n", "bad-method", 400},
	{"method with colon", "GE:T / HTTP/1.1\r\nHost: a\r\n\r\n", "bad-method", 400},
	{"connect without port", "CONNECT a HTTP/1.1\r\nHost: a\r\n\r\n", "bad-target", 400},
	{"connect without host", "CONNECT :80 HTTP/1.1\r\nHost: :80\r\n\r\n", "bad-host", 400},
	{"connect to a path", "CONNECT /a HTTP/1.1\r\nHost: a\r\n\r\n", "bad-target", 400},
	{"connect to an URL", "CONNECT http://a:80/ HTTP/1.1\r\nHost: a\r\n\r\n", "bad-target", 400},
	{"binary", "\x16\x03\x01\x02\x00", "bad-method", 400},

	// Host.
	{"no host", "GET / HTTP/1.1\r\n\r\n", "no-host", 400},
	{"no host in absolute form", "GET http://a/ HTTP/1.1\r\n\r\n", "no-host", 400},
	{"two hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "two-hosts", 400},
	{"two equal hosts", "GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n", "two-hosts", 400},
	{"two hosts in 1.0", "GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", "two-hosts", 400},
	{"host list", "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", "bad-host", 400},
	{"host with path", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", "bad-host", 400},
	{"host with user", "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", "bad-host", 400},
	{"host with space", "GET / HTTP/1.1\r\nHost: a b\r\n\r\n", "bad-host", 400},
	{"host with letters for port", "GET / HTTP/1.1\r\nHost: a:80a\r\n\r\n", "bad-host", 400},
	{"host with two ports", "GET / HTTP/1.1\r\nHost: a:80:90\r\n\r\n", "bad-host", 400},
	{"host with long port", "GET / HTTP/1.1\r\nHost: a:000080\r\n\r\n", "bad-host", 400},
	{"host in raw UTF-8", "GET / HTTP/1.1\r\nHost: b\xc3\xbccher\r\n\r\n", "bad-host", 400},
	{"host of half a literal", "GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", "bad-host", 400},
	{"host of a broken literal", "GET / HTTP/1.1\r\nHost: [::1]x:80\r\n\r\n", "bad-host", 400},
	{"other host in target", "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", "host-mismatch", 400},
	{"other port in target", "GET http://a:81/ HTTP/1.1\r\nHost: a\r\n\r\n", "host-mismatch", 400},
	{"default port of the other scheme", "GET http://a:443/ HTTP/1.1\r\nHost: a\r\n\r\n", "host-mismatch", 400},
	{"empty host for absolute form", "GET http://a/ HTTP/1.1\r\nHost:\r\n\r\n", "host-mismatch", 400},
	{"other host in connect", "CONNECT a:1 HTTP/1.1\r\nHost: b:1\r\n\r\n", "host-mismatch", 400},
	{"other port in connect", "CONNECT a:1 HTTP/1.1\r\nHost: a:2\r\n\r\n", "host-mismatch", 400},

	// Size.
	{"head of 100 KB", post("X: " + strings.Repeat("x", 100_000)), "head-too-large", 431},
	{"endless line", "GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("x", 64<<10), "head-too-large", 431},
	{"long target", "GET /" + strings.Repeat("x", 64<<10) + " HTTP/1.1\r\nHost: a\r\n\r\n", "long-target", 414},
	{"10000 fields", post(strings.Repeat("X:\r\n", 9999) + "X:"), "too-many-fields", 431},
	{"1001 fields", "GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("X:\r\n", 1000) + "\r\n", "too-many-fields", 431},
}

func TestRequestRefused(t *testing.T) {
	for _, tc := range smuggling {
		t.Run(tc.name, func(t *testing.T) {
			var r Request
			n, err := r.Parse([]byte(tc.head))
			wantCode(t, err, tc.code, tc.status)
			if n != 0 {
				t.Errorf("n = %d with an error", n)
			}
			if n, err := feed(&r, []byte(tc.head)); n != 0 || err == nil {
				t.Errorf("byte by byte: Parse = %d, %v", n, err)
			}
		})
	}
}

// feed parses b in growing prefixes, each in a buffer of its own.
func feed(r *Request, b []byte) (n int, err error) {
	r.Reset()
	step := 1 + len(b)/5000
	for i := 0; i < len(b); i += step {
		if n, err = r.Parse(append([]byte(nil), b[:i]...)); n != 0 || err != nil {
			return n, err
		}
	}
	return r.Parse(b)
}

func TestRequestLimits(t *testing.T) {
	const start, end = "GET / HTTP/1.1\r\nHost: a\r\nX: ", "\r\n\r\n"
	largest := start + strings.Repeat("x", MaxHead-len(start)-len(end)) + end
	most := "GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("X:\r\n", MaxFields-1) + "\r\n"
	longest := strings.Repeat("A", MaxMethod) + " / HTTP/1.1\r\nHost: a\r\n\r\n"
	for _, head := range []string{largest, "\r\n" + largest, most, longest} {
		var r Request
		if n, err := r.Parse([]byte(head)); n != len(head) || err != nil {
			t.Errorf("head of %d bytes: Parse = %d, %v", len(head), n, err)
		}
	}
	var r Request
	_, err := r.Parse([]byte(start + largest[len(start)-1:]))
	wantCode(t, err, "head-too-large", 431)
}

// A request that cannot become one any more is refused at once, not at the end
// of its line.
func TestRequestRefusedEarly(t *testing.T) {
	for _, start := range []string{"\x16\x03\x01", "GET\x00", " ", "\r\n ", strings.Repeat("A", 33), "{\"a\"", "SSH-2.0-Go/", "\rG"} {
		var r Request
		if _, err := r.Parse([]byte(start)); err == nil {
			t.Errorf("%q could still become a request", start)
		}
	}
	for _, start := range []string{"", "\r", "\r\n", "G", "GET", "GET ", "GET /", strings.Repeat("A", 32)} {
		var r Request
		if n, err := r.Parse([]byte(start)); n != 0 || err != nil {
			t.Errorf("%q: Parse = %d, %v", start, n, err)
		}
	}
}

func TestRequestPipelined(t *testing.T) {
	b := []byte("GET /1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\nPOST /2 HTTP/1.1\r\nHost: b\r\n\r\n")
	var r Request
	n, err := r.Parse(b)
	if err != nil || string(r.Target) != "/1" || !r.Close {
		t.Fatalf("first: %s, %v", describe(&r), err)
	}
	b = b[n:]
	if n, err = r.Parse(b); err != nil || n != len(b) || string(r.Target) != "/2" || string(r.Host) != "b" || r.Close || r.Idempotent {
		t.Fatalf("second: %s, %v", describe(&r), err)
	}
}
