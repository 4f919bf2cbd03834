package stream

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"
)

var testClient = netip.MustParseAddrPort("10.84.0.7:40000")

// pair is two ends over one connection.
type pair struct {
	dial, accept *Conn
	// What lies below, and whether kill was called.
	dialBelow, acceptBelow Transport
	dialKilled, killed     func() bool
}

// killer notes that a connection was torn down, and does it.
type killer struct {
	mu   sync.Mutex
	done bool
	kill func()
}

func (k *killer) run() {
	k.mu.Lock()
	k.done = true
	k.mu.Unlock()
	k.kill()
}

func (k *killer) killed() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.done
}

func newPair(a, b Transport, killA, killB func()) *pair {
	ka, kb := &killer{kill: killA}, &killer{kill: killB}
	return &pair{
		dial: New(a, ka.run), accept: New(b, kb.run), dialBelow: a, acceptBelow: b,
		dialKilled: ka.killed, killed: kb.killed,
	}
}

// tcpPair returns both ends of a TCP connection on loopback.
func tcpPair(t testing.TB) (a, b *net.TCPConn) {
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
	t.Cleanup(func() { dialled.Close(); accepted.Close() })
	return dialled.(*net.TCPConn), accepted.(*net.TCPConn)
}

func resetTCP(c *net.TCPConn) func() {
	return func() {
		_ = c.SetLinger(0)
		_ = c.Close()
	}
}

func plainPair(t testing.TB) *pair {
	a, b := tcpPair(t)
	return newPair(a, b, resetTCP(a), resetTCP(b))
}

func tlsPair(t testing.TB) *pair {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	a, b := tcpPair(t)
	server := tls.Server(b, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS13})
	client := tls.Client(a, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13})
	var shaken sync.WaitGroup
	shaken.Go(func() {
		if err := server.Handshake(); err != nil {
			t.Error(err)
		}
	})
	if err := client.Handshake(); err != nil {
		t.Error(err)
	}
	shaken.Wait()
	return newPair(client, server, resetTCP(a), resetTCP(b))
}

// open begins a stream and has it accepted.
func (p *pair) open(t testing.TB, first string) {
	t.Helper()
	if err := p.dial.Open(testClient, []byte(first), nil); err != nil {
		t.Fatalf("Open: %v", err)
	}
	client, err := p.accept.Next()
	if err != nil || client != testClient {
		t.Fatalf("Next = %v, %v; want %v", client, err, testClient)
	}
	if err := p.accept.Accept(); err != nil {
		t.Fatalf("Accept: %v", err)
	}
	if err := p.dial.Accepted(); err != nil {
		t.Fatalf("Accepted: %v", err)
	}
}

// finish ends the stream on both sides at once and reports whether both may go on.
func (p *pair) finish() (dial, accept bool) {
	var group sync.WaitGroup
	group.Go(func() { accept = p.accept.Finish(make([]byte, MaxPayload)) })
	dial = p.dial.Finish(make([]byte, MaxPayload))
	group.Wait()
	return dial, accept
}

// mustRead reads exactly want from c.
func mustRead(t testing.TB, c *Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Fatalf("read %q, %v; want %q", got, err, want)
	}
}

func mustWrite(t testing.TB, c *Conn, s string) {
	t.Helper()
	if n, err := c.Write([]byte(s)); n != len(s) || err != nil {
		t.Fatalf("Write = %d, %v", n, err)
	}
}

func mustEnd(t testing.TB, c *Conn, want error) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, want) {
		t.Fatalf("Read = %d, %v; want the end as %v", n, err, want)
	}
}

// script is a peer that says what was written down beforehand and takes
// whatever it is told. A read beyond the end waits for the deadline if mute, else it
// is the end of the connection.
type script struct {
	mute bool

	mu       sync.Mutex
	in       []byte
	chunk    int // bytes returned at a time; 0: as many as fit
	deadline bool
	wrote    int
}

func (s *script) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.in) == 0 {
		if s.mute && s.deadline {
			return 0, os.ErrDeadlineExceeded
		}
		return 0, io.EOF
	}
	if s.chunk > 0 && len(p) > s.chunk {
		p = p[:s.chunk]
	}
	n := copy(p, s.in)
	s.in = s.in[n:]
	return n, nil
}

func (s *script) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wrote += len(p)
	return len(p), nil
}

func (s *script) Close() error { return nil }

func (s *script) SetReadDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deadline = !t.IsZero()
	return nil
}

func (s *script) SetWriteDeadline(time.Time) error { return nil }

func frame(kind frameType, payload string) string {
	return string(appendHeader(nil, kind, len(payload))) + payload
}

func openFrame(client netip.AddrPort) string {
	b, err := client.MarshalBinary()
	if err != nil {
		panic(err)
	}
	return frame(frameOpen, string(b))
}

func isReset(err error) bool { return errors.Is(err, syscall.ECONNRESET) }
