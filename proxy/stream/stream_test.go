package stream

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"
)

// transports are what a Conn must work over.
var transports = map[string]func(testing.TB) *pair{"tcp": plainPair, "tls": tlsPair}

func overAll(t *testing.T, f func(*testing.T, *pair)) {
	for name, make := range transports {
		t.Run(name, func(t *testing.T) { f(t, make(t)) })
	}
}

// mustReuse demands that both sides are fit for another stream, and that it
// sees nothing of the one before.
func mustReuse(t *testing.T, p *pair) {
	t.Helper()
	if dial, accept := p.finish(); !dial || !accept {
		t.Fatalf("fit for another stream: dialling side %v, accepting side %v; want both", dial, accept)
	}
	p.open(t, "fresh")
	mustRead(t, p.accept, "fresh")
	mustWrite(t, p.accept, "new")
	mustRead(t, p.dial, "new")
}

func TestHalfCloseBothOrders(t *testing.T) {
	for _, first := range []string{"dial", "accept"} {
		t.Run(first, func(t *testing.T) {
			overAll(t, func(t *testing.T, p *pair) {
				p.open(t, "hello")
				a, b := p.dial, p.accept
				mustRead(t, p.accept, "hello")
				if first == "accept" {
					a, b = b, a
				}
				mustWrite(t, a, "last words")
				if err := a.CloseWrite(); err != nil {
					t.Fatal(err)
				}
				if n, err := a.Write([]byte("x")); n != 0 || !errors.Is(err, net.ErrClosed) {
					t.Errorf("Write after CloseWrite = %d, %v; want %v", n, err, net.ErrClosed)
				}
				mustRead(t, b, "last words")
				mustEnd(t, b, io.EOF)
				mustEnd(t, b, io.EOF) // and stays so
				mustWrite(t, b, "the other way still works")
				mustRead(t, a, "the other way still works")
				if err := b.CloseWrite(); err != nil {
					t.Fatal(err)
				}
				mustEnd(t, a, io.EOF)
				mustReuse(t, p)
			})
		})
	}
}

func TestReset(t *testing.T) {
	for _, tt := range []struct {
		name string
		run  func(t *testing.T, a, b *Conn)
	}{
		{"before any half-close", func(t *testing.T, a, b *Conn) { a.Abort(); mustEnd(t, b, ErrReset) }},
		{"after the peer's half-close", func(t *testing.T, a, b *Conn) {
			if err := b.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			mustEnd(t, a, io.EOF)
			a.Abort()
			mustEnd(t, b, ErrReset)
		}},
		{"behind data", func(t *testing.T, a, b *Conn) {
			mustWrite(t, a, "data")
			a.Abort()
			mustRead(t, b, "data")
			mustEnd(t, b, ErrReset)
		}},
		{"twice", func(t *testing.T, a, b *Conn) { a.Abort(); a.Abort(); mustEnd(t, b, ErrReset) }},
		{"by both", func(t *testing.T, a, b *Conn) {
			a.Abort()
			b.Abort()
			mustEnd(t, b, ErrReset)
			mustEnd(t, a, ErrReset)
		}},
	} {
		for _, who := range []string{"dial", "accept"} {
			t.Run(tt.name+"/"+who, func(t *testing.T) {
				overAll(t, func(t *testing.T, p *pair) {
					p.open(t, "")
					a, b := p.dial, p.accept
					if who == "accept" {
						a, b = b, a
					}
					tt.run(t, a, b)
					if _, err := a.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
						t.Errorf("Write after Abort: %v, want %v", err, net.ErrClosed)
					}
					mustReuse(t, p)
					if p.dialKilled() || p.killed() {
						t.Error("the connection was torn down")
					}
				})
			})
		}
	}
}

