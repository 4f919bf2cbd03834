package mux

import (
	"bytes"
	"io"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/tulle-mesh/tulle/proxy/tcp"
)

// script is a transport on which a peer says what it was told to, and that
// swallows what it is sent.
type script struct{ said *bytes.Reader }

func (s script) Next(room, size int) (*tcp.Buffer, int, error) {
	buf := tcp.NewBuffer(size)
	n, err := s.said.Read(buf.B[room:size])
	if err != nil {
		buf.Free()
		return nil, 0, err
	}
	return buf, n, nil
}

func (s script) Read(p []byte) (int, error)        { return s.said.Read(p) }
func (s script) Offer(p []byte) (int, bool, error) { return len(p), true, nil }
func (s script) Write(p []byte) (int, error)       { return len(p), nil }
func (s script) CloseWrite() error                 { return nil }
func (s script) Close() error                      { return nil }
func (s script) Reset()                            {}
func (s script) SetReadDeadline(time.Time) error   { return nil }
func (s script) SetWriteDeadline(time.Time) error  { return nil }
func frame(kind frameType, id uint32, p ...byte) []byte {
	return append(appendHeader(nil, kind, len(p), id), p...)
}

func data(id uint32, n int) []byte { return frame(frameData, id, make([]byte, n)...) }

// TestMalformed says what a proxy never says.
func TestMalformed(t *testing.T) {
	for _, c := range []struct {
		name  string
		said  []byte
		dials bool // it is said to the dialling side
	}{
		{"unknown frame", frame(9, 1), false},
		{"frame zero", make([]byte, 8), false},
		{"data without a byte", frame(frameData, 1), false},
		{"too much data", data(1, maxPayload+1), false},
		{"fin with a payload", slices.Concat(data(1, 1), frame(frameFIN, 1, 0)), false},
		{"reset without a reason", slices.Concat(data(1, 1), frame(frameReset, 1)), false},
		{"reset for no reason", slices.Concat(data(1, 1), frame(frameReset, 1, 3)), false},
		{"short window", slices.Concat(data(1, 1), frame(frameWindow, 1, 0, 0, 1)), false},
		{"window of nothing", slices.Concat(data(1, 1), frame(frameWindow, 1, 0, 0, 0, 0)), false},
		{"window of too much", slices.Concat(data(1, 1), frame(frameWindow, 1, 0, maxWindow>>16, 0, 0)), false},
		{"huge window", slices.Concat(data(1, 1), frame(frameWindow, 1, 255, 255, 255, 255)), false},
		{"leave of a stream", frame(frameLeave, 1), false},
		{"stream zero", slices.Concat(data(1, 1), frame(frameReset, 7, 0)), false},
		{"a stream left out", data(2, 1), false},
		{"a stream opened by its end", frame(frameFIN, 1), false},
		{"data after the end", slices.Concat(data(1, 1), frame(frameFIN, 1), data(1, 1)), false},
		{"more than was asked for", bytes.Repeat(data(1, maxPayload), window/maxPayload+1), false},
		{"a stream opened by the accepting side", data(1, 1), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			release := make(chan struct{})
			conf := Config{Serve: toTheEnd(func(*Stream) { <-release })}
			if c.dials {
				conf = Config{}
			}
			l := New(script{bytes.NewReader(c.said)}, conf)
			go func() { // Run waits for what it serves
				for {
					l.mu.Lock()
					dead := l.dead
					l.mu.Unlock()
					if dead != nil {
						close(release)
						return
					}
					runtime.Gosched()
				}
			}()
			if err := l.Run(); err == io.EOF {
				t.Error("it was taken")
			}
		})
	}
}

// TestTinyFrames sends as much as a stream takes, a byte at a time.
func TestTinyFrames(t *testing.T) {
	l := New(script{bytes.NewReader(bytes.Repeat(data(1, 1), window))}, Config{Serve: toTheEnd(func(s *Stream) {
		for {
			s.mu.Lock()
			held, ended := 0, s.ended != nil
			for _, c := range s.came {
				held += len(c.buf.B)
			}
			s.mu.Unlock()
			if held > 2*window {
				t.Errorf("%d bytes are held", held)
				return
			}
			if ended {
				return
			}
			runtime.Gosched()
		}
	})})
	if err := l.Run(); err != io.EOF {
		t.Error(err)
	}
}

// FuzzFrames lets a peer say anything to either side.
func FuzzFrames(f *testing.F) {
	f.Add(false, slices.Concat(data(1, 5), frame(frameFIN, 1), data(2, 3), frame(frameReset, 2, 0), frame(frameLeave, 0)))
	f.Add(true, slices.Concat(frame(frameWindow, 1, 0, 0, 0, 5), frame(frameLeave, 0)))
	f.Add(false, data(1, maxPayload))
	f.Fuzz(func(t *testing.T, dials bool, said []byte) {
		conf := Config{Serve: toTheEnd(func(s *Stream) {
			_, _ = io.Copy(io.Discard, s)
			_, _ = s.Write([]byte("x"))
			_ = s.Close()
		})}
		if dials {
			conf.Serve = nil
		}
		l := New(script{bytes.NewReader(said)}, conf)
		var s *Stream
		if dials {
			s = l.Open()
			_, _ = s.Write([]byte("x"))
		}
		_ = l.Run()
		if s != nil {
			_, _ = io.Copy(io.Discard, s)
		}
		if l.Open() != nil {
			t.Error("a stream could be opened on a link that has ended")
		}
	})
}
