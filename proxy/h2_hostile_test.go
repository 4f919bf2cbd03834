package proxy

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/tulle-mesh/tulle/mesh"
)

// settles waits for a condition.
func settles(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within half a minute: %s", what)
		}
	}
}

// TestH2Untaken: an answer that has come whole is a success once the client has taken
// it, and none if the client, or the proxy for it, gives it up before.
func TestH2Untaken(t *testing.T) {
	answer := bytes.Repeat([]byte("x"), 60<<10)
	app := newH2App(t, func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write(answer) })
	for _, c := range []struct {
		name string
		then func(t *testing.T, u *unreader)
		want mesh.Outcome
	}{
		{"taken", func(t *testing.T, u *unreader) {
			_ = u.WriteWindowUpdate(0, 1<<20)
			_ = u.WriteWindowUpdate(1, 1<<20)
			u.send()
		}, mesh.Success},
		{"given up", func(t *testing.T, u *unreader) { _ = u.WriteRSTStream(1, http2.ErrCodeCancel); u.send() }, mesh.Reset},
		{"connection closed", func(t *testing.T, u *unreader) { u.conn.Close() }, mesh.Reset},
		{"in part", func(t *testing.T, u *unreader) {
			_ = u.WriteWindowUpdate(0, 1<<20)
			_ = u.WriteWindowUpdate(1, 1000)
			_ = u.WriteRSTStream(1, http2.ErrCodeCancel)
			u.send()
		}, mesh.Reset},
	} {
		t.Run(c.name, func(t *testing.T) {
			pair := newTestPair(t, app, false)
			u := newUnreader(t, pair.addr)
			u.get(1, 1, "/")
			settles(t, "the answer is kept", func() bool { return pair.client.kept.Bytes() == int64(len(answer)) })
			settles(t, "the server's proxy is done", func() bool { return outcomeCount(pair.server, mesh.Success) == 1 })
			if n := outcomeCount(pair.client, mesh.Success) + outcomeCount(pair.client, mesh.Reset); n != 0 {
				t.Errorf("%d were recorded before it was taken", n)
			}
			c.then(t, u)
			settles(t, "it is recorded", func() bool { return outcomeCount(pair.client, c.want) == 1 })
			u.conn.Close()
			settles(t, "the connection has ended", func() bool { return pair.client.conns.len() == 0 })
			if s, r := outcomeCount(pair.client, mesh.Success), outcomeCount(pair.client, mesh.Reset); s+r != 1 {
				t.Errorf("recorded as %d successes and %d resets", s, r)
			}
		})
	}
}

// TestH2Shed: so is an answer that was whole when its stream was reset, because too
// much is kept for a client that does not read.
func TestH2Shed(t *testing.T) {
	p := newTestProxy(t, newTestAuthority(t), "client", false)
	a := &h2App{inbound: &inbound{proxy: p}, counters: p.recorder.edge(edgeKey{protocol: mesh.HTTP2})}
	x := &h2Exchange{conn: &h2Conn{proxy: p, router: a}, asked: true, answered: true, unsent: 1000}
	x.rec.Status, x.rec.Start = 200, time.Now()
	x.mu.Lock()
	x.finishLocked()
	x.mu.Unlock()
	r := (*h2Request)(x)
	r.Sent(400)
	r.Unread()
	r.Sent(600) // of what had left before
	r.Reset(0, io.EOF)
	if s, r := outcomeCount(p, mesh.Success), outcomeCount(p, mesh.Reset); s != 0 || r != 1 {
		t.Errorf("recorded as %d successes and %d resets", s, r)
	}
}

// TestH2TooLarge: header lists beyond 64 KiB are not forwarded, in whole or in part, and
// whoever waits for an answer hears why.
func TestH2TooLarge(t *testing.T) {
	large := strings.Repeat("x", 70_000)
	app := newH2App(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		switch r.URL.Path {
		case "/head":
			w.Header().Set("X-Large", large)
		case "/interim":
			w.Header().Set("X-Large", large)
			w.WriteHeader(http.StatusEarlyHints)
			w.Header().Del("X-Large")
		case "/trailer":
			_, _ = io.WriteString(w, "body")
			w.Header().Set(http.TrailerPrefix+"X-Large", large)
		case "/grpc":
			w.Header().Set("Content-Type", "application/grpc")
			_, _ = io.WriteString(w, "body")
			w.Header().Set(http.TrailerPrefix+"X-Large", large)
		}
	})
	for _, way := range []string{"meshed", "unmeshed client"} {
		pair := newTestPair(t, app, false)
		addr := pair.addr
		if way != "meshed" {
			addr = pair.plain
		}
		client := newH2Client(t)
		for _, c := range []struct{ path, want string }{
			{"/head", "502 head-too-large"},
			{"/interim", "502 head-too-large"},
			{"/trailer", "200 , then INTERNAL_ERROR"},
			{"/grpc", "200 , status 8"},
			{"/", "200 "},
		} {
			t.Run(way+c.path, func(t *testing.T) {
				req, _ := http.NewRequest("POST", "http://"+addr+c.path, io.MultiReader(strings.NewReader("x")))
				if c.path == "/grpc" {
					req.Header.Set("Content-Type", "application/grpc")
				}
				resp, err := client.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				_, err = io.ReadAll(resp.Body)
				resp.Body.Close()
				got := fmt.Sprint(resp.StatusCode, " ", resp.Header.Get("tulle-error"))
				switch status := resp.Trailer.Get("Grpc-Status"); {
				case err != nil && strings.Contains(err.Error(), "INTERNAL_ERROR"):
					got += ", then INTERNAL_ERROR"
				case err != nil:
					got += ", then " + err.Error()
				case status != "":
					got += ", status " + status
				}
				if got != c.want {
					t.Errorf("%s, should be %s", got, c.want)
				}
			})
		}
	}
}

