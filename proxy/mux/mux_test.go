package mux

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"
)

func TestManyStreams(t *testing.T) {
	p := newPair(t, echo)
	var running sync.WaitGroup
	for i := range MaxStreams {
		running.Go(func() {
			s := p.dial.Open()
			if s == nil {
				t.Error("no room for a stream")
				return
			}
			defer s.Close()
			want := make([]byte, 100_000+i*1000)
			source := rand.NewChaCha8([32]byte{byte(i)})
			_, _ = source.Read(want)
			go func() {
				for rest := want; len(rest) > 0; {
					n := min(len(rest), 1+i*300)
					if _, err := s.Write(rest[:n]); err != nil {
						t.Errorf("write: %v", err)
						return
					}
					rest = rest[n:]
				}
				_ = s.CloseWrite()
			}()
			if got, err := io.ReadAll(s); err != nil || !bytes.Equal(got, want) {
				t.Errorf("stream %d: %d bytes, %v; want %d", i, len(got), err, len(want))
			}
		})
	}
	running.Wait()
	if n := p.dial.Streams(); n != 0 {
		t.Errorf("%d streams are left", n)
	}
}

func TestRoomForStreams(t *testing.T) {
	p := newPair(t, echo)
	var all []*Stream
	for range MaxStreams {
		all = append(all, p.dial.Open())
	}
	if p.dial.Open() != nil {
		t.Error("there was room for one more")
	}
	_ = all[0].Close()
	if p.dial.Open() == nil {
		t.Error("there was no room for another one")
	}
}

// TestSlowReader fills one stream, which must not be in another one's way.
func TestSlowReader(t *testing.T) {
	stuck := make(chan *Stream, 1)
	p := newPair(t, func(s *Stream) {
		var first [1]byte
		if _, err := io.ReadFull(s, first[:]); err != nil {
			return
		}
		if first[0] == 's' {
			stuck <- s
			return
		}
		echo(s)
	})
	slow, quick := p.dial.Open(), p.dial.Open()
	const size = 10 * window
	written := make(chan error, 1)
	go func() {
		_, err := slow.Write(append([]byte{'s'}, make([]byte, size)...))
		written <- err
	}()
	reader := wait(t, "the slow stream", stuck)
	if _, err := quick.Write([]byte{'q'}); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1000)
	for range 1000 {
		if _, err := quick.Write(b); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(quick, b); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case err := <-written:
		t.Fatalf("all was written, though nothing was read: %v", err)
	default:
	}
	if n, err := io.CopyN(io.Discard, reader, size); err != nil {
		t.Fatalf("after %d bytes: %v", n, err)
	}
	if err := wait(t, "the slow write", written); err != nil {
		t.Error(err)
	}
}

func TestHalfClose(t *testing.T) {
	p := newPair(t, func(s *Stream) {
		defer s.Close()
		all, err := io.ReadAll(s)
		if err != nil {
			t.Errorf("read: %v", err)
		}
		_, _ = s.Write(append([]byte("got "), all...))
	})
	s := p.dial.Open()
	_, _ = s.Write([]byte("all of it"))
	_ = s.CloseWrite()
	if got, err := io.ReadAll(s); err != nil || string(got) != "got all of it" {
		t.Errorf("%q, %v", got, err)
	}
	if s.Quiet() {
		t.Error("an ended stream is said to be open")
	}
	if _, err := s.Write([]byte("more")); err == nil {
		t.Error("written after the end")
	}
}

// TestReset tears a stream down from either side, while both ends wait.
func TestReset(t *testing.T) {
	for _, serving := range []bool{false, true} {
		other := make(chan *Stream, 1)
		done := make(chan struct{})
		p := newPair(t, func(s *Stream) {
			other <- s
			<-done
		})
		s := p.dial.Open()
		_, _ = s.Write([]byte("x"))
		far := wait(t, "the stream", other)
		var first [1]byte
		if _, err := far.Read(first[:]); err != nil {
			t.Fatal(err)
		}
		here, there := s, far
		if serving {
			here, there = far, s
		}
		hungUp, read := make(chan bool, 1), make(chan error, 1)
		there.Watch(func(reset bool) { hungUp <- reset })
		go func() {
			_, _, _, err := there.Next()
			read <- err
		}()
		here.Reset()
		if err := wait(t, "the reader", read); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the reader got %v", err)
		}
		if !wait(t, "the watch", hungUp) {
			t.Error("the reset was taken for an end")
		}
		if _, err := there.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the writer got %v", err)
		}
		if _, err := here.Read(first[:]); err == nil {
			t.Error("a reset stream could be read")
		}
		close(done)
		again := p.dial.Open()
		if again == nil {
			t.Fatal("the link ended with the stream")
		}
		again.Reset() // the peer has not heard of it
		if !p.dial.Alive() || p.dial.Streams() != 0 {
			t.Errorf("alive %t, %d streams", p.dial.Alive(), p.dial.Streams())
		}
	}
}

