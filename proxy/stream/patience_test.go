package stream

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// newQuietPair returns the accepting side of an open stream whose peer reads
// all and says nothing more.
func newQuietPair(t *testing.T) (c *Conn, end func()) {
	t.Helper()
	ours, theirs := net.Pipe()
	go func() {
		_, _ = io.WriteString(theirs, openFrame(testClient))
		_, _ = io.Copy(io.Discard, theirs)
	}()
	c = New(ours, func() { ours.Close() })
	if _, err := c.Next(); err != nil {
		t.Fatal(err)
	}
	return c, func() { ours.Close(); theirs.Close() }
}

func TestNoAnswerIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer theirs.Close()
		go func() { _, _ = io.Copy(io.Discard, theirs) }()
		c := New(ours, func() { ours.Close() })
		if err := c.Open(testClient, []byte("x"), nil); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		err := c.Accepted()
		if !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(begin) != answerPatience {
			t.Errorf("Accepted: %v after %v, want a timeout after %v", err, time.Since(begin), answerPatience)
		}
		if c.Finish(make([]byte, 10)) {
			t.Error("used again: a late answer would be taken for the next stream's")
		}
	})
}

// The limit on the answer is no limit on the stream.
func TestSilenceAfterTheAnswerIsNotBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		dial, accept := New(a, func() { a.Close() }), New(b, func() { b.Close() })
		go func() {
			if _, err := accept.Next(); err != nil {
				t.Error(err)
			}
			_ = accept.Accept()
			time.Sleep(24 * time.Hour)
			_, _ = accept.Write([]byte("good morning"))
			_ = accept.CloseWrite()
		}()
		if err := dial.Open(testClient, nil, nil); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(dial); err != nil || string(got) != "good morning" {
			t.Errorf("read %q, %v", got, err)
		}
		a.Close()
		b.Close()
	})
}

// Who has reset a stream does not wait for ever for a peer that does not react.
func TestReaderEndsSoonAfterAbort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, end := newQuietPair(t)
		defer end()
		begin := time.Now()
		time.AfterFunc(time.Minute, c.Abort)
		_, err := c.Read(make([]byte, 10))
		if err == nil || time.Since(begin) > time.Minute+abortPatience+drainPatience {
			t.Errorf("Read: %v after %v", err, time.Since(begin))
		}
		if c.Finish(make([]byte, 10)) {
			t.Error("fit for another stream")
		}
	})
}

// A peer that takes no bytes can't hold up an Abort.
func TestAbortIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer theirs.Close()
		go func() { _, _ = io.WriteString(theirs, openFrame(testClient)) }() // and never reads
		killed := false
		c := New(ours, func() { killed = true; ours.Close() })
		if _, err := c.Next(); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		c.Abort()
		if took := time.Since(begin); took > abortPatience || !killed {
			t.Errorf("took %v, torn down: %v", took, killed)
		}
	})
}

func TestFinishRestoresDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		dial, accept := New(a, func() { a.Close() }), New(b, func() { b.Close() })
		served := make(chan struct{})
		go func() {
			defer close(served)
			for range 2 {
				if _, err := accept.Next(); err != nil {
					t.Error(err)
					return
				}
				_ = accept.Accept()
				_, err := accept.Read(make([]byte, 10))
				if !errors.Is(err, ErrReset) {
					t.Errorf("Read: %v, want %v", err, ErrReset)
				}
				if !accept.Finish(make([]byte, 10)) {
					t.Error("not fit")
				}
			}
		}()
		for range 2 {
			if err := dial.Open(testClient, nil, nil); err != nil {
				t.Fatal(err)
			}
			if err := dial.Accepted(); err != nil {
				t.Fatal(err)
			}
			if !dial.Finish(make([]byte, 10)) {
				t.Fatal("not fit")
			}
			time.Sleep(time.Hour) // longer than any deadline that was set
		}
		<-served
		a.Close()
		b.Close()
	})
}
