package http2

import (
	"strings"
	"testing"

	"golang.org/x/net/http2"
)

func with(fields []string, more ...string) []string {
	return append(append([]string(nil), fields...), more...)
}

// talks are what a client sends after preface and SETTINGS, and what it gets.
var talks = []struct {
	name string
	send func(p *peer)
	want string
}{
	{"get", func(p *peer) { p.headers(1, true, get...) }, `head 1 200 end`},
	{"post", func(p *peer) { p.headers(1, false, post...); p.WriteData(1, true, []byte("hi")) }, `head 1 200, data 1 "hi" end`},
	{"end alone", func(p *peer) {
		p.headers(1, false, post...)
		p.WriteData(1, false, []byte("hi"))
		p.WriteData(1, true, nil)
	}, `head 1 200, data 1 "hi", data 1 "" end`},
	{"trailer", func(p *peer) {
		p.headers(1, false, post...)
		p.WriteData(1, false, []byte("hi"))
		p.headers(1, true, "x-end", "yes")
	}, `head 1 200, data 1 "hi", head 1 yes end`},
	{"padding is not forwarded", func(p *peer) {
		p.headers(1, false, post...)
		p.WriteDataPadded(1, true, []byte("hi"), make([]byte, 200))
	}, `head 1 200, data 1 "hi" end`},
	{"padded headers with priority", func(p *peer) {
		p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(get...), EndStream: true, EndHeaders: true, PadLength: 9, Priority: http2.PriorityParam{StreamDep: 3, Weight: 7}})
	}, `head 1 200 end`},
	{"continuation", func(p *peer) {
		b := p.block(get...)
		p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: b[:3], EndStream: true})
		p.WriteContinuation(1, false, b[3:5])
		p.WriteContinuation(1, true, b[5:])
	}, `head 1 200 end`},
	{"unknown frame and setting", func(p *peer) {
		p.WriteRawFrame(0xbe, 0xff, 1, []byte("?"))
		p.WriteSettings(http2.Setting{ID: 0xbe, Val: 1})
		p.headers(1, true, get...)
	}, `head 1 200 end`},
	{"priority", func(p *peer) { p.WritePriority(7, http2.PriorityParam{StreamDep: 1}) }, ``},
	{"large header list", func(p *peer) {
		var more []string
		for range 40 {
			more = append(more, "x-large", strings.Repeat("abcdefghij", 200))
		}
		p.headersLong(1, true, with(get, more...)...)
		p.headers(3, true, get...)
	}, `head 1 431 end, head 3 200 end`},
	{"content-length", func(p *peer) {
		p.headers(1, false, with(post, "content-length", "2")...)
		p.WriteData(1, true, []byte("hi"))
	}, `head 1 200, data 1 "hi" end`},

	// Malformed messages end their stream (RFC 9113 section 8.1.1).
	{"content-length too short", func(p *peer) {
		p.headers(1, false, with(post, "content-length", "1")...)
		p.WriteData(1, true, []byte("hi"))
	}, `head 1 200, reset 1 PROTOCOL_ERROR`},
	{"content-length too long", func(p *peer) {
		p.headers(1, false, with(post, "content-length", "3")...)
		p.WriteData(1, true, []byte("hi"))
	}, `head 1 200, reset 1 PROTOCOL_ERROR`},
	{"content-length and nothing", func(p *peer) { p.headers(1, true, with(post, "content-length", "3")...) }, `reset 1 PROTOCOL_ERROR`},
	{"two content-lengths", func(p *peer) {
		p.headers(1, false, with(post, "content-length", "1", "content-length", "2")...)
	}, `reset 1 PROTOCOL_ERROR`},
	{"capital", func(p *peer) { p.headers(1, true, with(get, "X-A", "b")...) }, `reset 1 PROTOCOL_ERROR`},
	{"space in a name", func(p *peer) { p.headers(1, true, with(get, "x a", "b")...) }, `reset 1 PROTOCOL_ERROR`},
	{"empty name", func(p *peer) { p.headers(1, true, with(get, "", "b")...) }, `reset 1 PROTOCOL_ERROR`},
	{"CRLF in a value", func(p *peer) { p.headers(1, true, with(get, "x-a", "b\r\nx-evil: 1")...) }, `reset 1 PROTOCOL_ERROR`},
	{"NUL in a value", func(p *peer) { p.headers(1, true, with(get, "x-a", "b\x00")...) }, `reset 1 PROTOCOL_ERROR`},
	{"space around a value", func(p *peer) { p.headers(1, true, with(get, "x-a", " b")...) }, `reset 1 PROTOCOL_ERROR`},
	{"CRLF in the path", func(p *peer) {
		p.headers(1, true, ":method", "GET", ":scheme", "http", ":path", "/ HTTP/1.1\r\nHost: b", ":authority", "a")
	}, `reset 1 PROTOCOL_ERROR`},
	{"space in the path", func(p *peer) {
		p.headers(1, true, ":method", "GET", ":scheme", "http", ":path", "/a b", ":authority", "a")
	}, `reset 1 PROTOCOL_ERROR`},
	{"connection", func(p *peer) { p.headers(1, true, with(get, "connection", "close")...) }, `reset 1 PROTOCOL_ERROR`},
	{"transfer-encoding", func(p *peer) { p.headers(1, true, with(get, "transfer-encoding", "chunked")...) }, `reset 1 PROTOCOL_ERROR`},
	{"upgrade", func(p *peer) { p.headers(1, true, with(get, "upgrade", "h2c")...) }, `reset 1 PROTOCOL_ERROR`},
	{"te trailers", func(p *peer) { p.headers(1, true, with(get, "te", "trailers")...) }, `head 1 200 end`},
	{"te other", func(p *peer) { p.headers(1, true, with(get, "te", "gzip")...) }, `reset 1 PROTOCOL_ERROR`},
	{"host differs", func(p *peer) { p.headers(1, true, with(get, "host", "b")...) }, `reset 1 PROTOCOL_ERROR`},
	{"host is the same", func(p *peer) { p.headers(1, true, with(get, "host", "a")...) }, `head 1 200 end`},
	{"no path", func(p *peer) { p.headers(1, true, ":method", "GET", ":scheme", "http") }, `reset 1 PROTOCOL_ERROR`},
	{"two paths", func(p *peer) { p.headers(1, true, ":method", "GET", ":scheme", "http", ":path", "/", ":path", "/b") }, `reset 1 PROTOCOL_ERROR`},
	{"pseudo behind regular", func(p *peer) { p.headers(1, true, ":method", "GET", ":scheme", "http", "a", "b", ":path", "/") }, `reset 1 PROTOCOL_ERROR`},
	{"status in a request", func(p *peer) { p.headers(1, true, with([]string{":status", "200"}, get...)...) }, `reset 1 PROTOCOL_ERROR`},
	{"unknown pseudo", func(p *peer) { p.headers(1, true, with([]string{":what", "200"}, get...)...) }, `reset 1 PROTOCOL_ERROR`},
	{"pseudo in a trailer", func(p *peer) {
		p.headers(1, false, post...)
		p.headers(1, true, ":path", "/")
	}, `head 1 200, reset 1 PROTOCOL_ERROR`},
	{"second head", func(p *peer) { p.headers(1, false, post...); p.headers(1, false, post...) }, `head 1 200, reset 1 PROTOCOL_ERROR`},
	{"scheme that is a URL", func(p *peer) {
		p.headers(1, true, ":method", "GET", ":scheme", "http://evil/?", ":path", "/", ":authority", "a")
	}, `reset 1 PROTOCOL_ERROR`},
	{"path that is a URL", func(p *peer) {
		p.headers(1, true, ":method", "GET", ":scheme", "other", ":path", "http://evil/", ":authority", "a")
	}, `reset 1 PROTOCOL_ERROR`},
	{"path with a fragment", func(p *peer) {
		p.headers(1, true, ":method", "GET", ":scheme", "http", ":path", "/a#b", ":authority", "a")
	}, `reset 1 PROTOCOL_ERROR`},
	{"asterisk for GET", func(p *peer) {
		p.headers(1, true, ":method", "GET", ":scheme", "http", ":path", "*", ":authority", "a")
	}, `reset 1 PROTOCOL_ERROR`},
	{"asterisk for OPTIONS", func(p *peer) {
		p.headers(1, true, ":method", "OPTIONS", ":scheme", "http", ":path", "*", ":authority", "a")
	}, `head 1 200 end`},
	{"path in the authority", func(p *peer) {
		p.headers(1, true, ":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a/admin?")
	}, `reset 1 PROTOCOL_ERROR`},
	{"user in the authority", func(p *peer) {
		p.headers(1, true, ":method", "GET", ":scheme", "http", ":path", "/", ":authority", "u@a")
	}, `reset 1 PROTOCOL_ERROR`},
	{"path in the host", func(p *peer) {
		p.headers(1, true, ":method", "GET", ":scheme", "http", ":path", "/", "host", "a/admin?")
	}, `reset 1 PROTOCOL_ERROR`},
	{"method with a space", func(p *peer) {
		p.headers(1, true, ":method", "GET / HTTP/1.1", ":scheme", "http", ":path", "/", ":authority", "a")
	}, `reset 1 PROTOCOL_ERROR`},
	{"two hosts", func(p *peer) { p.headers(1, true, with(get, "host", "a", "host", "a")...) }, `reset 1 PROTOCOL_ERROR`},
	{"no authority for CONNECT", func(p *peer) { p.headers(1, false, ":method", "CONNECT") }, `reset 1 PROTOCOL_ERROR`},
	{"space in the authority of CONNECT", func(p *peer) { p.headers(1, false, ":method", "CONNECT", ":authority", "a:1 HTTP/1.1") }, `reset 1 PROTOCOL_ERROR`},
	{"length of a tunnel", func(p *peer) {
		p.headers(1, false, ":method", "CONNECT", ":authority", "a:1", "content-length", "1")
	}, `reset 1 PROTOCOL_ERROR`},
	{"content-length twice", func(p *peer) {
		p.headers(1, false, with(post, "content-length", "2", "content-length", "2")...)
	}, `reset 1 PROTOCOL_ERROR`},
	{"octal content-length", func(p *peer) { p.headers(1, false, with(post, "content-length", "010")...) }, `reset 1 PROTOCOL_ERROR`},
	{"content-length with a plus", func(p *peer) { p.headers(1, false, with(post, "content-length", "+1")...) }, `reset 1 PROTOCOL_ERROR`},
	{"content-length with an underscore", func(p *peer) { p.headers(1, false, with(post, "content_length", "1")...) }, `reset 1 PROTOCOL_ERROR`},
	{"transfer-encoding with an underscore", func(p *peer) { p.headers(1, false, with(post, "transfer_encoding", "chunked")...) }, `reset 1 PROTOCOL_ERROR`},
	{"host in a trailer", func(p *peer) {
		p.headers(1, false, post...)
		p.headers(1, true, "host", "b")
	}, `head 1 200, reset 1 PROTOCOL_ERROR`},
	{"content-length in a trailer", func(p *peer) {
		p.headers(1, false, post...)
		p.headers(1, true, "content-length", "5")
	}, `head 1 200, reset 1 PROTOCOL_ERROR`},
	{"transfer-encoding in a trailer", func(p *peer) {
		p.headers(1, false, post...)
		p.headers(1, true, "transfer-encoding", "chunked")
	}, `head 1 200, reset 1 PROTOCOL_ERROR`},
	{"connect", func(p *peer) { p.headers(1, false, ":method", "CONNECT", ":authority", "a:1") }, `head 1 200`},
	{"connect with a path", func(p *peer) {
		p.headers(1, false, ":method", "CONNECT", ":authority", "a:1", ":scheme", "http", ":path", "/")
	}, `reset 1 PROTOCOL_ERROR`},
	{"extended connect that was not agreed on", func(p *peer) {
		p.headers(1, false, ":method", "CONNECT", ":authority", "a", ":scheme", "http", ":path", "/", ":protocol", "websocket")
	}, `reset 1 PROTOCOL_ERROR`},
	{"depends on itself", func(p *peer) { p.WritePriority(1, http2.PriorityParam{StreamDep: 1}) }, `reset 1 PROTOCOL_ERROR`},

	// Flow control.
	{"window update of nothing", func(p *peer) { p.headers(1, false, post...); p.WriteWindowUpdate(1, 0) }, `head 1 200, reset 1 PROTOCOL_ERROR`},
	{"window overflow", func(p *peer) { p.headers(1, false, post...); p.WriteWindowUpdate(1, 1<<31-1) }, `head 1 200, reset 1 FLOW_CONTROL_ERROR`},
	{"connection window update of nothing", func(p *peer) { p.WriteWindowUpdate(0, 0) }, `goaway PROTOCOL_ERROR, end`},
	{"connection window overflow", func(p *peer) { p.WriteWindowUpdate(0, 1<<31-1) }, `goaway FLOW_CONTROL_ERROR, end`},
	{"initial window too large", func(p *peer) { p.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 31}) }, `goaway FLOW_CONTROL_ERROR, end`},

	// Stream ids.
	{"even id", func(p *peer) { p.headers(2, true, get...) }, `goaway PROTOCOL_ERROR, end`},
	{"backwards", func(p *peer) { p.headers(5, true, get...); p.headers(3, true, get...) }, `head 5 200 end, goaway PROTOCOL_ERROR, end`},
	{"reuse", func(p *peer) { p.headers(1, true, get...); p.headers(1, true, get...) }, `head 1 200 end, goaway STREAM_CLOSED, end`},
	{"headers on 0", func(p *peer) { p.headers(0, true, get...) }, `goaway PROTOCOL_ERROR, end`},
	{"data on 0", func(p *peer) { p.WriteData(0, true, nil) }, `goaway PROTOCOL_ERROR, end`},
	{"data on idle", func(p *peer) { p.WriteData(1, true, nil) }, `goaway PROTOCOL_ERROR, end`},
	{"reset on idle", func(p *peer) { p.WriteRSTStream(1, 8) }, `goaway PROTOCOL_ERROR, end`},
	{"window update on idle", func(p *peer) { p.WriteWindowUpdate(1, 8) }, `goaway PROTOCOL_ERROR, end`},
	{"data behind the end", func(p *peer) { p.headers(1, true, get...); p.WriteData(1, true, []byte("x")) }, `head 1 200 end, goaway STREAM_CLOSED, end`},

	// Connection errors.
	{"settings on a stream", func(p *peer) { p.WriteRawFrame(4, 0, 1, nil) }, `goaway PROTOCOL_ERROR, end`},
	{"settings of five bytes", func(p *peer) { p.WriteRawFrame(4, 0, 0, make([]byte, 5)) }, `goaway FRAME_SIZE_ERROR, end`},
	{"ack with a payload", func(p *peer) { p.WriteRawFrame(4, 1, 0, make([]byte, 6)) }, `goaway FRAME_SIZE_ERROR, end`},
	{"enable push 2", func(p *peer) { p.WriteSettings(http2.Setting{ID: http2.SettingEnablePush, Val: 2}) }, `goaway PROTOCOL_ERROR, end`},
	{"max frame too small", func(p *peer) { p.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1}) }, `goaway PROTOCOL_ERROR, end`},
	{"ping of seven bytes", func(p *peer) { p.WriteRawFrame(6, 0, 0, make([]byte, 7)) }, `goaway FRAME_SIZE_ERROR, end`},
	{"ping on a stream", func(p *peer) { p.WriteRawFrame(6, 0, 1, make([]byte, 8)) }, `goaway PROTOCOL_ERROR, end`},
	{"frame too large", func(p *peer) { p.headers(1, false, post...); p.WriteData(1, true, make([]byte, 16385)) }, `head 1 200, goaway FRAME_SIZE_ERROR, end`},
	{"padding too long", func(p *peer) { p.headers(1, false, post...); p.WriteRawFrame(0, 8, 1, []byte{9, 1}) }, `head 1 200, goaway PROTOCOL_ERROR, end`},
	{"push promise", func(p *peer) { p.WriteRawFrame(5, 4, 1, make([]byte, 4)) }, `goaway PROTOCOL_ERROR, end`},
	{"bad HPACK", func(p *peer) { p.WriteRawFrame(1, 5, 1, []byte{0xff, 0xff, 0xff, 0xff}) }, `goaway COMPRESSION_ERROR, end`},
	{"continuation without headers", func(p *peer) { p.WriteContinuation(1, true, p.block(get...)) }, `goaway PROTOCOL_ERROR, end`},
	{"interrupted headers", func(p *peer) {
		p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(get...)})
		p.WritePing(false, [8]byte{})
	}, `goaway PROTOCOL_ERROR, end`},
	{"goaway", func(p *peer) {
		p.headers(1, false, post...)
		p.WriteGoAway(0, 0, nil)
		p.WriteData(1, true, []byte("x"))
	}, `head 1 200, data 1 "x" end`},
}

