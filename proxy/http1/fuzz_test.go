package http1

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// FuzzRequest checks that feeding a head byte by byte gives the same result as
// feeding it whole, and that Go's net/http reads whatever we accept the same way.
func FuzzRequest(f *testing.F) {
	for _, h := range heads {
		f.Add([]byte(h.request))
	}
	for _, tc := range smuggling {
		if len(tc.head) < 1000 {
			f.Add([]byte(tc.head))
		}
	}
	for _, tc := range requestFacts {
		f.Add([]byte(tc.head + "rest"))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var r Request
		n, err := r.Parse(b)
		var piecewise Request
		wantSame(t, n, err, func(i int) (int, error) { return piecewise.Parse(clone(b[:i])) }, len(b))
		if n == 0 || err != nil {
			return
		}
		if a, b := describe(&r), describe(&piecewise); a != b || !bytes.Equal(r.Raw, piecewise.Raw) {
			t.Fatalf("whole %s\nin bytes %s", a, b)
		}
		if !bytes.HasSuffix(b[:n], r.Raw) || n-len(r.Raw) > 2 {
			t.Fatalf("Raw = %q of %q", r.Raw, b[:n])
		}
		compareRequest(t, &r)
	})
}

func clone(b []byte) []byte { return append([]byte(nil), b...) }

// wantSame parses growing prefixes and compares with what the whole gave. Of
// two errors an early look may find the other one first.
func wantSame(t *testing.T, n int, err error, parse func(i int) (int, error), size int) {
	t.Helper()
	for i := 0; i <= size; i++ {
		n1, err1 := parse(i)
		if n1 == 0 && err1 == nil {
			continue
		}
		if n1 != n || (err1 == nil) != (err == nil) {
			t.Fatalf("whole: %d, %v; in bytes: %d, %v", n, err, n1, err1)
		}
		if err == nil && i != n {
			t.Fatalf("the head has %d bytes but was complete after %d", n, i)
		}
		return
	}
	if n != 0 || err != nil {
		t.Fatalf("whole: %d, %v; in bytes: incomplete", n, err)
	}
}

// compareRequest reads the head with net/http and compares framing and routing.
func compareRequest(t *testing.T, r *Request) {
	std, err := http.ReadRequest(bufio.NewReaderSize(bytes.NewReader(r.Raw), MaxHead))
	if err != nil {
		if _, urlErr := url.ParseRequestURI(string(r.Target)); urlErr != nil || r.Connect ||
			strings.Contains(err.Error(), "bad trailer key") {
			return // broken percent-encodings and the like are the application's
		}
		t.Fatalf("net/http refuses %q: %v", r.Raw, err)
	}
	if std.Method != string(r.Method) || std.RequestURI != string(r.Target) || std.ProtoMinor != int(r.Minor) {
		t.Fatalf("net/http reads %s %s 1.%d, we %s", std.Method, std.RequestURI, std.ProtoMinor, describe(r))
	}
	if !strings.EqualFold(std.Host, string(r.Host)) && !sameHost(std, r) {
		t.Fatalf("net/http sees host %q, we %q", std.Host, r.Host)
	}
	length, chunked := std.ContentLength, len(std.TransferEncoding) > 0
	if chunked != (r.Body == Chunked) || !chunked && length != r.ContentLength {
		t.Fatalf("net/http sees length %d chunked %v, we %s", length, chunked, describe(r))
	}
	if std.Close != r.Close && !bytes.Contains(bytes.ToLower(r.Raw), []byte("connection:")) {
		t.Fatalf("net/http sees close %v, we %v", std.Close, r.Close)
	}
}

// FuzzFields builds heads of lines that are dangerous together; every byte of
// lines chooses one.
func FuzzFields(f *testing.F) {
	f.Add([]byte{0, 1, 2})
	f.Fuzz(func(t *testing.T, lines []byte) {
		lines = lines[:min(len(lines), 12)]
		var req Request
		var resp Response
		head := requestLines[0]
		for i, c := range lines {
			if i == 0 {
				head = requestLines[int(c)%len(requestLines)]
				continue
			}
			head += fieldLines[int(c)%len(fieldLines)]
		}
		if n, err := req.Parse([]byte(head + "\r\n")); n > 0 && err == nil {
			compareRequest(t, &req)
		}
		if _, fields, _ := strings.Cut(head, "\r\n"); len(lines) > 0 {
			asked := Asked{Head: lines[0]&1 != 0, Upgrade: lines[0]&2 != 0}
			head = "HTTP/1." + itoa(int(lines[0])>>2&1) + " " + itoa(100+int(lines[0])) + "\r\n" + fields + "\r\n"
			if n, err := resp.Parse([]byte(head), asked); n > 0 && err == nil {
				compareResponse(t, &resp, asked)
			}
		}
	})
}

