package mtls

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tulle-mesh/tulle/mesh"
	"github.com/tulle-mesh/tulle/proxy/tcp"
)

// tcpPair returns both ends of a connection on loopback.
func tcpPair(t testing.TB) (a, b *tcp.Conn) {
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
	ends := [2]*tcp.Conn{}
	for i, c := range []net.Conn{dialled, accepted} {
		if ends[i], err = tcp.New(c.(*net.TCPConn)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
	return ends[0], ends[1]
}

// connPair returns both ends of a connection between two proxies.
func connPair(t testing.TB) (client, server *Conn) {
	t.Helper()
	a := newCA(t)
	x, y := tcpPair(t)
	var serving sync.WaitGroup
	serving.Go(func() {
		var err error
		if server, err = Server(y, a.credentials(t, "server").Server()); err != nil {
			t.Error(err)
		}
	})
	client, err := Client(x, a.credentials(t, "client").Client(testID("server"), mesh.ALPNTCP))
	serving.Wait()
	if err != nil || server == nil {
		t.Fatal("no connection: ", err)
	}
	return client, server
}

// peerOf returns a Conn and, at the other end, what the standard library makes of it.
func peerOf(t testing.TB, role string, suite uint16) (*Conn, *tls.Conn) {
	t.Helper()
	a := newCA(t)
	x, y := tcpPair(t)
	clientConf := a.credentials(t, "client").Client(testID("server"), mesh.ALPNTCP)
	serverConf := a.credentials(t, "server").Server()
	var ours *Conn
	var theirs *tls.Conn
	var err error
	var group sync.WaitGroup
	if role == "client" {
		theirs = tls.Server(y, serverConf)
		group.Go(func() { ours, err = Client(x, clientConf) })
	} else {
		theirs = tls.Client(y, clientConf)
		group.Go(func() { ours, err = Server(x, serverConf) })
	}
	if err := theirs.Handshake(); err != nil {
		t.Error(err)
	}
	group.Wait()
	if err != nil {
		t.Fatal(err)
	}
	if suite != 0 && theirs.ConnectionState().CipherSuite != suite {
		t.Skip("another cipher suite")
	}
	return ours, theirs
}

func TestConnKnowsItsPeer(t *testing.T) {
	client, server := connPair(t)
	if client.Peer != testID("server") || server.Peer != testID("client") || client.Protocol != mesh.ALPNTCP || server.Protocol != mesh.ALPNTCP {
		t.Errorf("client %v %s, server %v %s", client.Peer, client.Protocol, server.Peer, server.Protocol)
	}
}

// The standard library reads what a Conn writes and the other way round, in
// pieces of all sizes, from the first byte behind the handshake to close_notify.
func TestConnAgainstTheStandardLibrary(t *testing.T) {
	for _, role := range []string{"client", "server"} {
		t.Run(role, func(t *testing.T) {
			ours, theirs := peerOf(t, role, 0)
			random := rand.New(rand.NewPCG(1, 2))
			there, back := make([]byte, 3<<20), make([]byte, 3<<20)
			for i := range there {
				there[i], back[i] = byte(random.Uint32()), byte(random.Uint32())
			}
			var group sync.WaitGroup
			send := func(w io.Writer, b []byte, sizes *rand.Rand) {
				for len(b) > 0 {
					n := min(len(b), 1+sizes.IntN(1<<sizes.IntN(18)))
					if m, err := w.Write(b[:n]); m != n || err != nil {
						t.Errorf("Write = %d, %v; want %d", m, err, n)
						return
					}
					b = b[n:]
				}
			}
			group.Go(func() { send(ours, there, rand.New(rand.NewPCG(3, 4))); ours.CloseWrite() })
			group.Go(func() { send(theirs, back, rand.New(rand.NewPCG(5, 6))); theirs.CloseWrite() })
			group.Go(func() {
				if got, err := io.ReadAll(theirs); err != nil || !bytes.Equal(got, there) {
					t.Errorf("theirs: %d bytes, %v", len(got), err)
				}
			})
			if got, err := readPieces(ours, random); err != nil || !bytes.Equal(got, back) {
				t.Errorf("ours: %d bytes, %v; want %d", len(got), err, len(back))
			}
			group.Wait()
			if n, err := ours.Read(make([]byte, 1)); n != 0 || err != io.EOF {
				t.Errorf("after the end: %d, %v", n, err)
			}
			if _, err := ours.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Write after CloseWrite: %v", err)
			}
		})
	}
}

func readPieces(r io.Reader, random *rand.Rand) ([]byte, error) {
	var all []byte
	for {
		p := make([]byte, 1+random.IntN(1<<random.IntN(18)))
		n, err := r.Read(p)
		all = append(all, p[:n]...)
		if err == io.EOF {
			return all, nil
		}
		if err != nil {
			return all, err
		}
	}
}

// Bulk arrives as it was sent whether or not there are buffers for large
// pieces of it, and in pieces that follow how much comes.
func TestConnBulk(t *testing.T) {
	for _, rich := range []bool{true, false} {
		var held []*tcp.Buffer
		for !rich && (len(held) == 0 || len(held[len(held)-1].B) == tcp.Huge) {
			held = append(held, tcp.NewBuffer(tcp.Huge))
		}
		client, server := connPair(t)
		sent := make([]byte, 8<<20)
		for i := range sent {
			sent[i] = byte(i * i >> 8)
		}
		var sending sync.WaitGroup
		sending.Go(func() {
			if n, err := client.Write(sent); n != len(sent) || err != nil {
				t.Errorf("Write = %d, %v", n, err)
			}
			_ = client.CloseWrite()
		})
		got, piece := []byte{}, make([]byte, 256<<10)
		for {
			n, err := server.Read(piece)
			got = append(got, piece[:n]...)
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		sending.Wait()
		if !bytes.Equal(got, sent) {
			t.Errorf("rich %v: %d bytes came, which differ from the %d that were sent", rich, len(got), len(sent))
		}
		for _, b := range held {
			b.Free()
		}
	}
}

// The end of the TCP connection is not the end of the bytes.
func TestConnCutOff(t *testing.T) {
	ours, theirs := peerOf(t, "server", 0)
	if _, err := theirs.Write([]byte("half of it")); err != nil {
		t.Fatal(err)
	}
	theirs.NetConn().Close()
	got, err := io.ReadAll(ours)
	if string(got) != "half of it" || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("read %q, %v; want %v", got, err, io.ErrUnexpectedEOF)
	}
}

// A deadline in the middle of a record loses nothing.
func TestConnDeadline(t *testing.T) {
	client, server := connPair(t)
	record, err := client.out.seal(make([]byte, 0, 100), recordData, []byte("hello"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range record {
		_ = server.SetReadDeadline(time.Unix(1, 0))
		if _, err := server.Read(make([]byte, 10)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("after %d bytes: %v", i, err)
		}
		_ = server.SetReadDeadline(time.Time{})
		if _, err := client.Conn.Write(record[i : i+1]); err != nil {
			t.Fatal(err)
		}
		for i < len(record)-1 && server.Conn.Queued()+server.w-server.r < i+1 {
			time.Sleep(time.Millisecond)
		}
		if i < len(record)-1 { // takes what is there, and then waits for more
			_ = server.SetReadDeadline(time.Now().Add(time.Millisecond))
			_, _ = server.Read(make([]byte, 10))
		}
	}
	p := make([]byte, 10)
	if n, err := server.Read(p); string(p[:n]) != "hello" || err != nil {
		t.Errorf("read %q, %v", p[:n], err)
	}
}

// What a peer with the right keys might send all the same.
func TestConnHostilePeer(t *testing.T) {
	seal := func(c *Conn, kind byte, p string) []byte {
		b, err := c.out.seal(make([]byte, 0, len(p)+100), kind, []byte(p))
		if err != nil {
			panic(err)
		}
		return b
	}
	many := func(c *Conn, n int, kind byte, p string) (all []byte) {
		for range n {
			all = append(all, seal(c, kind, p)...)
			if p == keyUpdate {
				_ = c.out.update()
			}
		}
		return all
	}
	for _, tt := range []struct {
		name string
		make func(c *Conn) []byte
		want string
	}{
		{"plain text", func(*Conn) []byte { return []byte("GET / HTTP/1.1\r\n\r\n") }, "malformed"},
		{"an alert in the clear", func(*Conn) []byte { return []byte{recordAlert, 3, 3, 0, 2, 2, 40} }, "malformed"},
		{"a record of 64 KiB", func(*Conn) []byte { return []byte{recordData, 3, 3, 255, 255} }, "malformed"},
		{"a record too short for its tag", func(*Conn) []byte { return append([]byte{recordData, 3, 3, 0, 5}, "12345"...) }, "malformed"},
		{"SSL 3", func(*Conn) []byte { return []byte{recordData, 3, 0, 0, 20} }, "malformed"},
		{"a flipped bit", func(c *Conn) []byte { b := seal(c, recordData, "hello"); b[7] ^= 1; return b }, "authentication"},
		{"a record twice", func(c *Conn) []byte { b := seal(c, recordData, "hello"); return append(b, b...) }, "authentication"},
		{"a record left out", func(c *Conn) []byte { seal(c, recordData, "1"); return seal(c, recordData, "2") }, "authentication"},
		{"too much in a record", func(c *Conn) []byte { return seal(c, recordData, strings.Repeat("x", maxPlaintext+1)) }, "malformed"},
		{"nothing but padding", func(c *Conn) []byte { return seal(c, 0, "\x00\x00\x00") }, "malformed"},
		{"unknown kind", func(c *Conn) []byte { return seal(c, 99, "x") }, "malformed"},
		{"a ticket", func(c *Conn) []byte { return seal(c, recordHandshake, "\x04\x00\x00\x01x") }, "malformed"},
		{"a key update that wants one back", func(c *Conn) []byte { return seal(c, recordHandshake, "\x18\x00\x00\x01\x01") }, "malformed"},
		{"half an alert", func(c *Conn) []byte { return seal(c, recordAlert, "\x02") }, "malformed"},
		{"an alert", func(c *Conn) []byte { return seal(c, recordAlert, "\x02\x2a") }, "bad certificate"},
		{"empty records", func(c *Conn) []byte { return many(c, 100, recordData, "") }, "without data"},
		{"key updates", func(c *Conn) []byte { return many(c, 100, recordHandshake, keyUpdate) }, "without data"},
	} {
		client, server := connPair(t)
		if _, err := client.Conn.Write(tt.make(client)); err != nil {
			t.Fatal(err)
		}
		_ = client.Conn.CloseWrite()
		_, err := io.ReadAll(server)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q in it", tt.name, err, tt.want)
		}
		if n, again := server.Read(make([]byte, 10)); n != 0 || again == nil || again == io.EOF {
			t.Errorf("%s: reading goes on: %d, %v", tt.name, n, again)
		}
		if server.raw != nil {
			t.Errorf("%s: a buffer is kept", tt.name)
		}
	}
}

func TestConnReadOfNothing(t *testing.T) {
	client, server := connPair(t)
	_, _ = client.Write([]byte("one"))
	_, _ = client.Write([]byte("two"))
	all := make([]byte, 0, 6)
	for len(all) < 6 {
		if n, err := server.Read(nil); n != 0 || err != nil {
			t.Fatal(n, err)
		}
		n, err := server.Read(all[len(all) : len(all)+1])
		if err != nil {
			t.Fatal(err)
		}
		all = all[:len(all)+n]
	}
	if string(all) != "onetwo" {
		t.Errorf("read %q", all)
	}
}

func TestConnTakesPadding(t *testing.T) {
	client, server := connPair(t)
	b, err := client.out.seal(make([]byte, 0, 100), 0, []byte("hello\x17\x00\x00"))
	if err != nil {
		t.Fatal(err)
	}
	_, _ = client.Conn.Write(b)
	p := make([]byte, 10)
	if n, err := server.Read(p); string(p[:n]) != "hello" || err != nil {
		t.Errorf("read %q, %v", p[:n], err)
	}
}

// A connection outlives its keys: at the limit a new one takes over, and
// nobody notices, the standard library neither.
func TestConnChangesKeys(t *testing.T) {
	client, server := connPair(t)
	for range 3 {
		client.out.seq, server.in.seq = maxRecords-3, maxRecords-3
		for i := range 10 {
			want := strings.Repeat("x", i*10_000+1)
			var group sync.WaitGroup
			group.Go(func() {
				if _, err := client.Write([]byte(want)); err != nil {
					t.Error(err)
				}
			})
			got := make([]byte, len(want))
			if _, err := io.ReadFull(server, got); err != nil || string(got) != want {
				t.Fatalf("write %d: %v", i, err)
			}
			group.Wait()
		}
		if client.out.seq > 100 || server.in.seq != client.out.seq {
			t.Fatalf("%d records written, %d read under one key", client.out.seq, server.in.seq)
		}
	}
	ours, theirs := peerOf(t, "client", 0)
	b, err := ours.out.seal(make([]byte, 0, 100), recordHandshake, []byte(keyUpdate))
	if err == nil {
		err = ours.out.update()
	}
	if err != nil {
		t.Fatal(err)
	}
	_, _ = ours.Conn.Write(b)
	_, _ = ours.Write([]byte("under the next key"))
	p := make([]byte, 100)
	if n, err := theirs.Read(p); string(p[:n]) != "under the next key" || err != nil {
		t.Errorf("the standard library reads %q, %v", p[:n], err)
	}
}

func TestConnIdleHoldsNoBuffer(t *testing.T) {
	client, server := connPair(t)
	for range 3 {
		_, _ = client.Write([]byte("ping"))
		if _, err := io.ReadFull(server, make([]byte, 4)); err != nil {
			t.Fatal(err)
		}
		if server.raw != nil {
			t.Fatal("a buffer is kept")
		}
	}
}

// What was read and is not taken goes with the connection: its buffer does not.
func TestConnClosedHoldsNoBuffer(t *testing.T) {
	for name, end := range map[string]func(*Conn){"Close": func(c *Conn) { _ = c.Close() }, "Reset": (*Conn).Reset} {
		t.Run(name, func(t *testing.T) { closedHoldsNoBuffer(t, end) })
	}
}

func closedHoldsNoBuffer(t *testing.T, end func(*Conn)) {
	client, server := connPair(t)
	_, _ = client.Write([]byte("ping, and more"))
	if _, err := io.ReadFull(server, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	if server.raw == nil {
		t.Fatal("nothing is left to be read")
	}
	end(server)
	if server.raw != nil {
		t.Error("a buffer is kept")
	}
	if n, err := server.Read(make([]byte, 4)); n != 0 || !errors.Is(err, net.ErrClosed) {
		t.Errorf("Read = %d, %v after the end", n, err)
	}

	var reading sync.WaitGroup
	reading.Go(func() { _, _ = io.Copy(io.Discard, client) })
	end(client)
	reading.Wait()
	if client.raw != nil {
		t.Error("whoever was reading kept a buffer")
	}
}

func TestConnAllocations(t *testing.T) {
	client, server := connPair(t)
	out, in := make([]byte, 8<<10), make([]byte, 8<<10)
	round := func() {
		if _, err := client.Write(out); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(server, in); err != nil {
			t.Fatal(err)
		}
	}
	round()
	if n := testing.AllocsPerRun(200, round); n > 0 && !raceDetector {
		t.Errorf("%v allocations for 8 KiB, want none", n)
	}
}

func TestFailedHandshakeCloses(t *testing.T) {
	a := newCA(t)
	x, y := tcpPair(t)
	go func() { _, _ = y.Write([]byte("this is no TLS at all")) }()
	if _, err := Client(x, a.credentials(t, "client").Client(testID("server"), mesh.ALPNTCP)); err == nil {
		t.Fatal("accepted")
	}
	if _, err := x.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the connection is open: %v", err)
	}
}

// FuzzConn plays a peer whose records are arbitrary bytes, sealed with the right
// key or not at all.
func FuzzConn(f *testing.F) {
	f.Add([]byte("hello"), uint8(recordData), true)
	f.Add([]byte("\x02\x28"), uint8(recordAlert), true)
	f.Add([]byte(keyUpdate), uint8(recordHandshake), true)
	f.Add([]byte("\x17\x03\x03\x00\x20xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"), uint8(0), false)
	f.Add([]byte(""), uint8(0), true)
	f.Fuzz(func(t *testing.T, in []byte, kind uint8, sealed bool) {
		var keys half
		if err := keys.init(tls.TLS_AES_128_GCM_SHA256, make([]byte, 32)); err != nil {
			t.Fatal(err)
		}
		raw := in
		if sealed && len(in) <= maxPlaintext+200 {
			raw, _ = keys.seal(make([]byte, 0, len(in)+100), kind, in)
		}
		x, y := tcpPair(t)
		c := &Conn{Conn: x}
		if err := c.in.init(tls.TLS_AES_128_GCM_SHA256, make([]byte, 32)); err != nil {
			t.Fatal(err)
		}
		go func() { _, _ = y.Write(raw); _ = y.CloseWrite() }()
		got, err := io.ReadAll(c)
		if len(got) > len(in) || err == nil && len(got) > 0 {
			t.Errorf("%d bytes, %v out of %d", len(got), err, len(in))
		}
		x.Close()
		y.Close()
	})
}