// TestClosed sends to a stream whose other side is not interested any more.
func TestClosed(t *testing.T) {
	p := newPair(t, func(s *Stream) {
		_, _ = s.Write([]byte("enough"))
		_ = s.Close()
	})
	s := p.dial.Open()
	_, _ = s.Write([]byte("x"))
	ended := make(chan error, 1)
	go func() {
		for {
			if _, err := s.Write(make([]byte, 1000)); err != nil {
				ended <- err
				return
			}
		}
	}()
	if err := wait(t, "the writer", ended); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the writer got %v", err)
	}
}

func TestDeadline(t *testing.T) {
	p := newPair(t, echo)
	s := p.dial.Open()
	_, _ = s.Write([]byte("x"))
	b := make([]byte, 1)
	if _, err := s.Read(b); err != nil {
		t.Fatal(err)
	}
	for _, at := range []time.Time{time.Unix(1, 0), time.Now().Add(time.Millisecond)} {
		_ = s.SetReadDeadline(at)
		if _, err := s.Read(b); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("with a deadline of %v: %v", at, err)
		}
		_ = s.SetReadDeadline(time.Time{})
		_, _ = s.Write([]byte("y"))
		if _, err := s.Read(b); err != nil || b[0] != 'y' {
			t.Errorf("after it: %q, %v", b, err)
		}
	}
}

func TestQuiet(t *testing.T) {
	p := newPair(t, echo)
	s := p.dial.Open()
	if !s.Quiet() {
		t.Error("a new stream is not")
	}
	_, _ = s.Write([]byte("xy"))
	b := make([]byte, 1)
	if _, err := s.Read(b); err != nil {
		t.Fatal(err)
	}
	if s.Quiet() {
		t.Error("one with something to read is")
	}
	if _, err := s.Read(b); err != nil || !s.Quiet() {
		t.Errorf("one that has been read is not: %v", err)
	}
}

// TestLeave ends a link from either side, with a stream under way.
func TestLeave(t *testing.T) {
	for _, accepting := range []bool{false, true} {
		p := newPair(t, echo)
		s := p.dial.Open()
		_, _ = s.Write([]byte("x"))
		b := make([]byte, 1)
		if _, err := s.Read(b); err != nil {
			t.Fatal(err)
		}
		if accepting {
			p.accept.Leave()
			wait(t, "the request to leave", p.left)
		} else {
			p.dial.Leave()
		}
		if p.dial.Open() != nil || p.dial.Alive() {
			t.Error("streams can be opened on a link that is left")
		}
		for range 100 {
			_, _ = s.Write([]byte("z"))
			if _, err := s.Read(b); err != nil || b[0] != 'z' {
				t.Fatalf("the stream does not go on: %q, %v", b, err)
			}
		}
		_ = s.Close()
		wait(t, "the end of one side", p.ended)
		wait(t, "the end of the other side", p.ended)
	}
}

// TestLeaveWithAReset: the last word of a link that is left may be a reset, which
// must not read like an end in peace.
func TestLeaveWithAReset(t *testing.T) {
	for range 50 {
		left := make(chan struct{})
		p := newPair(t, func(s *Stream) {
			_, _ = s.Write([]byte("x"))
			<-left
			s.Reset()
		})
		s := p.dial.Open()
		_, _ = s.Write([]byte("x"))
		if _, err := s.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		p.accept.Leave()
		wait(t, "the request to leave", p.left)
		for p.accept.stillWanted() {
			runtime.Gosched()
		}
		close(left)
		if _, err := s.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("the reset reads as %v", err)
		}
		wait(t, "the end of one side", p.ended)
		wait(t, "the end of the other side", p.ended)
	}
}

// stillWanted tells whether the peer has yet to agree that the link is left.
func (l *Link) stillWanted() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.left
}

