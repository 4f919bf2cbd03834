package proxy

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/tulle-mesh/tulle/mesh"
	"github.com/tulle-mesh/tulle/proxy/mtls"
)

// Proxies of two versions carry each other's traffic, and the newer one sends
// nothing that the older one does not know.
func TestOlderProxy(t *testing.T) {
	older := func(p *Proxy) {
		p.creds.Load().Server().NextProtos = []string{mesh.ALPNHTTP1First, mesh.ALPNHTTP2, mesh.ALPNTCPFirst}
	}
	t.Run("http", func(t *testing.T) {
		const size = 4 << 20
		ln, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		app := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })}
		go app.Serve(ln)
		t.Cleanup(func() { app.Close() })
		pair := newTestPair(t, ln.Addr(), false, older)
		resp, err := http.Post("http://"+pair.addr, "text/plain", strings.NewReader(strings.Repeat("x", size)))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if b, err := io.ReadAll(resp.Body); err != nil || len(b) != size {
			t.Fatalf("%d bytes, %v", len(b), err)
		}
		up := pair.dest.set.Endpoints()[0].Value
		up.links.mu.Lock()
		defer up.links.mu.Unlock()
		if len(up.links.open) != 1 {
			t.Fatalf("%d links", len(up.links.open))
		}
	})
	t.Run("tcp", func(t *testing.T) {
		const size = 16 << 20
		ln, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ln.Close() })
		go func() {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			_, _ = io.Copy(c, c)
		}()
		pair := newTestPair(t, ln.Addr(), false, older)
		c, err := net.Dial("tcp", pair.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		sent := bytes.Repeat([]byte("\x00 bulk of bytes"), size/16)
		go func() {
			_, _ = c.Write(sent)
			_ = c.(*net.TCPConn).CloseWrite()
		}()
		got, err := io.ReadAll(c)
		if err != nil || !bytes.Equal(got, sent) {
			t.Fatalf("%d bytes of %d, %v", len(got), len(sent), err)
		}
	})
}

// What was agreed on decides what is used.
func TestVersionLimits(t *testing.T) {
	p := newTestProxy(t, newTestAuthority(t), "client", false)
	if p.growth(&mtls.Conn{Protocol: mesh.ALPNHTTP1First}) != nil || p.growth(&mtls.Conn{Protocol: mesh.ALPNHTTP1}) != p.windows {
		t.Error("windows grow where they must not, or do not where they may")
	}
}
