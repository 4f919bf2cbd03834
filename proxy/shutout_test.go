package proxy

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
)

const patience = time.Minute // of what has to happen at once

// follow has p follow what is sent to the channel, "strict" or "permissive".
func follow(t *testing.T, p *Proxy) chan<- string {
	t.Helper()
	f := &fakePolicies{said: make(chan string)}
	var running sync.WaitGroup
	running.Go(func() { p.followPolicy(t.Context(), f, func() {}) })
	t.Cleanup(running.Wait)
	f.said <- "permissive"
	return f.said
}

// guests returns how many connections of clients without an identity p has.
func guests(p *Proxy) (n int) {
	p.conns.each(func(tr *tracked) {
		tr.mu.Lock()
		defer tr.mu.Unlock()
		if tr.guest {
			n++
		}
	})
	return n
}

func waitUntil(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// guestTalks are what clients have open when the policy changes. Each returns,
// after a first exchange, what reads on until the connection ends, and what says
// something more on it.
var guestTalks = []struct {
	name string
	app  func(t *testing.T) net.Addr
	talk func(t *testing.T, addr string) (end, more func() error)
}{
	{"HTTP/1.1 between requests", httpTestApp, func(t *testing.T, addr string) (end, more func() error) {
		c := dialTest(t, addr)
		r := bufio.NewReader(c)
		ask := func() error { return askOver(c, r, "/") }
		if err := ask(); err != nil {
			t.Fatal(err)
		}
		return readsOn(c), ask
	}},
	{"HTTP/2 with an answer under way", func(t *testing.T) net.Addr {
		return newH2App(t, func(w http.ResponseWriter, r *http.Request) {
			_ = http.NewResponseController(w).Flush()
			if r.URL.Path == "/long" {
				<-r.Context().Done()
			}
		})
	}, func(t *testing.T, addr string) (end, more func() error) {
		client := newH2Client(t)
		client.Timeout = patience
		long, err := client.Get("http://" + addr + "/long")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { long.Body.Close() })
		return func() error { _, err := io.ReadAll(long.Body); return err }, func() error {
			short, err := client.Get("http://" + addr + "/")
			if err == nil {
				short.Body.Close()
			}
			return err
		}
	}},
	{"the client speaks first", echoes, func(t *testing.T, addr string) (end, more func() error) {
		c := dialTest(t, addr)
		echo := func() error { return echoOver(c) }
		if err := echo(); err != nil {
			t.Fatal(err)
		}
		return readsOn(c), echo
	}},
	{"the server speaks first", func(t *testing.T) net.Addr {
		return greeter(t, "220 hello\r\n")
	}, func(t *testing.T, addr string) (end, more func() error) {
		c := dialTest(t, addr)
		_ = c.SetDeadline(time.Now().Add(patience))
		if _, err := io.ReadFull(c, make([]byte, len("220 hello\r\n"))); err != nil {
			t.Fatal(err)
		}
		return readsOn(c), func() error { return echoOver(c) }
	}},
}

func askOver(c net.Conn, r *bufio.Reader, path string) error {
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: a\r\n\r\n", path); err != nil {
		return err
	}
	answer, err := http.ReadResponse(r, nil)
	if err != nil {
		return err
	}
	_, err = io.ReadAll(answer.Body)
	return err
}

func echoOver(c net.Conn) error {
	const said = "*1 something\r\n"
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, said); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, len(said)))
	return err
}

func readsOn(c net.Conn) func() error {
	return func() error {
		_ = c.SetDeadline(time.Now().Add(patience))
		_, err := c.Read(make([]byte, 1))
		return err
	}
}

// greeter says something to each client, and then says what it hears.
func greeter(t *testing.T, words string) net.Addr {
	return tcpApp(t, func(c *net.TCPConn) {
		_, _ = io.WriteString(c, words)
		_, _ = io.Copy(c, c)
	})
}

