package http2

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// asker is the owner of a connection to a server that cannot be trusted, and hears
// what comes of its requests.
type asker struct {
	conn  *Conn
	mu    sync.Mutex
	heard []string
}

func (a *asker) Accept() *Stream    { return nil }
func (a *asker) Settled()           {}
func (a *asker) Away()              {}
func (a *asker) Interrupted() error { return errMissing }

func (a *asker) hear(format string, args ...any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.heard = append(a.heard, fmt.Sprintf(format, args...))
}

func (a *asker) all() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return strings.Join(a.heard, ", ")
}

// ask sends a request, which is complete but for that of POST.
func (a *asker) ask(t testing.TB, method string) {
	t.Helper()
	if !a.conn.Reserve() {
		t.Fatal("no room for a stream")
	}
	s := &askerStream{owner: a}
	s.SetHandler(s)
	fields := []hpack.HeaderField{{Name: ":method", Value: method}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: "/"}, {Name: ":authority", Value: "a"}}
	if err := a.conn.Start(&s.Stream, fields, method == "HEAD", method != "POST"); err != nil {
		t.Fatal(err)
	}
	a.conn.Flush()
}

type askerStream struct {
	Stream
	owner *asker
}

func (s *askerStream) Head(m *Message, end bool) {
	switch {
	case m.Trailer:
		s.owner.hear("trailer%s", mark(end))
	default:
		s.owner.hear("head %d%s", m.Status, mark(end))
	}
}

func (s *askerStream) Data(p []byte, end bool) {
	s.owner.hear("data %q%s", p, mark(end))
	if s.Credit(len(p)) {
		s.conn.Touch(s.conn)
	}
}

func (s *askerStream) Sent(int)                   {}
func (s *askerStream) Unread()                    { s.owner.hear("unread") }
func (s *askerStream) Reset(code Code, err error) { s.owner.hear("reset %s", code) }

// newAsker returns a Conn that asks, and the server that it asks, which has not
// said anything yet.
func newAsker(t testing.TB) (*asker, *peer) {
	t.Helper()
	near, far := socketPair(t)
	a := &asker{}
	a.conn = New(near, Config{Owner: a})
	done := make(chan struct{})
	go func() { defer close(done); _ = a.conn.Run(nil) }()
	t.Cleanup(func() { far.Close(); <-done })
	p := newPeer(t, far)
	if _, err := io.ReadFull(far, make([]byte, len(Preface))); err != nil {
		t.Fatal(err)
	}
	return a, p
}