func TestFrames(t *testing.T) {
	for _, c := range talks {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := newServer(t, &echo{}, Config{})
			p.hello()
			c.send(p)
			if got := p.probe(); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

// headersLong sends a block that does not fit into one frame.
func (p *peer) headersLong(id uint32, end bool, fields ...string) {
	b := p.block(fields...)
	_ = p.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: b[:min(len(b), maxFrame)], EndStream: end, EndHeaders: len(b) <= maxFrame})
	for len(b) > maxFrame {
		b = b[maxFrame:]
		_ = p.WriteContinuation(id, len(b) <= maxFrame, b[:min(len(b), maxFrame)])
	}
}

func TestNoPreface(t *testing.T) {
	p := newServer(t, &echo{}, Config{})
	p.buf.WriteString("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	if got := p.probe(); got != "goaway PROTOCOL_ERROR, end" {
		t.Error(got)
	}
}

func TestFirstFrameIsNotSettings(t *testing.T) {
	p := newServer(t, &echo{}, Config{})
	p.buf.WriteString(Preface)
	if got := p.probe(); got != "goaway PROTOCOL_ERROR, end" {
		t.Error(got)
	}
}

func TestNegativeWindow(t *testing.T) {
	p := newServer(t, &echo{}, Config{})
	p.hello()
	p.headers(1, false, post...)
	p.WriteData(1, false, []byte("0123456789"))
	p.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 5})
	p.WriteData(1, true, []byte("abc"))
	if got := p.probe(); got != `head 1 200, data 1 "0123456789"` {
		t.Error(got)
	}
	p.WriteWindowUpdate(1, 7) // 5-10+7 = 2
	if got := p.probe() + p.probe(); got != `data 1 "ab"` {
		t.Error(got)
	}
}

