package proxy

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tulle-mesh/tulle/proxy/tcp"
)

// acceptTest accepts for p until the returned function is called, which waits
// for all connections to end.
func acceptTest(t *testing.T, p *Proxy, serve func(context.Context, *tcp.Conn, *tracked)) (addr string, stop func()) {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.serving.Go(func() {
		p.accept(context.Background(), ln.(*net.TCPListener), func(ctx context.Context, c *tcp.Conn, tr *tracked) bool {
			serve(ctx, c, tr)
			return false
		})
	})
	return ln.Addr().String(), func() { ln.Close(); p.serving.Wait() }
}

func dialTest(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}

// readEnd is what a client reads last.
func readEnd(c *net.TCPConn) error {
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, err := io.Copy(io.Discard, c)
	return err
}

// echoTracked serves "idle" and "busy" clients as their first byte says.
func echoTracked(conns chan<- *tracked) func(context.Context, *tcp.Conn, *tracked) {
	return func(_ context.Context, c *tcp.Conn, tr *tracked) {
		b := make([]byte, 1)
		tr.expect(0, false)
		if _, err := io.ReadFull(c, b); err != nil {
			return
		}
		tr.expect(0, b[0] == 'i')
		conns <- tr
		_, _ = c.Read(b)
	}
}

// Whoever has connected is served, though the end may have come before its
// connection was accepted, and the client may have gone by then.
func TestStopServesWhoIsConnected(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	const clients = 20
	for range clients {
		c := dialTest(t, ln.Addr().String())
		_, _ = io.WriteString(c, "hello")
		c.Close()
	}
	p, l, heard := newQuietProxy(), &listeners{out: []*net.TCPListener{ln.(*net.TCPListener)}}, make(chan string, clients)
	_ = l.out[0].SetDeadline(time.Unix(1, 0)) // as stop does, before anything was accepted
	l.accepting.Go(func() {
		p.accept(context.Background(), l.out[0], func(_ context.Context, c *tcp.Conn, _ *tracked) bool {
			b, _ := io.ReadAll(c)
			heard <- string(b)
			return false
		})
	})
	l.stop()
	p.conns.drain(30 * time.Second)
	p.serving.Wait()
	if len(heard) != clients {
		t.Fatalf("%d of %d were served", len(heard), clients)
	}
	for range clients {
		if s := <-heard; s != "hello" {
			t.Errorf("heard %q", s)
		}
	}
	if c, err := net.Dial("tcp4", ln.Addr().String()); err == nil {
		c.Close()
		t.Error("still listening")
	}
}

func TestDrain(t *testing.T) {
	p, conns := newQuietProxy(), make(chan *tracked, 10)
	addr, stop := acceptTest(t, p, echoTracked(conns))
	idle, busy, done := dialTest(t, addr), dialTest(t, addr), dialTest(t, addr)
	for c, kind := range map[*net.TCPConn]string{idle: "i", busy: "b", done: "b"} {
		_, _ = io.WriteString(c, kind)
		<-conns
	}
	if n := p.conns.len(); n != 3 {
		t.Fatalf("%d connections", n)
	}
	drained := make(chan struct{})
	go func() { defer close(drained); p.conns.drain(time.Second) }()
	if err := readEnd(idle); err != nil {
		t.Errorf("an idle connection ends with %v", err)
	}
	select {
	case <-drained:
		t.Error("the drain did not wait for what is under way")
	default:
	}
	_, _ = io.WriteString(done, "x") // finishes in time
	if err := readEnd(done); err != nil {
		t.Errorf("what finishes in time ends with %v", err)
	}
	if err := readEnd(busy); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("what does not end in time ends with %v, want a reset", err)
	}
	<-drained
	stop()
	if n := p.conns.len(); n != 0 {
		t.Errorf("%d connections are left", n)
	}
}

func TestDrainOfNothingIsQuick(t *testing.T) {
	begin := time.Now()
	newQuietProxy().conns.drain(time.Hour)
	if time.Since(begin) > time.Minute {
		t.Error("waited")
	}
}

// A connection that becomes idle while draining ends then.
func TestIdleWhileDraining(t *testing.T) {
	p := newQuietProxy()
	again := make(chan struct{})
	conns := make(chan *tracked, 1)
	addr, stop := acceptTest(t, p, func(_ context.Context, c *tcp.Conn, tr *tracked) {
		tr.expect(0, false)
		conns <- tr
		<-again
		tr.expect(keepIdle, true)
		_, _ = c.Read(make([]byte, 1))
	})
	c := dialTest(t, addr)
	<-conns
	drained := make(chan struct{})
	go func() { defer close(drained); p.conns.drain(time.Minute) }()
	for !p.draining() {
		time.Sleep(time.Millisecond)
	}
	close(again)
	if err := readEnd(c); err != nil {
		t.Error(err)
	}
	<-drained
	stop()
}

func TestTrackedDeadlines(t *testing.T) {
	ended := make(chan error, 1)
	p, conns := newQuietProxy(), make(chan *tracked, 1)
	addr, stop := acceptTest(t, p, func(_ context.Context, c *tcp.Conn, tr *tracked) {
		tr.expect(3*time.Second, false)
		conns <- tr
		_, err := c.Read(make([]byte, 1))
		ended <- err
	})
	dialTest(t, addr)
	c := <-conns
	for s := range 4 {
		p.conns.tick(time.Duration(s) * time.Second)
		select {
		case err := <-ended:
			t.Fatalf("ended at second %d: %v", s, err)
		default:
		}
	}
	p.conns.tick(4 * time.Second) // rounded up
	if err := <-ended; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("ended with %v", err)
	}
	stop()
	c.expect(0, false)
	if c.deadline != 0 || c.interrupted {
		t.Error("no limit is one")
	}
}

// Without file descriptors the proxy waits, and goes on when there are some.
func TestNoFilesLeft(t *testing.T) {
	lines := &logLines{}
	p := newQuietProxy()
	p.log = slog.New(slog.NewTextHandler(lines, nil))
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := dialTest(t, ln.Addr().String())
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	restore := func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &old) }
	defer restore()
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	begin := time.Now()
	p.serving.Go(func() {
		p.accept(context.Background(), ln.(*net.TCPListener), func(context.Context, *tcp.Conn, *tracked) bool { close(served); return false })
	})
	time.Sleep(10 * acceptBackoff)
	complaints := strings.Count(lines.take(), "not accepted")
	if most := int(time.Since(begin)/acceptBackoff) + 2; complaints == 0 || complaints > most {
		t.Errorf("tried %d times, want 1 to %d", complaints, most)
	}
	restore()
	<-served
	if err := readEnd(c); err != nil {
		t.Error(err)
	}
	ln.Close()
	p.serving.Wait()
}
