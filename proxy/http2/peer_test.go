package http2

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/tulle-mesh/tulle/proxy/tcp"
)

// socketPair returns the two ends of a TCP connection on loopback.
func socketPair(t testing.TB) (*tcp.Conn, net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	far, err := net.Dial("tcp4", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	near, err := tcp.New(c.(*net.TCPConn))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { far.Close(); near.Close() })
	return near, far
}

// echo is the owner of a connection; its streams answer 200 and with what they get.
type echo struct {
	conn   *Conn
	hold   bool // answers nothing
	keep   bool // gives no room back
	mu     sync.Mutex
	heard  []string
	opened int
}

func (e *echo) Accept() *Stream {
	e.opened++
	s := &echoStream{owner: e}
	s.SetHandler(s)
	return &s.Stream
}
func (e *echo) Settled()           {}
func (e *echo) Away()              {}
func (e *echo) Interrupted() error { return errors.New("interrupted") }

func (e *echo) hear(format string, args ...any) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.heard = append(e.heard, fmt.Sprintf(format, args...))
}

type echoStream struct {
	Stream
	owner *echo
}

func (s *echoStream) Head(m *Message, end bool) {
	s.owner.hear("head %d", s.id)
	c := s.Conn()
	defer c.Touch(c)
	if s.owner.hold {
		return
	}
	if m.Trailer {
		s.SendHead(slices.Clone(m.Fields), true)
		return
	}
	if m.TooLarge {
		s.SendHead([]hpack.HeaderField{{Name: ":status", Value: "431"}}, true)
		return
	}
	s.SendHead([]hpack.HeaderField{{Name: ":status", Value: "200"}}, end)
}

func (s *echoStream) Data(p []byte, end bool) {
	c := s.Conn()
	defer c.Touch(c)
	if s.owner.hold {
		if !s.owner.keep {
			s.Credit(len(p))
		}
		return
	}
	if n := s.SendData(c, p, end); !s.owner.keep {
		s.Credit(n)
	}
}

func (s *echoStream) Sent(n int) {
	if s.Credit(n) {
		s.Conn().Flush()
	}
}

func (s *echoStream) Unread() { s.owner.hear("unread %d", s.id) }

func (s *echoStream) Reset(code Code, err error) { s.owner.hear("reset %d %s", s.id, code) }

// peer speaks raw frames to a Conn.
type peer struct {
	t    testing.TB
	conn net.Conn
	*http2.Framer
	buf bytes.Buffer
	enc *hpack.Encoder
	hpk bytes.Buffer
	dec *hpack.Decoder
}

// newServer returns a client of a Conn that serves, before it has said anything.
func newServer(t testing.TB, e *echo, conf Config) *peer {
	t.Helper()
	near, far := socketPair(t)
	conf.Server, conf.Owner = true, e
	e.conn = New(near, conf)
	done := make(chan struct{})
	go func() { defer close(done); _ = e.conn.Run(nil) }()
	t.Cleanup(func() { far.Close(); <-done })
	return newPeer(t, far)
}

func newPeer(t testing.TB, c net.Conn) *peer {
	p := &peer{t: t, conn: c}
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	p.Framer = http2.NewFramer(&p.buf, c)
	p.AllowIllegalWrites, p.AllowIllegalReads = true, true
	p.enc = hpack.NewEncoder(&p.hpk)
	p.dec = hpack.NewDecoder(4096, nil)
	return p
}

// hello sends the preface and SETTINGS.
func (p *peer) hello(settings ...http2.Setting) {
	p.buf.WriteString(Preface)
	_ = p.WriteSettings(settings...)
}

// flush sends what was written.
func (p *peer) flush() error {
	_, err := p.conn.Write(p.buf.Bytes())
	p.buf.Reset()
	return err
}

// settle shows on what the Conn says until it has nothing more to say.
func (p *peer) settle(on func(http2.Frame)) {
	p.t.Helper()
	_ = p.WritePing(false, [8]byte{1})
	if err := p.flush(); err != nil {
		p.t.Fatal(err)
	}
	for {
		f, err := p.ReadFrame()
		if err != nil {
			p.t.Fatal(err)
		}
		if _, ok := f.(*http2.PingFrame); ok {
			return
		}
		on(f)
	}
}

// block encodes fields given as name, value, …
func (p *peer) block(fields ...string) []byte {
	p.hpk.Reset()
	for i := 0; i+1 < len(fields); i += 2 {
		_ = p.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return slices.Clone(p.hpk.Bytes())
}

var get = []string{":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a"}
var post = []string{":method", "POST", ":scheme", "http", ":path", "/", ":authority", "a"}

func (p *peer) headers(id uint32, end bool, fields ...string) {
	_ = p.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: p.block(fields...), EndStream: end, EndHeaders: true})
}

// read returns what the Conn says up to the answer to a PING or its end, in short.
func (p *peer) read() string {
	var log []string
	for {
		f, err := p.ReadFrame()
		if err != nil {
			return strings.Join(append(log, "end"), ", ")
		}
		switch f := f.(type) {
		case *http2.PingFrame:
			if f.IsAck() && f.Data == [8]byte{'p', 'r', 'o', 'b', 'e'} {
				return strings.Join(log, ", ")
			}
		case *http2.SettingsFrame, *http2.WindowUpdateFrame:
		case *http2.GoAwayFrame:
			log = append(log, fmt.Sprint("goaway ", f.ErrCode))
		case *http2.RSTStreamFrame:
			log = append(log, fmt.Sprintf("reset %d %s", f.StreamID, f.ErrCode))
		case *http2.DataFrame:
			log = append(log, fmt.Sprintf("data %d %q%s", f.StreamID, f.Data(), mark(f.StreamEnded())))
		case *http2.HeadersFrame:
			log = append(log, fmt.Sprintf("head %d %s%s", f.StreamID, p.decode(f.HeaderBlockFragment()), mark(f.StreamEnded())))
		default:
			log = append(log, f.Header().Type.String())
		}
	}
}

func (p *peer) decode(b []byte) string {
	list, err := p.dec.DecodeFull(b)
	if err != nil {
		return err.Error()
	}
	var out []string
	for _, f := range list {
		out = append(out, f.Value)
	}
	return strings.Join(out, " ")
}

func mark(end bool) string {
	if end {
		return " end"
	}
	return ""
}

// probe asks for an answer that comes behind all others.
func (p *peer) probe() string {
	_ = p.WritePing(false, [8]byte{'p', 'r', 'o', 'b', 'e'})
	if err := p.flush(); err != nil {
		p.t.Log(err)
	}
	return p.read()
}