var requestLines = []string{
	"GET / HTTP/1.1\r\n", "GET / HTTP/1.0\r\n", "POST http://a:80/ HTTP/1.1\r\n", "CONNECT a:80 HTTP/1.1\r\n",
	"HEAD /?x HTTP/1.1\r\n", "OPTIONS * HTTP/1.1\r\n", "\r\nPOST /%2e HTTP/1.1\r\n", "CONNECT a:80 HTTP/1.0\r\n",
}

var fieldLines = []string{
	"Host: a\r\n", "Host: a:80\r\n", "host:\r\n", "Host: [::1]\r\n",
	"Content-Length: 5\r\n", "Content-Length:0\r\n", "content-length: 05\r\n", "Content-Length: 5, 5\r\n", "Content-Length: 6\r\n",
	"Transfer-Encoding: chunked\r\n", "transfer-encoding:CHUNKED\r\n", "Transfer-Encoding: gzip, chunked\r\n", "Transfer-Encoding: identity\r\n",
	"Connection: close\r\n", "Connection: keep-alive\r\n", "Connection: Upgrade\r\n", "Connection: te, content-length\r\n",
	"Upgrade: websocket\r\n", "Upgrade: h2c\r\n", "Expect: 100-continue\r\n", "Trailer: Content-Length\r\n", "X: y\r\n", "X:y\n", " z\r\n", "X : y\r\n",
}

// sameHost allows for what may differ between target and Host field: the port,
// in two cases, see target.go.
func sameHost(std *http.Request, r *Request) bool {
	host, _ := splitPort(r.Host)
	stdHost, _ := splitPort([]byte(std.Host))
	return r.Target[0] != '/' && sameFold(host, stdHost)
}

// FuzzResponse does the same for responses. The first byte chooses the request.
func FuzzResponse(f *testing.F) {
	f.Add(byte(0), []byte(answer))
	for _, tc := range responseFacts {
		f.Add(askedByte(tc.asked), []byte(tc.head))
	}
	for _, tc := range responseRefused {
		if len(tc.head) < 1000 {
			f.Add(askedByte(tc.asked), []byte(tc.head))
		}
	}
	f.Fuzz(func(t *testing.T, what byte, b []byte) {
		asked := Asked{Head: what&1 != 0, Connect: what&2 != 0, Upgrade: what&4 != 0}
		var r, piecewise Response
		n, err := r.Parse(b, asked)
		wantSame(t, n, err, func(i int) (int, error) { return piecewise.Parse(clone(b[:i]), asked) }, len(b))
		if n == 0 || err != nil {
			return
		}
		if a, b := describeResponse(&r), describeResponse(&piecewise); a != b {
			t.Fatalf("whole %s\nin bytes %s", a, b)
		}
		compareResponse(t, &r, asked)
	})
}

func askedByte(a Asked) (what byte) {
	for i, set := range []bool{a.Head, a.Connect, a.Upgrade} {
		if set {
			what |= 1 << i
		}
	}
	return what
}