// When a policy becomes strict, what clients without an identity have open ends;
// what others have open goes on.
func TestStrictEndsWhatIsOpen(t *testing.T) {
	for _, c := range guestTalks {
		t.Run(c.name, func(t *testing.T) {
			pair := newTestPair(t, c.app(t), false)
			said := follow(t, pair.server)
			end, _ := c.talk(t, pair.plain)
			_, more := c.talk(t, pair.addr)
			if n := guests(pair.server); n != 1 {
				t.Fatalf("%d connections have no identity, want 1", n)
			}
			said <- "strict"
			if err := end(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("a client without an identity goes on: %v", err)
			}
			waitUntil(t, "its connection is gone", func() bool { return guests(pair.server) == 0 })
			if err := more(); err != nil {
				t.Errorf("a client of the mesh was cut off: %v", err)
			}
			said <- "permissive"
			waitUntil(t, "the door is open again", func() bool { return !pair.server.strict() })
			if _, more := c.talk(t, pair.plain); more() != nil {
				t.Error("a client without an identity is refused")
			}
		})
	}
}

// What is parked ends, too, and takes its goroutines and files with it.
func TestStrictEndsWhatIsParked(t *testing.T) {
	test := &idleTest{T: t, pair: newTestPair(t, httpTestApp(t), false, func(p *Proxy) { p.conns.parkAfter = 0 })}
	test.proxy = test.pair.server
	test.dial(test.pair.plain, 20)
	test.ask("/")
	test.awaitParked()
	test.proxy.setPolicy(&tullev1.Policy{Strict: true})
	for _, c := range test.clients {
		if err := readEnd(c); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("a parked connection ends with %v, want a reset", err)
		}
	}
	waitUntil(t, "all are gone", func() bool { return test.proxy.conns.len() == 0 })
}

// A client that says nothing, and to which nothing is said, is shut out as well.
func TestStrictEndsSilence(t *testing.T) {
	pair := newTestPair(t, echoes(t), false, func(p *Proxy) { p.silence = time.Millisecond })
	c := dialTest(t, pair.plain)
	waitUntil(t, "the application is connected for it", func() bool { return guests(pair.server) == 1 })
	pair.server.setPolicy(&tullev1.Policy{Strict: true})
	if err := readsOn(c)(); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("its connection ends with %v, want a reset", err)
	}
	waitUntil(t, "it is gone", func() bool { return pair.server.conns.len() == 0 })
}

// A request that waits for its answer is not sent again once its client has been
// shut out, though it might be: nobody is there to hear the answer.
func TestStrictEndsARequest(t *testing.T) {
	asked, release := make(chan struct{}, 10), make(chan struct{})
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	app := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			asked <- struct{}{}
			<-release
		}
	})}
	go func() { _ = app.Serve(ln) }()
	t.Cleanup(func() { close(release); _ = app.Close() })
	pair := newTestPair(t, ln.Addr(), false)
	c := dialTest(t, pair.plain)
	if err := askOver(c, bufio.NewReader(c), "/"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, "GET /slow HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	<-asked
	pair.server.setPolicy(&tullev1.Policy{Strict: true})
	if err := readEnd(c); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("its connection ends with %v, want a reset", err)
	}
	waitUntil(t, "nothing goes on for it", func() bool { return pair.server.conns.len() == 0 })
	if len(asked) > 0 {
		t.Error("its request was sent again")
	}
}

// Whoever comes while the policy becomes strict is either refused or shut out.
func TestStrictWhileTheyCome(t *testing.T) {
	lines := &logLines{}
	pair := newTestPair(t, httpTestApp(t), false, func(p *Proxy) { p.log = slog.New(slog.NewTextHandler(lines, nil)) })
	const clients = 30
	var answers atomic.Int64
	var asking sync.WaitGroup
	errs := make(chan error, clients)
	for range clients {
		asking.Go(func() {
			for { // one connection after the other, until one ends unasked
				c, err := net.Dial("tcp4", pair.plain)
				if err != nil {
					errs <- err
					return
				}
				r := bufio.NewReader(c)
				for range 3 {
					if err = askOver(c, r, "/"); err != nil {
						break
					}
					answers.Add(1)
				}
				c.Close()
				if err != nil {
					errs <- err
					return
				}
			}
		})
	}
	waitUntil(t, "requests are answered", func() bool { return answers.Load() > 3*clients })
	pair.server.setPolicy(&tullev1.Policy{Strict: true})
	asking.Wait()
	close(errs)
	for err := range errs {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("a client hears nothing")
		}
	}
	waitUntil(t, "all are gone", func() bool { return pair.server.conns.len() == 0 })
	if log := lines.take(); !strings.Contains(log, `"connections ended"=`) {
		t.Errorf("the log does not say how many were shut out: %s", log)
	}
}