// After one's own half-close a frame could no longer say it: the connection does.
func TestResetAfterOwnHalfClose(t *testing.T) {
	for _, who := range []string{"dial", "accept"} {
		t.Run(who, func(t *testing.T) {
			overAll(t, func(t *testing.T, p *pair) {
				p.open(t, "")
				a, b := p.dial, p.accept
				if who == "accept" {
					a, b = b, a
				}
				if err := a.CloseWrite(); err != nil {
					t.Fatal(err)
				}
				mustEnd(t, b, io.EOF)
				a.Abort()
				var err error
				for range 1000 { // the peer learns of it by writing, too
					if _, err = b.Write([]byte("x")); err != nil {
						break
					}
				}
				if err == nil {
					t.Error("the peer can go on writing")
				}
				if b.Finish(make([]byte, 10)) || a.Finish(make([]byte, 10)) {
					t.Error("fit for another stream after a torn connection")
				}
			})
		})
	}
}

func TestRefused(t *testing.T) {
	overAll(t, func(t *testing.T, p *pair) {
		for range 3 {
			if err := p.dial.Open(testClient, bytes.Repeat([]byte("x"), MaxPayload), nil); err != nil {
				t.Fatal(err)
			}
			if _, err := p.accept.Next(); err != nil {
				t.Fatal(err)
			}
			if err := p.accept.Refuse(); err != nil {
				t.Fatal(err)
			}
			if err := p.dial.Accepted(); err != ErrRefused {
				t.Fatalf("Accepted: %v, want %v", err, ErrRefused)
			}
			if dial, accept := p.finish(); !dial || !accept {
				t.Fatalf("fit for another stream: %v, %v; a refusal must not cost the connection", dial, accept)
			}
		}
		p.open(t, "now it is there")
		mustRead(t, p.accept, "now it is there")
	})
}

func TestRefusalOnceAcceptedIsAReset(t *testing.T) {
	p := plainPair(t)
	p.open(t, "")
	if err := p.accept.Refuse(); err != nil {
		t.Fatal(err)
	}
	mustEnd(t, p.dial, ErrReset)
}

// Many streams over one connection, of all lengths, each ended in another way:
// each sees its own bytes only.
func TestReuse(t *testing.T) {
	overAll(t, func(t *testing.T, p *pair) {
		random := rand.New(rand.NewPCG(1, 2))
		for i := range 200 {
			body := bytes.Repeat([]byte{byte(i)}, random.IntN(3*MaxPayload))
			first := body[:min(len(body), random.IntN(MaxPayload+1))]
			p.open(t, string(first))
			var group sync.WaitGroup
			group.Go(func() {
				_, _ = p.dial.Write(body[len(first):])
				_ = p.dial.CloseWrite()
			})
			got, err := io.ReadAll(p.accept)
			if err != nil || !bytes.Equal(got, body) {
				t.Fatalf("stream %d: read %d bytes, %v; want %d", i, len(got), err, len(body))
			}
			group.Wait()
			switch i % 3 {
			case 0: // leaves bytes that nobody reads
				mustWrite(t, p.accept, "unread")
				p.accept.Abort()
			case 1:
				if err := p.accept.CloseWrite(); err != nil {
					t.Fatal(err)
				}
			}
			if dial, accept := p.finish(); !dial || !accept {
				t.Fatalf("stream %d: fit for another: %v, %v", i, dial, accept)
			}
		}
	})
}

func TestGoodbyeBetweenStreams(t *testing.T) {
	overAll(t, func(t *testing.T, p *pair) {
		p.open(t, "")
		if dial, accept := p.finish(); !dial || !accept {
			t.Fatal("not fit")
		}
		if err := p.dial.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := p.accept.Next(); err != io.EOF {
			t.Errorf("Next: %v, want %v", err, io.EOF)
		}
		if !p.accept.Broken() || !p.dial.Broken() {
			t.Error("a closed connection is not broken")
		}
		if _, err := p.accept.Next(); err == nil {
			t.Error("a second Next went on")
		}
	})
}

