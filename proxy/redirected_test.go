package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tulle-mesh/tulle/proxy/mtls"
	"github.com/tulle-mesh/tulle/proxy/tcp"
)

// certified is a proxy whose certificate is good for a time.
func certified(d time.Duration) *Proxy {
	p := &Proxy{log: slog.New(slog.DiscardHandler), redirected: make(chan struct{})}
	p.seenRedirected = sync.OnceFunc(func() { close(p.redirected) })
	p.creds.Store(&mtls.Credentials{Leaf: tls.Certificate{Leaf: &x509.Certificate{NotAfter: time.Now().Add(d)}}})
	return p
}

func TestRedirectProbe(t *testing.T) {
	for _, tt := range []struct {
		name, request, want string
		good                time.Duration
	}{
		{"ready", "GET /ready HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 200 OK", time.Hour},
		{"without a certificate", "GET /ready HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 503 Service Unavailable", -time.Hour},
		{"figures are elsewhere", "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 404 Not Found", time.Hour},
		{"something else", "\x16\x03\x01\x00\r\n\r\n", "", time.Hour},
		{"too long", "GET /ready HTTP/1.1\r\nHost: " + strings.Repeat("a", maxRedirectProbe), "", time.Hour},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := certified(tt.good)
			addr, stop := acceptTest(t, p, func(_ context.Context, c *tcp.Conn, _ *tracked) { p.answerRedirectProbe(c) })
			c := dialTest(t, addr)
			if _, err := io.WriteString(c, tt.request); err != nil {
				t.Fatal(err)
			}
			_ = c.SetReadDeadline(time.Now().Add(time.Minute))
			answer, _ := io.ReadAll(c)
			if first, _, _ := strings.Cut(string(answer), "\r\n"); first != tt.want {
				t.Errorf("answered %q, want %q", answer, tt.want)
			}
			stop()
			select {
			case <-p.redirected:
			default:
				t.Error("a connection by the redirect was not noticed")
			}
		})
	}
}

func TestMissRedirect(t *testing.T) {
	for _, tt := range []struct {
		name  string
		after time.Duration
		want  []string
	}{
		{"at once", redirectPatience / 2, nil},
		{"repaired", redirectPatience * 2, []string{"tulle check", "is redirected now"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				p := certified(time.Hour)
				p.log = slog.New(slog.NewTextHandler(&log, nil))
				var done sync.WaitGroup
				done.Go(func() { p.missRedirect(t.Context()) })
				time.Sleep(tt.after)
				p.seenRedirected()
				done.Wait()
				if n := strings.Count(log.String(), "\n"); n != len(tt.want) {
					t.Errorf("said: %s", log.String())
				}
				for _, want := range tt.want {
					if !strings.Contains(log.String(), want) {
						t.Errorf("said %q, want %q in it", log.String(), want)
					}
				}
			})
		})
	}
}
