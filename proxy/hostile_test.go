package proxy

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tulle-mesh/tulle/mesh"
	"github.com/tulle-mesh/tulle/proxy/tcp"
)

// ways are those to the application of a pair.
func (p *testPair) ways() map[string]string {
	return map[string]string{"meshed": p.addr, "unmeshed client": p.plain}
}

// TestSlowStart: what begins like something that the proxy knows, and then waits for an
// answer, is not waited for without end.
func TestSlowStart(t *testing.T) {
	app := tcpApp(t, func(c *net.TCPConn) {
		b := make([]byte, 100)
		n, _ := c.Read(b)
		fmt.Fprintf(c, "heard %q", b[:n])
	})
	for _, says := range []string{"HELLO", "GET /", "PRI * HTTP/2.0\r\n", "\r\n", "\x16\x03\x01"} {
		pair := newTestPair(t, app, false)
		for way, addr := range pair.ways() {
			t.Run(fmt.Sprintf("%s, %q", way, says), func(t *testing.T) {
				t.Parallel()
				c := dialTest(t, addr)
				_ = c.SetDeadline(time.Now().Add(time.Minute))
				send(c, says)
				if b, err := io.ReadAll(c); err != nil || string(b) != fmt.Sprintf("heard %q", says) {
					t.Errorf("the client reads %q, %v", b, err)
				}
			})
		}
	}
	strict := newTestPair(t, app, true)
	for _, says := range []string{"", "HELLO", "\x16", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"} {
		t.Run(fmt.Sprintf("strict, %q", says), func(t *testing.T) {
			t.Parallel()
			c := dialTest(t, strict.plain)
			_ = c.SetDeadline(time.Now().Add(time.Minute))
			send(c, says)
			if b, err := io.ReadAll(c); len(b) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("the client reads %q, %v", b, err)
			}
		})
	}
}

// TestSlowHeads: many clients that send the start of a request, or nothing, keep nobody
// else waiting, and are told so in time.
func TestSlowHeads(t *testing.T) {
	pair := newTestPair(t, httpTestApp(t), false)
	for _, way := range []struct {
		name, addr string
		proxy      *Proxy
	}{{"meshed", pair.addr, pair.client}, {"unmeshed client", pair.plain, pair.server}} {
		t.Run(way.name, func(t *testing.T) {
			const slow = 200
			var clients []*net.TCPConn
			for range slow {
				c := dialTest(t, way.addr)
				_ = c.SetDeadline(time.Now().Add(time.Minute))
				send(c, "GET / HTTP/1.1\r\nHost: a\r\nX: ")
				clients = append(clients, c)
				dialTest(t, way.addr) // says nothing at all
			}
			client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true}}
			for range 20 {
				resp, err := client.Get("http://" + way.addr + "/ok")
				if err != nil {
					t.Fatal(err)
				}
				if b, _ := io.ReadAll(resp.Body); string(b) != "/ok" {
					t.Fatalf("%s %q", resp.Status, b)
				}
				resp.Body.Close()
			}
			settles(t, "all heads have begun", func() bool { return way.proxy.conns.expecting() == slow })
			way.proxy.conns.tick(2 * headPatience)
			for _, c := range clients {
				resp, err := http.ReadResponse(bufio.NewReader(c), nil)
				if err != nil || resp.StatusCode != 408 || resp.Header.Get("tulle-error") != "slow-head" {
					t.Fatal(resp, err)
				}
			}
		})
	}
}

// expecting returns how many connections are in the middle of what has a limit of time.
func (t *tracker) expecting() (n int) {
	t.each(func(tr *tracked) {
		tr.mu.Lock()
		defer tr.mu.Unlock()
		if tr.deadline != 0 && !tr.idle {
			n++
		}
	})
	return n
}

// dribbler writes byte by byte.
type dribbler struct{ net.Conn }

func (d dribbler) Write(p []byte) (int, error) {
	for i := range p {
		if _, err := d.Conn.Write(p[i : i+1]); err != nil {
			return i, err
		}
	}
	return len(p), nil
}

// TestHelloInPieces: a handshake of the mesh may come in segments of one byte.
func TestHelloInPieces(t *testing.T) {
	for _, strict := range []bool{false, true} {
		pair := newTestPair(t, httpTestApp(t), strict)
		conf := pair.client.creds.Load().Client(pair.server.config.ID, mesh.ALPNHTTP1)
		c := dialTest(t, pair.plain)
		_ = c.SetNoDelay(true)
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		over := tls.Client(dribbler{c}, conf)
		if err := over.Handshake(); err != nil {
			t.Errorf("strict %v: %v", strict, err)
		}
	}
}