func TestTooManyStreams(t *testing.T) {
	p := newServer(t, &echo{hold: true}, Config{Streams: 2})
	p.hello()
	for id := uint32(1); id <= 5; id += 2 {
		p.headers(id, false, post...)
	}
	if got := p.probe(); got != "reset 5 REFUSED_STREAM" {
		t.Error(got)
	}
}

func TestExtendedConnect(t *testing.T) {
	p := newServer(t, &echo{}, Config{Connect: true})
	p.hello()
	p.headers(1, false, ":method", "CONNECT", ":authority", "a", ":scheme", "http", ":path", "/", ":protocol", "websocket")
	p.headers(3, false, ":method", "GET", ":authority", "a", ":scheme", "http", ":path", "/", ":protocol", "websocket")
	if got := p.probe(); got != "head 1 200, reset 3 PROTOCOL_ERROR" {
		t.Error(got)
	}
}

func TestLeave(t *testing.T) {
	e := &echo{}
	p := newServer(t, e, Config{})
	p.hello()
	p.headers(1, false, post...)
	if got := p.probe(); got != "head 1 200" {
		t.Fatal(got)
	}
	e.conn.Leave()
	p.headers(3, true, get...) // sent before the round trip has ended
	if got := p.probe(); got != "goaway NO_ERROR, head 3 200 end" {
		t.Error(got)
	}
	copied := [8]byte{}
	copy(copied[:], leavePing)
	_ = p.WritePing(true, copied)
	p.headers(5, true, get...)
	_ = p.WriteData(1, true, nil)
	if got := p.probe(); got != `goaway NO_ERROR, data 1 "" end` {
		t.Error(got)
	}
	if got := p.read(); got != "end" {
		t.Error(got)
	}
}

// TestSlowStream: a stream whose answer is not read holds up nobody else, and
// its sender stops at the window.
func TestSlowStream(t *testing.T) {
	p := newServer(t, &echo{}, Config{})
	p.hello(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 10})
	for i := range 100 {
		id := uint32(2*i + 1)
		p.headers(id, false, post...)
		p.WriteData(id, false, make([]byte, maxFrame))
		p.WriteData(id, false, make([]byte, maxFrame))
		p.WriteData(id, false, make([]byte, maxFrame))
	}
	p.headers(1001, false, post...)
	p.WriteWindowUpdate(1001, 100)
	p.WriteData(1001, true, []byte("fast"))
	if got := p.probe(); !strings.HasSuffix(got, `, head 1001 200, data 1001 "fast" end`) {
		t.Error(got[max(0, len(got)-200):])
	}
	p.WriteData(1, false, make([]byte, maxFrame)) // one byte more than the window
	if got := p.probe(); got != "reset 1 FLOW_CONTROL_ERROR" {
		t.Error(got)
	}
}