// answers are what a server may say to one request, what the Conn says to that
// (the request aside), and what is heard by whoever has asked.
var answers = []struct {
	name, method string
	say          func(p *peer)
	said, heard  string
}{
	{"answer", "GET", func(p *peer) { p.headers(1, false, ":status", "200"); p.WriteData(1, true, []byte("hi")) }, ``, `head 200, data "hi" end`},
	{"trailers only", "GET", func(p *peer) { p.headers(1, true, ":status", "200", "grpc-status", "5") }, ``, `head 200 end`},
	{"trailers", "GET", func(p *peer) {
		p.headers(1, false, ":status", "200")
		p.headers(1, true, "grpc-status", "5")
	}, ``, `head 200, trailer end`},
	{"interim answers", "GET", func(p *peer) {
		p.headers(1, false, ":status", "100")
		p.headers(1, false, ":status", "103", "link", "</a>")
		p.headers(1, true, ":status", "200")
	}, ``, `head 100, head 103, head 200 end`},
	{"length of an answer to HEAD", "HEAD", func(p *peer) { p.headers(1, true, ":status", "200", "content-length", "5") }, ``, `head 200 end`},
	{"length of 304", "GET", func(p *peer) { p.headers(1, true, ":status", "304", "content-length", "5") }, ``, `head 304 end`},
	{"end of an answer to HEAD behind it", "HEAD", func(p *peer) { p.headers(1, false, ":status", "200"); p.WriteData(1, true, nil) }, ``, `head 200, data "" end`},
	{"length twice", "GET", func(p *peer) {
		p.headers(1, false, ":status", "200", "content-length", "02", "content-length", "2")
		p.WriteData(1, true, []byte("hi"))
	}, ``, `head 200, data "hi" end`},

	// Malformed answers end their stream.
	{"interim that ends", "GET", func(p *peer) { p.headers(1, true, ":status", "103") }, `reset 1 PROTOCOL_ERROR`, `reset PROTOCOL_ERROR`},
	{"switching", "GET", func(p *peer) { p.headers(1, false, ":status", "101") }, `reset 1 PROTOCOL_ERROR`, `reset PROTOCOL_ERROR`},
	{"data behind an interim answer", "GET", func(p *peer) { p.headers(1, false, ":status", "103"); p.WriteData(1, true, []byte("x")) }, `reset 1 PROTOCOL_ERROR`, `head 103, reset PROTOCOL_ERROR`},
	{"data first", "GET", func(p *peer) { p.WriteData(1, true, []byte("x")) }, `reset 1 PROTOCOL_ERROR`, `reset PROTOCOL_ERROR`},
	{"no status", "GET", func(p *peer) { p.headers(1, true, "a", "b") }, `reset 1 PROTOCOL_ERROR`, `reset PROTOCOL_ERROR`},
	{"two statuses", "GET", func(p *peer) { p.headers(1, true, ":status", "200", ":status", "200") }, `reset 1 PROTOCOL_ERROR`, `reset PROTOCOL_ERROR`},
	{"status of two digits", "GET", func(p *peer) { p.headers(1, true, ":status", "20") }, `reset 1 PROTOCOL_ERROR`, `reset PROTOCOL_ERROR`},
	{"status with a sign", "GET", func(p *peer) { p.headers(1, true, ":status", "+20") }, `reset 1 PROTOCOL_ERROR`, `reset PROTOCOL_ERROR`},
	{"status below 100", "GET", func(p *peer) { p.headers(1, true, ":status", "099") }, `reset 1 PROTOCOL_ERROR`, `reset PROTOCOL_ERROR`},
	{"path in an answer", "GET", func(p *peer) { p.headers(1, true, ":status", "200", ":path", "/") }, `reset 1 PROTOCOL_ERROR`, `reset PROTOCOL_ERROR`},
	{"status behind a field", "GET", func(p *peer) { p.headers(1, true, "a", "b", ":status", "200") }, `reset 1 PROTOCOL_ERROR`, `reset PROTOCOL_ERROR`},
	{"capital", "GET", func(p *peer) { p.headers(1, true, ":status", "200", "Set-Cookie", "a") }, `reset 1 PROTOCOL_ERROR`, `reset PROTOCOL_ERROR`},
	{"CRLF", "GET", func(p *peer) { p.headers(1, true, ":status", "200", "a", "b\r\nset-cookie: c") }, `reset 1 PROTOCOL_ERROR`, `reset PROTOCOL_ERROR`},
	{"connection", "GET", func(p *peer) { p.headers(1, true, ":status", "200", "connection", "close") }, `reset 1 PROTOCOL_ERROR`, `reset PROTOCOL_ERROR`},
	{"transfer-encoding", "GET", func(p *peer) { p.headers(1, true, ":status", "200", "transfer-encoding", "chunked") }, `reset 1 PROTOCOL_ERROR`, `reset PROTOCOL_ERROR`},
	{"lengths that differ", "GET", func(p *peer) {
		p.headers(1, false, ":status", "200", "content-length", "1", "content-length", "2")
	}, `reset 1 PROTOCOL_ERROR`, `reset PROTOCOL_ERROR`},
	{"more than its length", "GET", func(p *peer) {
		p.headers(1, false, ":status", "200", "content-length", "1")
		p.WriteData(1, false, []byte("xy"))
	}, `reset 1 PROTOCOL_ERROR`, `head 200, reset PROTOCOL_ERROR`},
	{"less than its length", "GET", func(p *peer) {
		p.headers(1, false, ":status", "200", "content-length", "3")
		p.WriteData(1, true, []byte("xy"))
	}, `reset 1 PROTOCOL_ERROR`, `head 200, reset PROTOCOL_ERROR`},
	{"body of an answer to HEAD", "HEAD", func(p *peer) { p.headers(1, false, ":status", "200"); p.WriteData(1, true, []byte("x")) }, `reset 1 PROTOCOL_ERROR`, `head 200, reset PROTOCOL_ERROR`},
	{"body of 204", "GET", func(p *peer) { p.headers(1, false, ":status", "204"); p.WriteData(1, true, []byte("x")) }, `reset 1 PROTOCOL_ERROR`, `head 204, reset PROTOCOL_ERROR`},
	{"second head", "GET", func(p *peer) {
		p.headers(1, false, ":status", "200")
		p.headers(1, false, ":status", "200")
	}, `reset 1 PROTOCOL_ERROR`, `head 200, reset PROTOCOL_ERROR`},
	{"status in a trailer", "GET", func(p *peer) {
		p.headers(1, false, ":status", "200")
		p.headers(1, true, ":status", "500")
	}, `reset 1 PROTOCOL_ERROR`, `head 200, reset PROTOCOL_ERROR`},
	{"length in a trailer", "GET", func(p *peer) {
		p.headers(1, false, ":status", "200")
		p.headers(1, true, "content-length", "0")
	}, `reset 1 PROTOCOL_ERROR`, `head 200, reset PROTOCOL_ERROR`},
	{"window update of nothing", "GET", func(p *peer) { p.WriteWindowUpdate(1, 0) }, `reset 1 PROTOCOL_ERROR`, `reset PROTOCOL_ERROR`},
	{"window overflow", "POST", func(p *peer) { p.WriteWindowUpdate(1, 1<<31-1) }, `reset 1 FLOW_CONTROL_ERROR`, `reset FLOW_CONTROL_ERROR`},
	{"more than the window", "GET", func(p *peer) {
		p.headers(1, false, ":status", "200")
		for range 4 {
			p.WriteDataPadded(1, false, []byte("x"), make([]byte, 255))
		}
		p.WriteWindowUpdate(1, 1<<31-1)
	}, `reset 1 FLOW_CONTROL_ERROR`, `head 200, data "x", data "x", data "x", data "x", reset FLOW_CONTROL_ERROR`},

	// What comes for a stream that is over is nobody's.
	{"behind the end", "GET", func(p *peer) {
		p.headers(1, true, ":status", "200")
		p.headers(1, true, ":status", "500")
		p.WriteData(1, true, []byte("x"))
		p.WriteRSTStream(1, http2.ErrCodeInternal)
	}, ``, `head 200 end`},
	{"behind a reset", "GET", func(p *peer) {
		p.WriteRSTStream(1, http2.ErrCodeRefusedStream)
		p.headers(1, true, ":status", "200")
	}, ``, `reset REFUSED_STREAM`},
	{"behind its end", "POST", func(p *peer) {
		p.headers(1, true, ":status", "200")
		p.headers(1, true, "a", "b")
	}, `reset 1 STREAM_CLOSED`, `head 200 end, reset STREAM_CLOSED`},

	// Errors of the connection.
	{"stream that nobody opened", "GET", func(p *peer) { p.headers(3, true, ":status", "200") }, `goaway PROTOCOL_ERROR, end`, `reset INTERNAL_ERROR`},
	{"stream of the server", "GET", func(p *peer) { p.headers(2, true, ":status", "200") }, `goaway PROTOCOL_ERROR, end`, `reset INTERNAL_ERROR`},
	{"data of a stream that nobody opened", "GET", func(p *peer) { p.WriteData(3, true, []byte("x")) }, `goaway PROTOCOL_ERROR, end`, `reset INTERNAL_ERROR`},
	{"reset of a stream that nobody opened", "GET", func(p *peer) { p.WriteRSTStream(3, 0) }, `goaway PROTOCOL_ERROR, end`, `reset INTERNAL_ERROR`},
	{"window of a stream that nobody opened", "GET", func(p *peer) { p.WriteWindowUpdate(3, 1) }, `goaway PROTOCOL_ERROR, end`, `reset INTERNAL_ERROR`},
	{"push", "GET", func(p *peer) {
		p.WritePushPromise(http2.PushPromiseParam{StreamID: 1, PromiseID: 2, BlockFragment: p.block(get...), EndHeaders: true})
	}, `goaway PROTOCOL_ERROR, end`, `reset INTERNAL_ERROR`},
	{"push switched on", "GET", func(p *peer) { p.WriteSettings(http2.Setting{ID: http2.SettingEnablePush, Val: 1}) }, `goaway PROTOCOL_ERROR, end`, `reset INTERNAL_ERROR`},
	{"extended CONNECT taken back", "GET", func(p *peer) {
		p.WriteSettings(http2.Setting{ID: http2.SettingEnableConnectProtocol, Val: 1})
		p.WriteSettings(http2.Setting{ID: http2.SettingEnableConnectProtocol, Val: 0})
	}, `goaway PROTOCOL_ERROR, end`, `reset INTERNAL_ERROR`},
	{"goaway", "GET", func(p *peer) { p.WriteGoAway(0, 0, nil) }, `end`, `reset REFUSED_STREAM`},
	{"goaway that takes it", "GET", func(p *peer) { p.WriteGoAway(1, 0, nil); p.headers(1, true, ":status", "200") }, `end`, `head 200 end`},
}

