package proxy

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// scene is a conversation between a client and an application that must look
// the same to both with and without the mesh in between.
type scene struct {
	name   string
	client func(c *net.TCPConn, log io.Writer)
	app    func(c *net.TCPConn, log io.Writer)
	conns  int // how many connections the client makes, one after the other; 0: 1
}

// play runs a scene over dial and returns what the two saw.
func (s *scene) play(t *testing.T, target func(app net.Addr) (addr string, end func())) (client, app string) {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr, end := target(ln.Addr())
	met := make(chan struct{}, 100)
	var appLog, clientLog bytes.Buffer
	var mu sync.Mutex
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				var log bytes.Buffer
				met <- struct{}{}
				c.SetDeadline(time.Now().Add(20 * time.Second))
				s.app(c.(*net.TCPConn), &log)
				mu.Lock()
				defer mu.Unlock()
				appLog.Write(log.Bytes())
			})
		}
	})
	for range max(s.conns, 1) {
		c, err := net.Dial("tcp4", addr)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(20 * time.Second))
		s.client(c.(*net.TCPConn), &clientLog)
		c.Close()
		<-met
	}
	end()
	ln.Close()
	serving.Wait()
	return clientLog.String(), appLog.String()
}

// readAll logs everything up to the end, and how it ended.
func readAll(c net.Conn, log io.Writer) {
	b, err := io.ReadAll(c)
	if len(b) > 512 {
		fmt.Fprintf(log, "%d bytes, sum %x", len(b), sum(b))
	} else {
		fmt.Fprintf(log, "%q", b)
	}
	fmt.Fprintln(log, ending(err))
}

func sum(b []byte) (h uint64) {
	for _, c := range b {
		h = h*1099511628211 + uint64(c)
	}
	return h
}

func ending(err error) string {
	switch {
	case err == nil, err == io.EOF:
		return " EOF"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return " reset"
	case errors.Is(err, os.ErrDeadlineExceeded):
		return " timeout"
	}
	return " " + err.Error()
}

// readHead logs a message head.
func readHead(r *bufio.Reader, log io.Writer) string {
	var head strings.Builder
	for {
		line, err := r.ReadString('\n')
		head.WriteString(line)
		if err != nil {
			fmt.Fprintf(log, "head %q%s\n", head.String(), ending(err))
			return ""
		}
		if line == "\r\n" {
			fmt.Fprintf(log, "head %q\n", head.String())
			return head.String()
		}
	}
}

func send(c net.Conn, s string) { _, _ = io.WriteString(c, s) }

// request is a client that sends s and reads to the end.
func sends(s string) func(*net.TCPConn, io.Writer) {
	return func(c *net.TCPConn, log io.Writer) { send(c, s); readAll(c, log) }
}

// answers is an application that reads one head and says s, then closes.
func answers(s string) func(*net.TCPConn, io.Writer) {
	return func(c *net.TCPConn, log io.Writer) { readHead(bufio.NewReader(c), log); send(c, s) }
}

var mebibyte = strings.Repeat("0123456789abcdef", 64<<10) // 1 MiB