// TestH2TrailerTooLarge: so is a request's trailer, without which it is not complete.
func TestH2TrailerTooLarge(t *testing.T) {
	body := make(chan error, 2)
	app := newH2App(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/begun" {
			w.(http.Flusher).Flush()
		}
		_, err := io.Copy(io.Discard, r.Body)
		body <- err
	})
	pair := newTestPair(t, app, false)
	c, err := net.Dial("tcp4", pair.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	f := http2.NewFramer(c, c)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	_, _ = io.WriteString(c, http2.ClientPreface)
	_ = f.WriteSettings()
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	encode := func(fields ...string) []byte {
		block.Reset()
		for i := 0; i < len(fields); i += 2 {
			_ = enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
		}
		return block.Bytes()
	}
	trailer := func(id uint32) {
		b := encode("x-large", strings.Repeat("x", 70_000))
		_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: b[:16<<10], EndStream: true})
		for b = b[16<<10:]; ; b = b[16<<10:] {
			n := min(len(b), 16<<10)
			_ = f.WriteContinuation(id, n == len(b), b[:n])
			if n == len(b) {
				return
			}
		}
	}
	// answer returns the status that a stream is answered with, or how it is reset.
	answer := func(id uint32) string {
		for {
			frame, err := f.ReadFrame()
			if err != nil {
				t.Fatal(err)
			}
			if frame.Header().StreamID != id {
				continue
			}
			switch frame := frame.(type) {
			case *http2.MetaHeadersFrame:
				return frame.PseudoValue("status")
			case *http2.RSTStreamFrame:
				return frame.ErrCode.String()
			}
		}
	}
	request := func(id uint32, path string) {
		_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndHeaders: true, BlockFragment: encode(":method", "POST", ":scheme", "http", ":path", path, ":authority", "a")})
	}
	request(1, "/")
	trailer(1)
	if got := answer(1); got != "431" {
		t.Errorf("answered %s", got)
	}
	request(3, "/begun")
	if got := answer(3); got != "200" {
		t.Errorf("answered %s", got)
	}
	trailer(3)
	if got := answer(3); got != "INTERNAL_ERROR" {
		t.Errorf("ended by %s", got)
	}
	if err := <-body; err == nil {
		t.Error("the application took half a request for a whole one")
	}
}

// TestH2Barren: an endpoint whose connections have no place for a stream, and end, is
// not dialled without end for one request.
func TestH2Barren(t *testing.T) {
	for _, c := range []struct {
		name string
		ends bool
	}{{"and ends", true}, {"and stays", false}} {
		t.Run(c.name, func(t *testing.T) {
			ln, err := net.Listen("tcp4", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { ln.Close() })
			var dialled atomic.Int64
			go func() {
				for {
					conn, err := ln.Accept()
					if err != nil {
						return
					}
					dialled.Add(1)
					go func() {
						defer conn.Close()
						f := http2.NewFramer(conn, conn)
						_, _ = io.ReadFull(conn, make([]byte, len(http2.ClientPreface)))
						_ = f.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 0})
						for {
							frame, err := f.ReadFrame()
							if s, ok := frame.(*http2.SettingsFrame); err != nil || ok && s.IsAck() && c.ends {
								return
							}
						}
					}()
				}
			}()
			_, dest, addr := h2Fleet(t, ln.Addr())
			client := newH2Client(t)
			if c.ends {
				resp, err := client.Get("http://" + addr + "/")
				if err != nil {
					t.Fatal(err)
				}
				if resp.Body.Close(); resp.StatusCode != 502 {
					t.Error(resp.Status)
				}
			} else {
				client.Timeout = time.Second // it waits for a place, as without the mesh
				if resp, err := client.Get("http://" + addr + "/"); err == nil {
					resp.Body.Close()
					t.Error(resp.Status)
				}
			}
			if n := dialled.Load(); n > 3*maxBarren {
				t.Errorf("%d connections for one request", n)
			}
			dest.set.Close()
		})
	}
}

// TestIdleGoodbye: who does not answer when asked to leave an idle connection is left.
func TestIdleGoodbye(t *testing.T) {
	app := newH2App(t, func(http.ResponseWriter, *http.Request) {})
	for _, way := range []string{"of the workload", "of nobody", "of another proxy"} {
		t.Run(way, func(t *testing.T) {
			pair := newTestPair(t, app, false)
			conns, addr := &pair.client.conns, pair.addr
			if way != "of the workload" {
				conns, addr = &pair.server.conns, pair.plain
			}
			if way == "of another proxy" { // answers no LEAVE
				link := tls.Client(dialTest(t, addr), pair.client.creds.Load().Client(pair.server.config.ID, mesh.ALPNHTTP1))
				if err := link.Handshake(); err != nil {
					t.Fatal(err)
				}
			} else { // answers no PING
				newUnreader(t, addr).send()
			}
			settles(t, "it is idle", func() bool {
				conns.mu.Lock()
				defer conns.mu.Unlock()
				if conns.awake.first == nil {
					return false
				}
				tr := conns.awake.first
				tr.mu.Lock()
				defer tr.mu.Unlock()
				return tr.idle && tr.deadline > 0
			})
			now := 2 * keepIdle
			settles(t, "it is closed", func() bool {
				now += time.Second
				conns.tick(now)
				return conns.len() == 0
			})
			if now < 2*keepIdle+goodbyePatience {
				t.Errorf("it had %v to say goodbye", now-2*keepIdle)
			}
		})
	}
}
