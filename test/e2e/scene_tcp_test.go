package e2e

import (
	"strings"
	"testing"
	"time"
)

var fixedTime = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// tcpScene is opaque TCP in all its endings.
var tcpScene = scene{name: "tcp", takes: []take{
	dialogue("ask-answer",
		[]string{"line", `send:you said MARKER\n`, "eof"},
		[]string{`send:say MARKER\n`, "line", "close"}),
	dialogue("half-close-client",
		[]string{"eof", `send:all of it came\n`, "close"},
		[]string{"send:MARKER", "fin", "eof"}),
	dialogue("half-close-server",
		[]string{`send:that is all from me\n`, "fin", "eof"},
		[]string{"eof", "send:MARKER", "close"}),
	dialogue("half-close-without-a-byte",
		[]string{"eof", "send:MARKER", "close"},
		[]string{"fin", "eof"}),
	dialogue("connect-and-close",
		[]string{"eof"},
		[]string{"close"}),
	dialogue("server-closes-at-once",
		[]string{"close"},
		[]string{"eof"}),
	dialogue("client-resets",
		[]string{"recv:24", "touch:DIR/got", "eof"},
		[]string{"send:MARKER", "await:DIR/got", "rst"}),
	dialogue("server-resets",
		[]string{"recv:1", "send:MARKER", "await:DIR/got", "rst"},
		[]string{"send:x", "recv:24", "touch:DIR/got", "eof"}),
	dialogue("server-resets-before-a-byte",
		[]string{"await:DIR/go", "rst"},
		[]string{"touch:DIR/go", "eof"}),
	dialogue("client-resets-before-a-byte",
		[]string{"touch:DIR/accepted", "eof"},
		[]string{"await:DIR/accepted", "rst"}),
	dialogue("server-first",
		[]string{`send:220 MARKER\r\n`, "line", "close"},
		[]string{"line", `send:thanks\n`, "eof"}),
	dialogue("both-silent",
		[]string{"touch:DIR/accepted", "await:DIR/seen", "recv:2", "send:yes", "close"},
		[]string{"await:DIR/accepted", "touch:DIR/seen", "send:hm", "eof"}),
	dialogue("single-bytes",
		[]string{"recv:45", "dribble:MARKER and back again", "close"},
		[]string{"dribble:one byte at a time, MARKER!", "eof"}),
	dialogue("single-bytes-like-http",
		[]string{"line", "send:no", "close"},
		[]string{`dribble:GET a grip MARKER\n`, "eof"}),
	dialogue("large-both-ways",
		[]string{"sum:40M", "pump:40M", "close"},
		[]string{"pump:40M", "sum"}),
	dialogue("large-then-reset",
		[]string{"sum:4M", "touch:DIR/got", "eof"},
		[]string{"pump:4M", "await:DIR/got", "rst"}),
	dialogue("binary",
		[]string{"recv:5", `send:\x00\x16\x03\x01\xff`, "close"},
		[]string{`send:\x00\x01\x02\x03\xfe`, "eof"}),
	// A redirected connection is accepted by the proxy before anybody can know
	// that nobody listens: refused becomes a reset.
	refused("dial: refused\n", "eof: reset\n"),
	shell("unknown-name", "PEER dial nowhere.mesh:9000"),
}}

// refused calls a port where nobody listens, and takes two outcomes for the same.
func refused(without, with string) take {
	return take{"refused", func(t *testing.T, on stage, dir string) string {
		on.serve(t, service{name: "web", argv: peerCommand("serve", ":9000")})
		return strings.ReplaceAll(play(t, on, peerCommand("dial", "web:9001", "eof")...).stdout, without, with)
	}}
}
