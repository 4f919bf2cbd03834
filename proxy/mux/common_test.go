package mux

import (
	"net"
	"sync"
	"testing"
	"time"

	"github.com/tulle-mesh/tulle/proxy/tcp"
)

// pipe returns both ends of a TCP connection over loopback.
func pipe(t testing.TB) (a, b *tcp.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	dialled, err := net.Dial("tcp4", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	ends := make([]*tcp.Conn, 0, 2)
	for _, c := range []net.Conn{dialled, accepted} {
		end, err := tcp.New(c.(*net.TCPConn))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { end.Reset() })
		ends = append(ends, end)
	}
	return ends[0], ends[1]
}

// pair is both sides of a link; what the accepting one serves is told to serve.
type pair struct {
	dial, accept *Link
	ended        chan error // of dial, then of accept, in any order
	left         chan struct{}
}

func newPair(t testing.TB, serve func(*Stream)) *pair {
	t.Helper()
	a, b := pipe(t)
	p := &pair{ended: make(chan error, 2), left: make(chan struct{})}
	var once sync.Once
	p.dial = New(a, Config{Left: func() { once.Do(func() { close(p.left) }) }})
	p.accept = New(b, Config{Serve: toTheEnd(serve)})
	var running sync.WaitGroup
	for _, l := range []*Link{p.dial, p.accept} {
		running.Go(func() { p.ended <- l.Run() })
	}
	t.Cleanup(func() {
		a.Reset()
		b.Reset()
		running.Wait()
	})
	return p
}

// toTheEnd serves a stream without a pause.
func toTheEnd(serve func(*Stream)) Serve {
	return func(s *Stream) Serve { serve(s); return nil }
}

// echo sends back what comes, up to its end.
func echo(s *Stream) {
	defer s.Close()
	b := make([]byte, 20_000)
	for {
		n, err := s.Read(b)
		if err != nil {
			_ = s.CloseWrite()
			return
		}
		if _, err := s.Write(b[:n]); err != nil {
			return
		}
	}
}

const patience = 30 * time.Second

// wait fails the test if c does not become ready.
func wait[T any](t *testing.T, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("%s: not within %v", what, patience)
	}
	panic("not reached")
}