// TestAnswers: whatever a server says, it is what HTTP/2 allows that is passed on.
func TestAnswers(t *testing.T) {
	for _, c := range answers {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			a, p := newAsker(t)
			a.ask(t, c.method)
			_ = p.WriteSettings()
			c.say(p)
			var said string
			if c.said == "end" {
				_ = p.flush()
				said = p.read()
			} else {
				said = p.probe()
			}
			request := "head 1 " + c.method + " http / a" + mark(c.method != "POST")
			if want := strings.Trim(request+", "+c.said, ", "); said != want {
				t.Errorf("it says %s\nshould be %s", said, want)
			}
			if got := a.all(); got != c.heard {
				t.Errorf("heard     %s\nshould be %s", got, c.heard)
			}
		})
	}
}

// TestAnswerFloods: a server that says nothing without end is left.
func TestAnswerFloods(t *testing.T) {
	for _, c := range []struct {
		name string
		send func(p *peer, i int)
	}{
		{"interim answers", func(p *peer, _ int) { p.headers(1, false, ":status", "103") }},
		{"answers that nobody waits for", func(p *peer, i int) {
			if i == 0 {
				p.headers(1, true, ":status", "200")
			}
			p.headers(1, true, ":status", "200")
		}},
		{"empty data", func(p *peer, i int) {
			if i == 0 {
				p.headers(1, false, ":status", "200")
			}
			p.WriteData(1, false, nil)
		}},
		{"goaway", func(p *peer, _ int) { p.WriteGoAway(maxStreamID, 0, nil) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			a, p := newAsker(t)
			a.ask(t, "GET")
			a.ask(t, "POST") // keeps the connection open
			_ = p.WriteSettings()
			said := make(chan string)
			go func() { said <- p.read() }()
			i := 0
			for ; i < 1_000_000; i++ {
				c.send(p, i)
				if p.buf.Len() > 32<<10 && p.flush() != nil {
					break
				}
			}
			got := <-said // who goes on sending may find the reason cut off by a reset
			if i == 1_000_000 || strings.Contains(got, "goaway") && !strings.HasSuffix(got, "goaway ENHANCE_YOUR_CALM, end") {
				t.Errorf("after %d: %s", i, got)
			}
		})
	}
}

// FuzzAnswers lets a server say anything.
func FuzzAnswers(f *testing.F) {
	for _, c := range answers {
		p := &peer{t: f}
		p.Framer = http2.NewFramer(&p.buf, nil)
		p.AllowIllegalWrites = true
		p.enc = hpack.NewEncoder(&p.hpk)
		_ = p.WriteSettings()
		c.say(p)
		f.Add(p.buf.Bytes())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		a, p := newAsker(t)
		a.ask(t, "GET")
		a.ask(t, "POST")
		p.buf.Write(b)
		_ = p.flush()
		_ = p.conn.(interface{ CloseWrite() error }).CloseWrite()
		for {
			if _, err := p.ReadFrame(); err != nil {
				break
			}
		}
		ended := 0
		for _, what := range strings.Split(a.all(), ", ") {
			if strings.HasPrefix(what, "reset") || strings.HasSuffix(what, " end") {
				ended++
			}
		}
		if ended < 2 {
			t.Errorf("only %d of two requests have ended: %s", ended, a.all())
		}
	})
}
