package identity

import (
	"errors"
	"io"
	"net"
	"testing"
)

func TestListenBoundsConnectionsOfOneAddress(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := Listen(inner)
	accepted := make(chan net.Conn, maxConnsPerAddr+1)
	go func() {
		defer close(accepted)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- conn
		}
	}()
	dial := func() net.Conn {
		t.Helper()
		conn, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	var server net.Conn
	for range maxConnsPerAddr {
		dial()
		server = <-accepted
		defer server.Close()
	}
	if _, err := dial().Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("one too many: %v, want it closed", err)
	}
	server.Close()
	server.Close() // twice makes no more room than once
	dial()
	defer (<-accepted).Close()
	if _, err := dial().Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("one too many again: %v, want it closed", err)
	}
	inner.Close()
	for range accepted {
		t.Error("one connection too many was accepted")
	}
	if b := l.(*boundedListener); b.total != maxConnsPerAddr || len(b.open) != 1 {
		t.Errorf("%d connections of %d addresses are counted", b.total, len(b.open))
	}
}