var scenes = []scene{
	{name: "content length", client: sends("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"),
		app: answers("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")},
	{name: "http/1.0 until EOF", client: sends("GET / HTTP/1.0\r\n\r\n"), app: answers("HTTP/1.0 200 OK\r\n\r\n" + mebibyte)},
	{name: "http/1.1 until EOF", client: sends("GET / HTTP/1.1\r\nHost: a\r\n\r\n"), app: answers("HTTP/1.1 200 OK\r\n\r\nhello")},
	{name: "chunked with trailers", client: sends("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"),
		app: answers("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n5;x=y\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n")},
	{name: "head", client: sends("HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"),
		app: answers("HTTP/1.1 200 OK\r\nContent-Length: 500\r\nConnection: close\r\n\r\n")},
	{name: "204 and 304", client: sends("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"),
		app: answers("HTTP/1.1 304 Not Modified\r\nContent-Length: 500\r\nConnection: close\r\n\r\n")},
	{name: "interim answers", client: sends("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"),
		app: answers("HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")},
	{name: "absolute form", client: sends("GET http://a/x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"),
		app: answers("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")},
	{name: "pipelined",
		client: sends("GET /1 HTTP/1.1\r\nHost: a\r\n\r\nPOST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET /3 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"),
		app: func(c *net.TCPConn, log io.Writer) {
			r := bufio.NewReader(c)
			for i := 1; i <= 3; i++ {
				head := readHead(r, log)
				if i == 2 {
					body := make([]byte, 3)
					io.ReadFull(r, body)
					fmt.Fprintf(log, "body %q\n", body)
				}
				closing := ""
				if strings.Contains(head, "close") {
					closing = "Connection: close\r\n"
				}
				send(c, fmt.Sprintf("HTTP/1.1 200 OK\r\n%sContent-Length: 2\r\n\r\n#%d", closing, i))
			}
		}},
	{name: "big upload", client: sends("PUT / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 1048576\r\n\r\n" + mebibyte),
		app: func(c *net.TCPConn, log io.Writer) {
			r := bufio.NewReader(c)
			readHead(r, log)
			body := make([]byte, len(mebibyte))
			_, err := io.ReadFull(r, body)
			fmt.Fprintf(log, "%x %v\n", sum(body), err)
			send(c, "HTTP/1.1 201 Created\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		}},
	{name: "expect continue",
		client: func(c *net.TCPConn, log io.Writer) {
			r := bufio.NewReader(c)
			send(c, "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nConnection: close\r\nContent-Length: 5\r\n\r\n")
			readHead(r, log)
			send(c, "hello")
			b, err := io.ReadAll(r)
			fmt.Fprintf(log, "%q%s\n", b, ending(err))
		},
		app: func(c *net.TCPConn, log io.Writer) {
			r := bufio.NewReader(c)
			readHead(r, log)
			send(c, "HTTP/1.1 100 Continue\r\n\r\n")
			body := make([]byte, 5)
			io.ReadFull(r, body)
			fmt.Fprintf(log, "body %q\n", body)
			send(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
		}},
	{name: "early answer while uploading",
		client: func(c *net.TCPConn, log io.Writer) {
			r := bufio.NewReader(c)
			send(c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nfirst")
			readHead(r, log)
			b, err := io.ReadAll(r)
			fmt.Fprintf(log, "%q%s\n", b, ending(err))
		},
		app: func(c *net.TCPConn, log io.Writer) {
			r := bufio.NewReader(c)
			readHead(r, log)
			io.ReadFull(r, make([]byte, 5))
			send(c, "HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno\n")
		}},
	{name: "websocket",
		client: func(c *net.TCPConn, log io.Writer) {
			r := bufio.NewReader(c)
			send(c, "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
			readHead(r, log)
			for range 3 {
				send(c, "ping")
				b := make([]byte, 4)
				_, err := io.ReadFull(r, b)
				fmt.Fprintf(log, "%q%s\n", b, ending(err))
			}
			c.CloseWrite()
			readAll(c, log)
		},
		app: func(c *net.TCPConn, log io.Writer) {
			r := bufio.NewReader(c)
			readHead(r, log)
			send(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
			n, err := io.Copy(c, r)
			fmt.Fprintln(log, n, ending(err))
		}},
	{name: "no answer", client: sends("GET / HTTP/1.1\r\nHost: a\r\n\r\n"), app: answers("")},
	{name: "half an answer", client: sends("GET / HTTP/1.1\r\nHost: a\r\n\r\n"), app: answers("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")},
	{name: "reset instead of an answer", client: sends("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"),
		app: func(c *net.TCPConn, log io.Writer) {
			readHead(bufio.NewReader(c), log)
			c.SetLinger(0)
		}},
	givesUp(),
	{name: "client half-closes and still gets its answer",
		client: func(c *net.TCPConn, log io.Writer) {
			send(c, "GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
			c.CloseWrite()
			readAll(c, log)
		},
		app: func(c *net.TCPConn, log io.Writer) {
			r := bufio.NewReader(c)
			readHead(r, log)
			_, err := r.ReadByte()
			fmt.Fprintln(log, "then", ending(err))
			send(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}},
	{name: "many requests, one connection",
		client: func(c *net.TCPConn, log io.Writer) {
			r := bufio.NewReader(c)
			for i := range 50 {
				send(c, fmt.Sprintf("GET /%d HTTP/1.1\r\nHost: a\r\n\r\n", i))
				readHead(r, log)
				io.CopyN(log, r, 2)
			}
		},
		app: func(c *net.TCPConn, log io.Writer) {
			r := bufio.NewReader(c)
			for readHead(r, log) != "" {
				send(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			}
		}},
	{name: "one byte at a time",
		client: func(c *net.TCPConn, log io.Writer) {
			for _, b := range []byte("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n") {
				c.Write([]byte{b})
				time.Sleep(time.Millisecond)
			}
			readAll(c, log)
		},
		app: answers("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")},
	{name: "server speaks first", conns: 3,
		client: func(c *net.TCPConn, log io.Writer) {
			r := bufio.NewReader(c)
			line, err := r.ReadString('\n')
			fmt.Fprintf(log, "%q%s\n", line, ending(err))
			send(c, "EHLO me\r\n")
			line, err = r.ReadString('\n')
			fmt.Fprintf(log, "%q%s\n", line, ending(err))
			c.CloseWrite()
			readAll(c, log)
		},
		app: func(c *net.TCPConn, log io.Writer) {
			r := bufio.NewReader(c)
			send(c, "220 hello\r\n")
			line, _ := r.ReadString('\n')
			fmt.Fprintf(log, "%q\n", line)
			send(c, "250 ok\r\n")
			_, err := r.ReadByte()
			fmt.Fprintln(log, ending(err))
		}},
	{name: "both are silent for a while", conns: 2,
		client: func(c *net.TCPConn, log io.Writer) {
			time.Sleep(testSilence + testSilence/2)
			send(c, "\x00\x01binary")
			c.CloseWrite()
			readAll(c, log)
		},
		app: func(c *net.TCPConn, log io.Writer) { io.Copy(c, io.TeeReader(c, log)) }},
	{name: "silent, then http", conns: 2,
		client: func(c *net.TCPConn, log io.Writer) {
			time.Sleep(testSilence + testSilence/2)
			send(c, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
			readAll(c, log)
		},
		app: func(c *net.TCPConn, log io.Writer) {
			r := bufio.NewReader(c)
			readHead(r, log) // on the very connection that was opened to see who speaks first
			send(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
		}},
	{name: "pauses in both directions", conns: 3,
		client: func(c *net.TCPConn, log io.Writer) {
			b := make([]byte, 64<<10)
			for i := range 8 {
				time.Sleep(time.Duration(i*7) * time.Millisecond)
				send(c, "*"+mebibyte[:len(b)-1])
				_, err := io.ReadFull(c, b)
				fmt.Fprintf(log, "%x%s\n", sum(b), ending(err))
			}
			c.CloseWrite()
			readAll(c, log)
		},
		app: func(c *net.TCPConn, log io.Writer) {
			n, err := io.Copy(c, c)
			fmt.Fprintln(log, n, ending(err))
			time.Sleep(50 * time.Millisecond)
			send(c, "bye")
		}},
	{name: "pauses between requests",
		client: func(c *net.TCPConn, log io.Writer) {
			r := bufio.NewReader(c)
			const request = "GET /%d HTTP/1.1\r\nHost: a\r\n\r\n"
			for i := range 6 {
				time.Sleep(time.Duration(i*7) * time.Millisecond)
				send(c, fmt.Sprintf(request+request, i, -i))
				readHead(r, log)
				readHead(r, log)
			}
			send(c, fmt.Sprintf(request, 7))
			readHead(r, log)
			time.Sleep(20 * time.Millisecond)
			c.CloseWrite()
			readAll(c, log)
		},
		app: func(c *net.TCPConn, log io.Writer) {
			r := bufio.NewReader(c)
			for readHead(r, log) != "" {
				send(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			}
		}},
	{name: "half-close", conns: 3,
		client: func(c *net.TCPConn, log io.Writer) {
			send(c, "*opaque\n"+mebibyte)
			c.CloseWrite()
			readAll(c, log)
		},
		app: func(c *net.TCPConn, log io.Writer) {
			readAll(c, log)
			send(c, mebibyte+"bye")
		}},
	{name: "server half-closes first", conns: 2,
		client: func(c *net.TCPConn, log io.Writer) {
			send(c, "*go\n")
			readAll(c, log)
			send(c, "still here")
		},
		app: func(c *net.TCPConn, log io.Writer) {
			io.ReadFull(c, make([]byte, 4))
			send(c, "done")
			c.CloseWrite()
			readAll(c, log)
		}},
	{name: "client resets", conns: 2,
		client: func(c *net.TCPConn, log io.Writer) {
			send(c, "*opaque\n")
			io.ReadFull(c, make([]byte, 2))
			c.SetLinger(0)
		},
		app: func(c *net.TCPConn, log io.Writer) {
			io.ReadFull(c, make([]byte, 8))
			send(c, "ok")
			readAll(c, log)
		}},
	{name: "server resets", conns: 2,
		client: sends("*opaque\n"),
		app: func(c *net.TCPConn, log io.Writer) {
			io.ReadFull(c, make([]byte, 8))
			c.SetLinger(0)
		}},
	{name: "connect and close", conns: 2, client: func(*net.TCPConn, io.Writer) {}, app: func(c *net.TCPConn, log io.Writer) { readAll(c, log) }},
}

// With relays that are parked whenever they pause, all must look the same.
// givesUp is a client that goes once the application has its request, but before an answer.
func givesUp() scene {
	asked := make(chan struct{}, 100)
	return scene{name: "client gives up waiting",
		client: func(c *net.TCPConn, log io.Writer) {
			send(c, "GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
			select {
			case <-asked:
			case <-time.After(20 * time.Second):
				fmt.Fprintln(log, "the application got no request")
			}
			c.SetLinger(0)
		},
		app: func(c *net.TCPConn, log io.Writer) {
			r := bufio.NewReader(c)
			readHead(r, log)
			asked <- struct{}{}
			_, err := r.ReadByte()
			fmt.Fprintln(log, "then", ending(err))
		}}
}

func TestTransparencyParked(t *testing.T) {
	for _, s := range scenes {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			wantClient, wantApp := s.play(t, func(app net.Addr) (string, func()) { return app.String(), func() {} })
			var parked int
			client, app := s.play(t, func(app net.Addr) (string, func()) {
				p := newTestPair(t, app, false, func(p *Proxy) { p.conns.parkAfter = 0 })
				stop := make(chan struct{})
				var ticking sync.WaitGroup
				for _, proxy := range []*Proxy{p.client, p.server} {
					ticking.Go(func() {
						for {
							select {
							case <-stop:
								return
							case <-time.After(time.Millisecond):
								proxy.conns.tick(proxy.now())
							}
						}
					})
				}
				return p.addr, func() {
					close(stop)
					ticking.Wait()
					parked = int(p.client.parked.Load() + p.server.parked.Load())
					p.dest.set.Close()
				}
			})
			if client != wantClient {
				t.Errorf("the client saw\n%s, without the mesh\n%s", client, wantClient)
			}
			if app != wantApp {
				t.Errorf("the application saw\n%s, without the mesh\n%s", app, wantApp)
			}
			t.Logf("parked %d times", parked)
		})
	}
}

func TestTransparency(t *testing.T) {
	for _, s := range scenes {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			wantClient, wantApp := s.play(t, func(app net.Addr) (string, func()) { return app.String(), func() {} })
			for _, way := range []struct {
				name   string
				target func(*testPair) string
			}{
				{"meshed", func(p *testPair) string { return p.addr }},
				{"unmeshed client", func(p *testPair) string { return p.plain }},
			} {
				client, app := s.play(t, func(app net.Addr) (string, func()) {
					p := newTestPair(t, app, false)
					return way.target(p), p.dest.set.Close // what is pooled would keep the application's connections open
				})
				if client != wantClient {
					t.Errorf("%s: the client saw\n%s, without the mesh\n%s", way.name, client, wantClient)
				}
				if app != wantApp {
					t.Errorf("%s: the application saw\n%s, without the mesh\n%s", way.name, app, wantApp)
				}
			}
		})
	}
}