// TestTooLate opens streams and writes to them only once their link has been left,
// or has ended: nobody sees a byte, and their reader is told.
func TestTooLate(t *testing.T) {
	for name, end := range map[string]func(p *pair){
		"left by the peer": func(p *pair) { p.accept.Leave(); wait(t, "the request to leave", p.left) },
		"left":             func(p *pair) { p.dial.Leave() },
		"lost":             func(p *pair) { p.accept.t.Reset(); wait(t, "one end", p.ended); wait(t, "the other end", p.ended) },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, func(s *Stream) {
				t.Error("served")
				_ = s.Close()
			})
			s := p.dial.Open()
			end(p)
			if _, err := s.Write([]byte("x")); !errors.Is(err, ErrRefused) {
				t.Errorf("writing: %v", err)
			}
			if _, err := s.Read(make([]byte, 1)); !errors.Is(err, ErrRefused) {
				t.Errorf("reading: %v", err)
			}
			_ = s.Close()
		})
	}
}

// TestLost tears the connection down under the streams.
func TestLost(t *testing.T) {
	began, served := make(chan struct{}), make(chan error, 1)
	p := newPair(t, func(s *Stream) {
		close(began)
		_, err := io.ReadAll(s)
		served <- err
	})
	s := p.dial.Open()
	_, _ = s.Write(make([]byte, window)) // no room for more
	stuck := make(chan error, 1)
	go func() {
		_, err := s.Write(make([]byte, 100*window))
		stuck <- err
	}()
	wait(t, "the stream", began)
	p.accept.t.Reset()
	wait(t, "the accepting side", p.ended)
	wait(t, "the dialling side", p.ended)
	if err := wait(t, "what was served", served); err == nil {
		t.Error("it was taken for an end")
	}
	if err := wait(t, "the writer", stuck); err == nil {
		t.Error("all was written")
	}
	if _, err := s.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("the reader got %v", err)
	}
	if p.dial.Open() != nil {
		t.Error("a stream could be opened")
	}
}

// TestBusy opens streams and resets them faster than they are served.
func TestBusy(t *testing.T) {
	release := make(chan struct{})
	p := newPair(t, func(s *Stream) {
		<-release
		echo(s)
	})
	for range maxServing {
		s := p.dial.Open()
		_, _ = s.Write([]byte("x"))
		s.Reset()
	}
	s := p.dial.Open()
	_, _ = s.Write([]byte("x"))
	if _, err := s.Read(make([]byte, 1)); !errors.Is(err, ErrRefused) {
		t.Errorf("one more was served: %v", err)
	}
	close(release)
	for {
		s := p.dial.Open()
		_, _ = s.Write([]byte("x"))
		_, err := s.Read(make([]byte, 1))
		_ = s.Close()
		if err == nil {
			break
		}
		if !errors.Is(err, ErrRefused) {
			t.Fatal(err)
		}
	}
}

// TestRefuse ends a stream that rests: the answer before that arrives, and what is
// sent behind it was seen by nobody.
func TestRefuse(t *testing.T) {
	served, ended := make(chan *Stream, 1), make(chan struct{})
	p := newPair(t, func(s *Stream) {
		served <- s
		<-ended
	})
	s := p.dial.Open()
	b := make([]byte, 8)
	_, _ = s.Write([]byte("question"))
	far := wait(t, "the stream", served)
	if _, err := io.ReadAtLeast(far, b[:4], 4); err != nil {
		t.Fatal(err)
	}
	if far.Refuse() {
		t.Error("it was refused with something to read")
	}
	if _, err := io.ReadFull(far, b[4:]); err != nil || string(b) != "question" {
		t.Fatalf("%q, %v", b, err)
	}
	_, _ = far.Write([]byte("answer"))
	if !far.Refuse() {
		t.Fatal("it was not refused")
	}
	for p.dial.Streams() > 0 { // until it is heard of
		runtime.Gosched()
	}
	if _, err := s.Write([]byte("another")); !errors.Is(err, ErrRefused) {
		t.Errorf("writing: %v", err)
	}
	if got, err := io.ReadAll(s); string(got) != "answer" || !errors.Is(err, ErrRefused) {
		t.Errorf("read %q, %v", got, err)
	}
	if s.Quiet() {
		t.Error("it is said to be open")
	}
	_ = s.Close()
	close(ended)
	if again := p.dial.Open(); again == nil {
		t.Error("the link ended with the stream")
	}
}

// TestAllocations holds a small exchange to no allocation.
func TestAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	s := newPair(t, echo).dial.Open()
	b := make([]byte, 300)
	exchange := func() {
		_, _ = s.Write(b)
		if _, err := io.ReadFull(s, b); err != nil {
			t.Fatal(err)
		}
	}
	exchange()
	if n := testing.AllocsPerRun(2000, exchange); n > 0 {
		t.Errorf("%v allocations per exchange", n)
	}
}
