package tcp

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// restPair returns both ends of a connection; ours is the one to be tested.
func restPair(t *testing.T) (ours *Conn, theirs *net.TCPConn) {
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
	if ours, err = New(accepted.(*net.TCPConn)); err != nil {
		t.Fatal(err)
	}
	theirs = dialled.(*net.TCPConn)
	_ = theirs.SetDeadline(time.Now().Add(30 * time.Second))
	t.Cleanup(func() { _ = ours.Close(); _ = theirs.Close() })
	return ours, theirs
}

func rest(t *testing.T, c *Conn) {
	t.Helper()
	if !c.Rest() || !c.Resting() {
		t.Fatal("it does not rest")
	}
}

// awaitNews waits until something else than silence can be read.
func awaitNews(t *testing.T, c *Conn) {
	t.Helper()
	if err := c.Control(func(fd uintptr) {
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN | unix.POLLRDHUP}}, 30_000)
	}); err != nil {
		t.Fatal(err)
	}
}

func TestRestGoesOn(t *testing.T) {
	ours, theirs := restPair(t)
	b := make([]byte, 4)
	for _, word := range []string{"ping", "pong", "done"} {
		rest(t, ours)
		rest(t, ours) // twice is once
		if !ours.Quiet() || ours.Ended() {
			t.Error("it is not quiet")
		}
		_, _ = io.WriteString(theirs, word)
		awaitNews(t, ours)
		if ours.Quiet() || ours.Ended() || ours.Queued() != len(word) || !ours.Resting() {
			t.Errorf("%d bytes, quiet %v, ended %v, resting %v", ours.Queued(), ours.Quiet(), ours.Ended(), ours.Resting())
		}
		if _, err := io.ReadFull(ours, b); err != nil || string(b) != word {
			t.Fatalf("read %q, %v", b, err)
		}
		rest(t, ours)
		if _, err := io.WriteString(ours, word); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(theirs, b); err != nil || string(b) != word {
			t.Fatalf("the peer read %q, %v", b, err)
		}
	}
	_ = ours.SetReadDeadline(time.Unix(1, 0))
	if _, err := ours.Read(b); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("reading after a deadline: %v", err)
	}
	rest(t, ours)
	if err := ours.CloseWrite(); err != nil {
		t.Error(err)
	}
	if _, err := theirs.Read(b); err != io.EOF {
		t.Errorf("the peer of a half-closed connection reads %v", err)
	}
	_ = theirs.CloseWrite()
	if buf, _, err := ours.Next(0, Small); err != io.EOF {
		t.Errorf("after the end: %v, %v", buf, err)
	}
}

// What is unread would be forgotten.
func TestRestNotWithBytesAhead(t *testing.T) {
	ours, _ := restPair(t)
	ours.Unread(NewBuffer(Small), 0, 4)
	if ours.Rest() || ours.Resting() {
		t.Error("it rests")
	}
	ours.DropAhead()
}

func TestRestEnds(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(ours *Conn, theirs *net.TCPConn)
		want error // what the other side reads then; nil: ours does, an end
	}{
		{"closed", func(ours *Conn, _ *net.TCPConn) { _ = ours.Close() }, io.EOF},
		{"reset", func(ours *Conn, _ *net.TCPConn) { ours.Reset() }, syscall.ECONNRESET},
		{"closed by the peer", func(_ *Conn, theirs *net.TCPConn) { _ = theirs.Close() }, nil},
		{"reset by the peer", func(_ *Conn, theirs *net.TCPConn) { _ = theirs.SetLinger(0); _ = theirs.Close() }, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ours, theirs := restPair(t)
			rest(t, ours)
			tt.end(ours, theirs)
			if tt.want == nil {
				awaitNews(t, ours)
				if !ours.Ended() || ours.Quiet() {
					t.Error("it has not noticed")
				}
				if err := ours.Close(); err != nil {
					t.Error(err)
				}
			} else if _, err := theirs.Read(make([]byte, 1)); !errors.Is(err, tt.want) {
				t.Errorf("the peer reads %v, want %v", err, tt.want)
			}
			if ours.Rest() || ours.Quiet() || !ours.Ended() {
				t.Error("it lives on")
			}
			if err := ours.Close(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("closing it again: %v", err)
			}
			if _, err := ours.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
				t.Errorf("reading: %v", err)
			}
		})
	}
}