func compareResponse(t *testing.T, r *Response, asked Asked) {
	method := http.MethodGet
	switch {
	case asked.Head && !asked.Connect:
		method = http.MethodHead
	case asked.Head:
		return // no such request
	case asked.Connect:
		method = http.MethodConnect
	}
	std, err := http.ReadResponse(bufio.NewReaderSize(bytes.NewReader(r.Raw), MaxHead), &http.Request{Method: method})
	if err != nil {
		lower := bytes.ToLower(r.Raw)
		if r.Tunnel || bytes.Contains(lower, []byte("transfer-encoding")) || strings.Contains(err.Error(), "bad trailer key") {
			return // it knows no codings below chunked
		}
		t.Fatalf("net/http refuses %q: %v", r.Raw, err)
	}
	if std.StatusCode != r.Status || std.ProtoMinor != int(r.Minor) {
		t.Fatalf("net/http reads %d 1.%d, we %s", std.StatusCode, std.ProtoMinor, describeResponse(r))
	}
	if r.Body == None || r.Tunnel {
		if (std.ContentLength > 0 || len(std.TransferEncoding) > 0) && method == http.MethodGet &&
			r.Status != 304 && r.Status != 204 && r.Status >= 200 {
			t.Fatalf("net/http sees a body of %d, we none: %q", std.ContentLength, r.Raw)
		}
		return
	}
	want := map[Framing]int64{Length: r.ContentLength, Chunked: -1, EOF: -1}[r.Body]
	if std.ContentLength != want || (len(std.TransferEncoding) > 0) != (r.Body == Chunked) {
		t.Fatalf("net/http sees length %d, codings %q, we %s", std.ContentLength, std.TransferEncoding, describeResponse(r))
	}
}

// FuzzBody checks that it does not matter how a chunked body is split, that
// Dechunker agrees with Body, and that net/http reads the same payload and ends
// at the same byte. step is the size of the pieces.
func FuzzBody(f *testing.F) {
	for _, in := range []string{
		LastChunk, "5\r\nhello\r\n0\r\n\r\nGET /", "1;a=b;c=\"d;\te\"\r\nx\r\n0;z\r\n\r\n",
		"1\r\nx\r\n0\r\nGrpc-Status: 0\r\nX:\r\nY: \xe9\t\r\n\r\nGET", "00A\r\n0123456789\r\n000\r\nA: b\r\n\r\n",
	} {
		f.Add([]byte(in), uint8(3))
	}
	for _, tc := range chunksRefused {
		if len(tc.in) < 1000 {
			f.Add([]byte(tc.in), uint8(1))
		}
	}
	f.Fuzz(func(t *testing.T, in []byte, step uint8) {
		var b Body
		b.Reset(Chunked, 0)
		n, done, err := b.Advance(in)
		n1, done1, err1 := advanceInSteps(in, int(step)+1)
		if n1 != n || done1 != done || err1 != err {
			t.Fatalf("whole: %d, %v, %v; in steps: %d, %v, %v", n, done, err, n1, done1, err1)
		}
		if err == nil && !done && n != len(in) {
			t.Fatalf("not done, but stopped at %d of %d", n, len(in))
		}
		payload, n2, done2, err2 := dechunkInSteps(in, int(step)+1)
		if n2 != n || done2 != done || err2 != err {
			t.Fatalf("Body: %d, %v, %v; Dechunker: %d, %v, %v", n, done, err, n2, done2, err2)
		}
		if done {
			compareBody(t, in, n, payload)
		}
	})
}

func advanceInSteps(in []byte, step int) (n int, done bool, err error) {
	var b Body
	b.Reset(Chunked, 0)
	for n < len(in) && !done && err == nil {
		var used int
		used, done, err = b.Advance(in[n:min(n+step, len(in))])
		n += used
	}
	return n, done, err
}

func dechunkInSteps(in []byte, step int) (payload []byte, n int, done bool, err error) {
	var d Dechunker
	d.Reset()
	for n < len(in) && !done && err == nil {
		var piece []byte
		var used int
		piece, used, done, err = d.Next(in[n:min(n+step, len(in))])
		payload = append(payload, piece...)
		n += used
	}
	return payload, n, done, err
}

func compareBody(t *testing.T, in []byte, n int, payload []byte) {
	const head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
	whole := bytes.NewReader(append([]byte(head), in...))
	br := bufio.NewReaderSize(whole, MaxHead)
	std, err := http.ReadRequest(br)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(std.Body)
	if err != nil {
		t.Fatalf("net/http refuses %q: %v", in[:n], err)
	}
	if !bytes.Equal(got, payload) {
		t.Fatalf("net/http reads %q, we %q", got, payload)
	}
	if end := len(in) - whole.Len() - br.Buffered(); end != n {
		t.Fatalf("net/http ends at %d, we at %d of %q", end, n, in)
	}
}
