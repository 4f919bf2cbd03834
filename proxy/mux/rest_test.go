package mux

import (
	"errors"
	"io"
	"os"
	"syscall"
	"testing"
	"time"
)

// A stream that rests is served on once there is something to read: bytes, an end,
// a reset, a deadline, the end of the link.
func TestServeRests(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(p *pair, ours, theirs *Stream)
		want error
	}{
		{"bytes", func(_ *pair, ours, _ *Stream) { _, _ = ours.Write([]byte("b")) }, nil},
		{"end", func(_ *pair, ours, _ *Stream) { _ = ours.CloseWrite() }, io.EOF},
		{"reset", func(_ *pair, ours, _ *Stream) { ours.Reset() }, syscall.ECONNRESET},
		{"deadline", func(_ *pair, _, theirs *Stream) { _ = theirs.SetReadDeadline(time.Unix(1, 0)) }, os.ErrDeadlineExceeded},
		{"later deadline", func(_ *pair, _, theirs *Stream) {
			_ = theirs.SetReadDeadline(time.Now().Add(time.Millisecond))
		}, os.ErrDeadlineExceeded},
		{"link", func(p *pair, _, _ *Stream) { p.dial.t.Reset() }, syscall.ECONNRESET},
	} {
		t.Run(tt.name, func(t *testing.T) {
			resting, ended := make(chan *Stream), make(chan error, 1)
			a, b := pipe(t)
			accept := New(b, Config{Serve: func(s *Stream) Serve {
				if _, err := s.Read(make([]byte, 1)); err != nil {
					t.Error(err)
				}
				return func(s *Stream) Serve { // nothing has come yet
					_, err := s.Read(make([]byte, 1))
					ended <- err
					_ = s.Close()
					return nil
				}
			}})
			p := &pair{dial: New(a, Config{}), accept: accept, ended: make(chan error, 2)}
			for _, l := range []*Link{p.dial, p.accept} {
				go func() { p.ended <- l.Run() }()
			}
			ours := p.dial.Open()
			_, _ = ours.Write([]byte("a"))
			go func() { resting <- awaitRest(accept) }()
			tt.do(p, ours, wait(t, "the rest", resting))
			if err := wait(t, "the end of the rest", ended); !errors.Is(err, tt.want) {
				t.Errorf("it reads %v, want %v", err, tt.want)
			}
			a.Reset()
			b.Reset()
			for range 2 { // no stream is waited for in vain
				wait(t, "the link's end", p.ended)
			}
			if n := accept.served; n != 0 {
				t.Errorf("%d streams are still served", n)
			}
		})
	}
}

// awaitRest returns the link's only stream once it rests.
func awaitRest(l *Link) *Stream {
	for {
		l.mu.Lock()
		s := l.streams[1]
		l.mu.Unlock()
		if s != nil {
			s.mu.Lock()
			rests := s.next != nil
			s.mu.Unlock()
			if rests {
				return s
			}
		}
		time.Sleep(time.Millisecond)
	}
}