// A peer that dies inside a stream has not ended it: the application must not
// take what it has got for the whole.
func TestDeathInsideAStream(t *testing.T) {
	for _, sent := range []string{
		"", frame(frameData, "abc"), frame(frameData, "abc")[:HeaderLen], frame(frameData, "abc")[:HeaderLen+1],
		frame(frameData, "abc") + "\x03", frame(frameReset, "\x00")[:HeaderLen],
	} {
		c := New(&script{in: []byte(openFrame(testClient) + sent)}, func() {})
		if _, err := c.Next(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(c); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("after %q: %v, want %v", sent, err, io.ErrUnexpectedEOF)
		}
		if c.Finish(make([]byte, 10)) {
			t.Errorf("after %q: fit for another stream", sent)
		}
	}
}

func TestAbortWhileAWriteIsStuck(t *testing.T) {
	overAll(t, func(t *testing.T, p *pair) {
		p.open(t, "")
		stuck := make(chan error, 1)
		var once sync.Once
		started := make(chan struct{})
		go func() {
			block := make([]byte, MaxPayload)
			for {
				once.Do(func() { close(started) })
				if _, err := p.dial.Write(block); err != nil {
					stuck <- err
					return
				}
			}
		}()
		<-started
		for p.dial.writeMu.TryLock() { // until the writer is found holding it for long
			p.dial.writeMu.Unlock()
			time.Sleep(time.Millisecond)
		}
		p.dial.Abort()
		if err := <-stuck; err == nil {
			t.Error("the writer goes on")
		}
		var err error
		for err == nil {
			_, err = p.accept.Read(make([]byte, MaxPayload))
		}
		if err == io.EOF {
			t.Error("the peer takes the end for a clean one")
		}
		if p.dial.Finish(make([]byte, 10)) || p.accept.Finish(make([]byte, 10)) {
			t.Error("fit for another stream")
		}
	})
}

// Abort may come from anybody at any time, also while all other methods run.
func TestAbortAtAnyTime(t *testing.T) {
	overAll(t, func(t *testing.T, p *pair) {
		for i := range 50 {
			if p.dial.Broken() || p.accept.Broken() {
				return // as it may
			}
			if err := p.dial.Open(testClient, []byte("x"), nil); err != nil {
				return
			}
			if _, err := p.accept.Next(); err != nil {
				return
			}
			var group sync.WaitGroup
			for _, c := range []*Conn{p.dial, p.accept} {
				group.Go(func() { _, _ = io.Copy(io.Discard, c) })
				group.Go(func() { time.Sleep(time.Duration(i) * 10 * time.Microsecond); c.Abort() })
			}
			group.Go(func() { _ = p.accept.Accept(); _, _ = p.accept.Write(make([]byte, 100_000)); _ = p.accept.CloseWrite() })
			group.Go(func() { _, _ = p.dial.Write(make([]byte, 100_000)); _ = p.dial.CloseWrite() })
			group.Wait()
			p.finish()
		}
	})
}

func TestOpenTakesOnlyAddressesItCanSend(t *testing.T) {
	c := New(&script{}, func() {})
	if err := c.Open(netip.AddrPort{}, nil, nil); err == nil {
		t.Error("the zero address was sent")
	}
	p := plainPair(t)
	for _, tt := range []struct{ in, want string }{
		{"[fe80::1%eth0]:1", "[fe80::1]:1"},
		{"[::ffff:10.0.0.1]:2", "10.0.0.1:2"},
		{"[fd84::1]:65535", "[fd84::1]:65535"},
		{"0.0.0.0:0", "0.0.0.0:0"},
	} {
		if err := p.dial.Open(netip.MustParseAddrPort(tt.in), nil, make([]byte, 64)); err != nil {
			t.Fatal(err)
		}
		if got, err := p.accept.Next(); err != nil || got.String() != tt.want {
			t.Errorf("%s arrives as %v, %v; want %s", tt.in, got, err, tt.want)
		}
		if dial, accept := p.finish(); !dial || !accept {
			t.Fatal("not fit")
		}
	}
}

func TestErrReset(t *testing.T) {
	if !isReset(ErrReset) || isReset(ErrRefused) {
		t.Error("ErrReset, and only that, must read as ECONNRESET")
	}
	if !strings.Contains(ErrReset.Error(), "reset") {
		t.Error(ErrReset)
	}
}
