package e2e

import (
	"fmt"
	"strings"
	"testing"
)

// smuggling holds requests that two HTTP/1 implementations may read
// differently, or that no implementation should read at all. Each starts a
// request that is otherwise fine.
var smuggling = []struct{ name, text string }{
	{"length-and-chunked", `POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n`},
	{"chunked-and-length", `POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n`},
	{"chunked-not-last", `POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n`},
	{"chunked-twice", `POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n`},
	{"chunked-vertical-tab", `POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n`},
	{"coding-unknown", `POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n`},
	{"chunked-in-1.0", `POST / HTTP/1.0\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n`},
	{"two-lengths", `POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd`},
	{"two-lengths-in-one", `POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 3, 4\r\n\r\nabcd`},
	{"length-plus", `POST / HTTP/1.1\r\nHost: web\r\nContent-Length: +4\r\n\r\nabcd`},
	{"length-minus", `POST / HTTP/1.1\r\nHost: web\r\nContent-Length: -4\r\n\r\nabcd`},
	{"length-hex", `POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 0x4\r\n\r\nabcd`},
	{"length-empty", `POST / HTTP/1.1\r\nHost: web\r\nContent-Length:\r\n\r\nabcd`},
	{"length-too-large", `POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 99999999999999999999999\r\n\r\nabcd`},
	{"space-before-colon", `POST / HTTP/1.1\r\nHost: web\r\nContent-Length : 4\r\n\r\nabcd`},
	{"folded", `GET / HTTP/1.1\r\nHost: web\r\nX-A: b\r\n c\r\n\r\n`},
	{"folded-first", `GET / HTTP/1.1\r\n Host: web\r\nHost: web\r\n\r\n`},
	{"bare-lf", `GET / HTTP/1.1\r\nHost: web\r\nX-A: b\nX-B: c\r\n\r\n`},
	{"bare-cr", `GET / HTTP/1.1\r\nHost: web\r\nX-A: b\rX-B: c\r\n\r\n`},
	{"nul", `GET / HTTP/1.1\r\nHost: web\r\nX-A: b\x00c\r\n\r\n`},
	{"name-empty", `GET / HTTP/1.1\r\nHost: web\r\n: b\r\n\r\n`},
	{"name-with-space", `GET / HTTP/1.1\r\nHost: web\r\nX A: b\r\n\r\n`},
	{"no-colon", `GET / HTTP/1.1\r\nHost: web\r\nX-A\r\n\r\n`},
	{"two-hosts", `GET / HTTP/1.1\r\nHost: web\r\nHost: other\r\n\r\n`},
	{"no-host", `GET / HTTP/1.1\r\nX-A: b\r\n\r\n`},
	{"space-in-target", `GET /a b HTTP/1.1\r\nHost: web\r\n\r\n`},
	{"version-2.1", `GET / HTTP/2.1\r\nHost: web\r\n\r\n`},
}

// TestSmuggling: each such request gets a 400 (or 505) and the end of the connection,
// and the application never hears of it.
func TestSmuggling(t *testing.T) {
	host := newHost(t)
	server := host.serve(t, service{name: "web", argv: peerCommand("serve", ":9000", "head", `send:HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n`, "eof")})
	var script strings.Builder
	for _, s := range smuggling {
		fmt.Fprintf(&script, "echo '= %s'\n%s %s dial web:9000 'send:%s' eof\n", s.name, self(), partPeer, s.text)
	}
	r := play(t, host, "bash", "-c", script.String())
	answers := strings.Split(r.stdout, "= ")[1:]
	if len(answers) != len(smuggling) {
		t.Fatalf("%d answers to %d requests: %s", len(answers), len(smuggling), r)
	}
	for i, answer := range answers {
		name, text, _ := strings.Cut(answer, "\n")
		refused := strings.HasPrefix(text, `received "HTTP/1.1 400 `) || strings.HasPrefix(text, `received "HTTP/1.1 505 `)
		if !refused || !strings.HasSuffix(text, "then eof\n") {
			t.Errorf("%s: %s: %s", name, smuggling[i].text, text)
		}
	}
	if heard := server.stdout.String(); heard != "" {
		t.Errorf("the application heard: %s", heard)
	}
}
