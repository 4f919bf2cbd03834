package http1

import (
	"strings"
	"testing"
)

var get, headOnly, connect, upgrade = Asked{}, Asked{Head: true}, Asked{Connect: true}, Asked{Upgrade: true}

var responseFacts = []struct {
	name  string
	asked Asked
	head  string
	want  string
}{
	{"length", get, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "200 1.1 length=5"},
	{"length zero", get, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "200 1.1 none"},
	{"chunked", get, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "200 1.1 chunked"},
	{"gzip, chunked", get, "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, Chunked\r\n\r\n", "200 1.1 chunked"},
	{"until the end", get, "HTTP/1.1 200 OK\r\n\r\n", "200 1.1 eof close"},
	{"connection close", get, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n", "200 1.1 length=5 close"},
	{"http/1.0", get, "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", "200 1.0 length=5 close"},
	{"http/1.0 keep-alive", get, "HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\n", "200 1.0 length=5"},
	{"http/1.0 keep-alive until the end", get, "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\n", "200 1.0 eof close"},
	{"head", headOnly, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "200 1.1 none"},
	{"head chunked", headOnly, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "200 1.1 none"},
	{"head without length", headOnly, "HTTP/1.1 200 OK\r\n\r\n", "200 1.1 none"},
	{"204", get, "HTTP/1.1 204 No Content\r\n\r\n", "204 1.1 none"},
	{"204 with length zero", get, "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", "204 1.1 none"},
	{"204 with length", get, "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", "204 1.1 none close"},
	{"204 chunked", get, "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", "204 1.1 none close"},
	{"304 with length", get, "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", "304 1.1 none"},
	{"205 with length", get, "HTTP/1.1 205 Reset Content\r\nContent-Length: 5\r\n\r\n", "205 1.1 length=5"},
	{"100", get, "HTTP/1.1 100 Continue\r\n\r\n", "100 1.1 none interim"},
	{"103 with close", get, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nConnection: close\r\n\r\n", "103 1.1 none interim"},
	{"102 with length zero", get, "HTTP/1.1 102 Processing\r\nContent-Length: 0\r\n\r\n", "102 1.1 none interim"},
	{"101", upgrade, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", "101 1.1 none switching tunnel"},
	{"200 to upgrade", upgrade, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "200 1.1 length=5"},
	{"400 to upgrade", upgrade, "HTTP/1.1 400 Bad Request\r\nContent-Length: 5\r\n\r\n", "400 1.1 length=5"},
	{"100 before 101", upgrade, "HTTP/1.1 100 Continue\r\n\r\n", "100 1.1 none interim"},
	{"200 to connect", connect, "HTTP/1.1 200 Connection established\r\n\r\n", "200 1.1 none tunnel"},
	{"200 to connect with nonsense", connect, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", "200 1.1 none tunnel"},
	{"204 to connect", connect, "HTTP/1.0 204 x\r\n\r\n", "204 1.0 none close tunnel"},
	{"403 to connect", connect, "HTTP/1.1 403 Forbidden\r\nContent-Length: 5\r\n\r\n", "403 1.1 length=5"},
	{"no reason", get, "HTTP/1.1 200 \r\nContent-Length: 5\r\n\r\n", "200 1.1 length=5"},
	{"no reason, no space", get, "HTTP/1.1 200\r\nContent-Length: 5\r\n\r\n", "200 1.1 length=5"},
	{"reason in Latin-1", get, "HTTP/1.1 404 Non trouv\xe9\r\nContent-Length: 5\r\n\r\n", "404 1.1 length=5"},
	{"status 999", get, "HTTP/1.1 999 Request denied\r\nContent-Length: 5\r\n\r\n", "999 1.1 length=5"},
	{"length repeated", get, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", "200 1.1 length=5"},
	{"length with zeros", get, "HTTP/1.1 200 OK\r\nContent-Length: 00000005\r\n\r\n", "200 1.1 length=5"},
	{"bare LF", get, "HTTP/1.1 200 OK\nContent-Length: 5\n\n", "200 1.1 length=5 close"},
	{"bare LF once", get, "HTTP/1.1 200 OK\r\nContent-Length: 5\nX: y\r\n\r\n", "200 1.1 length=5 close"},
	{"shell script", get, "HTTP/1.1 200 OK\n\n", "200 1.1 eof close"},
	{"odd hosts are no business of ours", get, "HTTP/1.1 200 OK\r\nHost: a, b\r\nHost: c\r\nContent-Length: 5\r\n\r\n", "200 1.1 length=5"},
}

func TestResponseFacts(t *testing.T) {
	for _, tc := range responseFacts {
		t.Run(tc.name, func(t *testing.T) {
			var r Response
			n, err := r.Parse([]byte(tc.head+"rest"), tc.asked)
			if err != nil || n != len(tc.head) || string(r.Raw) != tc.head {
				t.Fatalf("Parse = %d, %v; want %d", n, err, len(tc.head))
			}
			if got := describeResponse(&r); got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
}

var responseRefused = []struct {
	name  string
	asked Asked
	head  string
	code  string
}{
	{"length and coding", get, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", "length-and-coding"},
	{"two lengths", get, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", "two-lengths"},
	{"two lengths of one value", get, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\nContent-Length: 010\r\n\r\n", "two-lengths"},
	{"length list", get, "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\n", "bad-length"},
	{"negative length", get, "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", "bad-length"},
	{"negative length to HEAD", Asked{Head: true}, "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", "bad-length"},
	{"chunked twice", get, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", "two-codings"},
	{"identity", get, "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\n", "bad-coding"},
	{"chunked, gzip", get, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\n", "bad-coding"},
	{"gzip and chunked with tab", get, "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip,\tchunked\r\n\r\n", "bad-coding"},
	{"coding in HTTP/1.0", get, "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "coding-in-http10"},
	{"coding with bare LF", get, "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n", "bare-lf"},
	{"interim with bare LF", get, "HTTP/1.1 100 Continue\n\n", "bare-lf"},
	{"interim with length", get, "HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\n\r\n", "interim-with-body"},
	{"101 with coding", Asked{Upgrade: true}, "HTTP/1.1 101 x\r\nTransfer-Encoding: chunked\r\n\r\n", "interim-with-body"},
	{"unasked 101", get, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", "unasked-switch"},
	{"101 to CONNECT", Asked{Connect: true}, "HTTP/1.1 101 Switching Protocols\r\n\r\n", "unasked-switch"},
	{"101 of HTTP/1.0", Asked{Upgrade: true}, "HTTP/1.0 101 Switching Protocols\r\n\r\n", "unasked-switch"},
	{"connection drops length", get, "HTTP/1.1 200 OK\r\nConnection: content-length\r\nContent-Length: 5\r\n\r\n", "connection-names-framing"},
	{"folded field", get, "HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n", "obs-fold"},
	{"bare CR", get, "HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n", "bare-cr"},
	{"NUL in reason", get, "HTTP/1.1 200 O\x00K\r\n\r\n", "control-byte"},
	{"space before colon", get, "HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\n", "space-before-colon"},
	{"empty line before", Asked{}, "\r\nHTTP/1.1 200 OK\r\n\r\n", "bad-status-line"},
	{"two digits", get, "HTTP/1.1 20 OK\r\n\r\n", "bad-status-line"},
	{"four digits", get, "HTTP/1.1 2000 OK\r\n\r\n", "bad-status-line"},
	{"status 099", get, "HTTP/1.1 099 OK\r\n\r\n", "bad-status-line"},
	{"signed status", get, "HTTP/1.1 +20 OK\r\n\r\n", "bad-status-line"},
	{"two spaces", get, "HTTP/1.1  200 OK\r\n\r\n", "bad-status-line"},
	{"HTTP/2", get, "HTTP/2.0 200 OK\r\n\r\n", "bad-status-line"},
	{"HTTP/1.2", get, "HTTP/1.2 200 OK\r\n\r\n", "bad-status-line"},
	{"other protocol", Asked{}, "ICY 200 OK\r\n\r\n", "bad-status-line"},
	{"other protocol, early", Asked{}, "SSH-", "bad-status-line"},
	{"HTTP/0.9", Asked{}, "<html>", "bad-status-line"},
	{"head too large", get, "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", MaxHead), "head-too-large"},
	{"status line too large", get, "HTTP/1.1 200 " + strings.Repeat("x", MaxHead), "head-too-large"},
	{"too many fields", get, "HTTP/1.1 200 OK\r\n" + strings.Repeat("X:\r\n", 1001) + "\r\n", "too-many-fields"},
}

func TestResponseRefused(t *testing.T) {
	for _, tc := range responseRefused {
		t.Run(tc.name, func(t *testing.T) {
			var r Response
			_, err := r.Parse([]byte(tc.head), tc.asked)
			wantCode(t, err, tc.code, 502)
		})
	}
}

func describeResponse(r *Response) string {
	s := strings.Join([]string{itoa(r.Status), "1." + itoa(int(r.Minor)), describeFraming(r.Body, r.ContentLength)}, " ")
	for _, flag := range []struct {
		set  bool
		name string
	}{{r.Close, "close"}, {r.Interim, "interim"}, {r.SwitchingProtocols, "switching"}, {r.Tunnel, "tunnel"}} {
		if flag.set {
			s += " " + flag.name
		}
	}
	return s
}
