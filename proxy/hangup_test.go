package proxy

import (
	"net"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tulle-mesh/tulle/proxy/mux"
	"github.com/tulle-mesh/tulle/proxy/tcp"
)

// A connection may be watched again after a watch was forgotten: each stream
// that it carries does so.
func TestHangupsWatchAgain(t *testing.T) {
	p := newTestProxy(t, newTestAuthority(t), "web", false)
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	far, err := net.Dial("tcp4", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := tcp.New(accepted.(*net.TCPConn))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	first := p.hangups.watch(conn, func(uint32) { t.Error("a forgotten watch was called") })
	p.hangups.forget(first)
	kinds := make(chan uint32, 4)
	defer p.hangups.forget(p.hangups.watch(conn, func(kind uint32) { kinds <- kind }))
	far.(*net.TCPConn).SetLinger(0)
	far.Close()
	select {
	case kind := <-kinds:
		if kind != hangupReset {
			t.Errorf("kind %d, want a reset", kind)
		}
	case <-time.After(10 * time.Second):
		t.Error("nobody heard of the reset")
	}
}

// halfCloser is a session's connection that takes note of its half-close.
type halfCloser struct {
	net.Conn
	closed func()
}

func (h *halfCloser) CloseWrite() error { h.closed(); return nil }

// A session that nobody waits on any more is another client's: a hang-up that is
// being passed on to it must have arrived before that.
func TestHangupIsPassedOnInTime(t *testing.T) {
	var c httpConn
	var stopped atomic.Bool
	ended := make(chan struct{})
	passed := false
	c.waitFor(&session{conn: &halfCloser{closed: func() {
		go func() {
			defer close(ended)
			c.stopWaiting()
			stopped.Store(true)
		}()
		for range 1000 {
			runtime.Gosched()
		}
		passed = true
		if stopped.Load() {
			t.Error("the session was given back first")
		}
	}}})
	c.hop = new(mux.Stream) // or c.tcp would be asked what it has queued
	c.hungUp(hangupFIN)
	<-ended
	if !passed {
		t.Error("it was not passed on")
	}
}