// TestTooManyConnections: those beyond the limit are reset, and the proxy goes on.
func TestTooManyConnections(t *testing.T) {
	pair := newTestPair(t, httpTestApp(t), false)
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true}}
	pair.client.conns.count.Add(maxConns)
	c, err := net.Dial("tcp4", pair.addr)
	if err == nil { // else the reset was faster
		err = readEnd(c.(*net.TCPConn))
		c.Close()
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the connection ends with %v", err)
	}
	pair.client.conns.count.Add(-maxConns)
	resp, err := client.Get("http://" + pair.addr + "/")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
}

// TestInterimFlood: an application that sends interim answers without end is left.
func TestInterimFlood(t *testing.T) {
	gone := make(chan error, 10)
	app := tcpApp(t, func(c *net.TCPConn) {
		readHead(bufio.NewReader(c), io.Discard)
		_ = c.SetWriteDeadline(time.Now().Add(time.Minute))
		for {
			if _, err := io.WriteString(c, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"); err != nil {
				gone <- err
				return
			}
		}
	})
	pair := newTestPair(t, app, false)
	for way, addr := range pair.ways() {
		t.Run(way, func(t *testing.T) {
			c := dialTest(t, addr)
			_ = c.SetDeadline(time.Now().Add(time.Minute))
			send(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			b, err := io.ReadAll(c)
			if n := strings.Count(string(b), "103 Early Hints"); n > maxInterim || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%d interim answers, then %v", n, err)
			}
			if err := <-gone; errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("the application may go on for ever")
			}
		})
	}
}

// TestAnswerWithoutARequest: what an application sends behind an answer is nobody's,
// least of all the answer to the next request. (What comes later than the answer is
// seen by session.good.)
func TestAnswerWithoutARequest(t *testing.T) {
	const answer = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"
	app := tcpApp(t, func(c *net.TCPConn) {
		r := bufio.NewReader(c)
		for readHead(r, io.Discard) != "" {
			send(c, answer+"good"+answer+"evil")
		}
	})
	pair := newTestPair(t, app, false)
	for way, addr := range pair.ways() {
		t.Run(way, func(t *testing.T) {
			client := dialTest(t, addr)
			_ = client.SetDeadline(time.Now().Add(time.Minute))
			r := bufio.NewReader(client)
			for i := range 5 {
				send(client, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
				resp, err := http.ReadResponse(r, nil)
				if err != nil {
					return // the connection was ended: nothing was believed
				}
				if b, _ := io.ReadAll(resp.Body); string(b) != "good" {
					t.Fatalf("answer %d is %q", i, b)
				}
			}
		})
	}
}

// TestNoSessionWithBytesAhead: a session on which something has come that nobody asked
// for is not used again, however short its pause was.
func TestNoSessionWithBytesAhead(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	dialled := dialTest(t, ln.Addr().String())
	far, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	near, err := tcp.New(dialled)
	if err != nil {
		t.Fatal(err)
	}
	s := &session{conn: near, tcp: near}
	for _, a := range []age{anyAge, checked} {
		if !s.good(a) {
			t.Errorf("age %d: not good without a reason", a)
		}
	}
	send(far, "HTTP/1.1 200 OK\r\n")
	settles(t, "it has come", func() bool { return near.Queued() > 0 })
	for _, a := range []age{anyAge, checked, fresh} {
		if s.good(a) {
			t.Errorf("age %d: good with bytes that nobody asked for", a)
		}
	}
}

// TestNobodyReads: an application that does not read stops its client, in bounded
// memory, and in the end gets every byte.
func TestNobodyReads(t *testing.T) {
	const most = 256 << 20 // what all sockets and windows on the way take is far less
	for _, c := range []struct{ name, head string }{
		{"opaque bytes", "*"},
		{"an upload", fmt.Sprintf("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n", int64(1)<<40)},
	} {
		read, total := make(chan struct{}), make(chan int64, 1)
		pair := newTestPair(t, tcpApp(t, func(conn *net.TCPConn) {
			<-read
			n, _ := io.Copy(io.Discard, conn)
			total <- n
		}), false)
		for way, addr := range pair.ways() {
			t.Run(c.name+", "+way, func(t *testing.T) {
				client := dialTest(t, addr)
				send(client, c.head)
				written, piece := int64(len(c.head)), make([]byte, 1<<20)
				for written < most {
					_ = client.SetWriteDeadline(time.Now().Add(time.Second))
					n, err := client.Write(piece)
					if written += int64(n); err != nil {
						break // nobody takes any more
					}
				}
				if written >= most {
					t.Errorf("%d bytes were taken that nobody reads", written)
				}
				read <- struct{}{}
				_ = client.CloseWrite()
				if n := <-total; n != written {
					t.Errorf("%d bytes arrived, of %d", n, written)
				}
			})
		}
	}
}
