package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/tulle-mesh/tulle/proxy/mux"
	"github.com/tulle-mesh/tulle/proxy/tcp"
)

// TestDrainDeliversAnswers lets the server's proxy drain while the application
// works on requests of one link.
func TestDrainDeliversAnswers(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	const clients = 20
	var asked sync.WaitGroup
	asked.Add(clients)
	answer := make(chan struct{})
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Done()
		<-answer
		_, _ = io.WriteString(w, "the answer")
	})}
	go server.Serve(ln)
	t.Cleanup(func() { server.Close() })
	pair := newTestPair(t, ln.Addr(), false)
	results := make(chan error, clients)
	for i := range clients {
		go func() { results <- askOnce(pair.addr, i) }()
	}
	asked.Wait()
	drained := make(chan struct{})
	go func() {
		pair.server.conns.drain(30 * time.Second)
		close(drained)
	}()
	for !pair.server.draining() {
		time.Sleep(time.Millisecond)
	}
	close(answer)
	for range clients {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	select {
	case <-drained:
	case <-time.After(20 * time.Second):
		t.Error("the server's proxy still drains")
	}
}

func askOnce(addr string, i int) error {
	c, err := net.Dial("tcp4", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	fmt.Fprintf(c, "GET /%d HTTP/1.1\r\nHost: server\r\n\r\n", i)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return err
	}
	if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "the answer" {
		return fmt.Errorf("%s: %q, %v", resp.Status, b, err)
	}
	return nil
}

// TestDeadLink opens sessions on a link whose end its reader has not heard of.
func TestDeadLink(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	near, err := net.Dial("tcp4", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := tcp.New(near.(*net.TCPConn))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	k := &link{Link: mux.New(conn, mux.Config{}), tcp: conn}
	l := &links{open: []*link{k}}
	for _, a := range []age{anyAge, checked, fresh} {
		if l.sessionLocked(a) == nil {
			t.Errorf("age %d: no session on a link that is alive", a)
		}
	}
	far.Close()
	for !k.ended() {
		runtime.Gosched()
	}
	for _, a := range []age{checked, fresh} {
		if l.sessionLocked(a) != nil {
			t.Errorf("age %d: a session on a link that has ended", a)
		}
	}
	if l.sessionLocked(anyAge) == nil {
		t.Error("what can be sent again needs no check")
	}
}
