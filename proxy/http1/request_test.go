package http1

import (
	"strings"
	"testing"
)

var requestFacts = []struct{ name, head, want string }{
	{"curl", "GET /a?b HTTP/1.1\r\nHost: web:8080\r\nUser-Agent: curl/8\r\nAccept: */*\r\n\r\n",
		"GET /a?b /a web:8080 1.1 none idempotent"},
	{"http/1.0", "GET / HTTP/1.0\r\n\r\n", "GET / /  1.0 none close idempotent"},
	{"http/1.0 keep-alive", "GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", "GET / /  1.0 none idempotent"},
	{"length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length:  12\r\n\r\n", "POST / / a 1.1 length=12"},
	{"length zero", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", "POST / / a 1.1 none"},
	{"largest length", "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 9223372036854775807\r\n\r\n",
		"PUT / / a 1.1 length=9223372036854775807 idempotent"},
	{"chunked in capitals", "POST / HTTP/1.1\r\nHost: a\r\ntransfer-ENCODING:Chunked\r\n\r\n", "POST / / a 1.1 chunked"},
	{"connection close", "GET / HTTP/1.1\r\nHost: a\r\nConnection: foo, CLOSE\r\n\r\n", "GET / / a 1.1 none close idempotent"},
	{"close wins", "GET / HTTP/1.0\r\nConnection: keep-alive\r\nConnection: close\r\n\r\n", "GET / /  1.0 none close idempotent"},
	{"head", "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", "HEAD / / a 1.1 none head idempotent"},
	{"expect", "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nContent-Length: 1\r\n\r\n", "POST / / a 1.1 length=1 expect"},
	{"expect in 1.0", "POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n", "POST / /  1.0 length=1 close"},
	{"websocket", "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n", "GET /ws /ws a 1.1 none upgrade idempotent"},
	{"upgrade without option", "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n", "GET / / a 1.1 none idempotent"},
	{"option without upgrade", "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\n\r\n", "GET / / a 1.1 none idempotent"},
	{"upgrade in 1.0", "GET / HTTP/1.0\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n", "GET / /  1.0 none close idempotent"},
	{"h2c", "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: foo, H2C\r\nHTTP2-Settings: x\r\n\r\n", "GET / / a 1.1 none upgrade h2c idempotent"},
	{"connect", "CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n\r\n", "CONNECT db:5432  db:5432 1.1 none connect"},
	{"connect, host without port", "CONNECT db:443 HTTP/1.1\r\nHost: DB\r\n\r\n", "CONNECT db:443  DB 1.1 none connect"},
	{"connect in 1.0", "CONNECT db:443 HTTP/1.0\r\n\r\n", "CONNECT db:443  db:443 1.0 none close connect"},
	{"connect v6", "CONNECT [::1]:443 HTTP/1.1\r\nHost: [::1]:443\r\n\r\n", "CONNECT [::1]:443  [::1]:443 1.1 none connect"},
	{"asterisk", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "OPTIONS * * a 1.1 none idempotent"},
	{"absolute", "GET http://A.example/x?y HTTP/1.1\r\nHost: a.EXAMPLE\r\n\r\n", "GET http://A.example/x?y /x a.EXAMPLE 1.1 none idempotent"},
	{"absolute, default port", "GET http://a:80 HTTP/1.1\r\nHost: a\r\n\r\n", "GET http://a:80  a 1.1 none idempotent"},
	{"absolute in 1.0", "GET http://a/ HTTP/1.0\r\n\r\n", "GET http://a/ / a 1.0 none close idempotent"},
	{"empty host", "GET / HTTP/1.1\r\nHost:\r\n\r\n", "GET / /  1.1 none idempotent"},
	{"host v6", "GET / HTTP/1.1\r\nHost:\t[fe80::1%25eth0]:80 \r\n\r\n", "GET / / [fe80::1%25eth0]:80 1.1 none idempotent"},
	{"host with underscore", "GET / HTTP/1.1\r\nHost: my_app\r\n\r\n", "GET / / my_app 1.1 none idempotent"},
	{"other method", "M-SEARCH /{a|b}/\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n", "M-SEARCH /{a|b}/\xc3\xa9 /{a|b}/\xc3\xa9 a 1.1 none"},
	{"obs-text and tab in value", "GET / HTTP/1.1\r\nHost: a\r\nX: \xff\tlong enough\t\xfe for words\r\n\r\n", "GET / / a 1.1 none idempotent"},
	{"empty value", "GET / HTTP/1.1\r\nHost: a\r\nX:\r\n\r\n", "GET / / a 1.1 none idempotent"},
	{"one empty line before", "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "GET / / a 1.1 none idempotent"},
}

func TestRequestFacts(t *testing.T) {
	for _, tc := range requestFacts {
		t.Run(tc.name, func(t *testing.T) {
			var r Request
			n, err := r.Parse([]byte(tc.head + "rest"))
			if err != nil || n != len(tc.head) {
				t.Fatalf("Parse = %d, %v; want %d", n, err, len(tc.head))
			}
			if got := describe(&r); got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
			if want := strings.TrimPrefix(tc.head, "\r\n"); string(r.Raw) != want {
				t.Errorf("Raw = %q, want %q", r.Raw, want)
			}
		})
	}
}

// describe spells out all facts of a request.
func describe(r *Request) string {
	s := string(r.Method) + " " + string(r.Target) + " " + string(r.Path) + " " + string(r.Host) +
		" 1." + string('0'+r.Minor) + " " + describeFraming(r.Body, r.ContentLength)
	for _, flag := range []struct {
		set  bool
		name string
	}{
		{r.Close, "close"}, {r.Head, "head"}, {r.Connect, "connect"}, {r.Upgrade, "upgrade"},
		{r.H2C, "h2c"}, {r.Expect100, "expect"}, {r.Idempotent, "idempotent"},
	} {
		if flag.set {
			s += " " + flag.name
		}
	}
	return s
}
