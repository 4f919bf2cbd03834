package sniff

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"strings"
	"testing"
)

// clientHello returns the bytes with which crypto/tls greets for the given ALPN names.
func clientHello(t testing.TB, protos ...string) []byte {
	t.Helper()
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	var hello bytes.Buffer
	go func() {
		_ = tls.Client(near, &tls.Config{ServerName: "x.example", NextProtos: protos}).Handshake()
	}()
	head := make([]byte, recordHeaderLen)
	if _, err := io.ReadFull(far, head); err != nil {
		t.Fatal(err)
	}
	hello.Write(head)
	if _, err := io.CopyN(&hello, far, int64(head[3])<<8|int64(head[4])); err != nil {
		t.Fatal(err)
	}
	return hello.Bytes()
}

func TestClient(t *testing.T) {
	foreign, ours := clientHello(t, "h2", "http/1.1"), clientHello(t, "tulle-tcp")
	// The same hello, cut into two records.
	split := append([]byte{22, 3, 1, 0, 10}, ours[5:15]...)
	rest := len(ours) - 15
	split = append(append(split, 22, 3, 1, byte(rest>>8), byte(rest)), ours[15:]...)

	for _, tt := range []struct {
		name string
		in   string
		want Verdict
	}{
		{"GET", "GET / HTTP/1.1\r\n", HTTP1},
		{"POST", "POST /a HTTP/1.1\r\n", HTTP1},
		{"PUT", "PUT /a HTTP/1.0\r\n", HTTP1},
		{"PATCH", "PATCH /a HTTP/1.0\r\n", HTTP1},
		{"PROPFIND", "PROPFIND /a HTTP/1.1\r\n", HTTP1},
		{"M-SEARCH", "M-SEARCH * HTTP/1.1\r\n", HTTP1},
		{"empty line first", "\r\nGET / HTTP/1.1\r\n", HTTP1},
		{"bare LF goes to the strict parser", "GET / HTTP/1.1\n", HTTP1},
		{"PRI over HTTP/1 goes to the strict parser", "PRI * HTTP/1.1\r\n", HTTP1},
		{"future version goes to the strict parser", "GET / HTTP/3.0\r\n", HTTP1},
		{"preface", preface, HTTP2},
		{"foreign TLS", string(foreign), TLS},
		{"mesh TLS", string(ours), MeshTLS},
		{"mesh TLS in two records", string(split), MeshTLS},
		{"hello without extensions", "\x16\x03\x01\x00\x2d\x01\x00\x00\x29\x03\x03" + strings.Repeat("r", 32) + "\x00\x00\x02\x13\x01\x01\x00", TLS},
		{"hello of TLS 1.0", "\x16\x03\x00\x00\x2d\x01\x00\x00\x29\x03\x01" + strings.Repeat("r", 32) + "\x00\x00\x02\x00\x2f\x01\x00", TLS},
		{"hello whose lengths lie", "\x16\x03\x01\x00\x2d\x01\x00\x00\x29\x03\x03" + strings.Repeat("r", 32) + "\xff\xff\x02\x13\x01\x01\x00", TLS},
		{"hello of 64 KiB", "\x16\x03\x01\x40\x00\x01\x01\x00\x00" + strings.Repeat("\x00", 1<<14-4), Opaque},
		{"hello in records of one byte", strings.Repeat("\x16\x03\x01\x00\x01\x01", 3*MaxBytes/6), Opaque},
		{"mongo", "\x3a\x00\x00\x00\x01\x00\x00\x00", Opaque},
		{"kafka", "\x00\x00\x00\x19\x00\x12\x00\x03", Opaque},
		{"amqp", "AMQP\x00\x00\x09\x01", Opaque},
		{"mqtt", "\x10\x0c\x00\x04MQTT", Opaque},
		{"almost the preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\r", HTTP1},
		{"SSLv2", "\x80\x2e\x01\x00\x02", Opaque},
		{"TLS alert", "\x15\x03\x01\x00\x02\x01\x00", Opaque},
		{"handshake that is no hello", "\x16\x03\x01\x00\x04\x02\x00\x00\x00", Opaque},
		{"HTTP/0.9", "GET /\r\n", Opaque},
		{"redis", "*1\r\n$4\r\nPING\r\n", Opaque},
		{"redis inline", "PING\r\n", Opaque},
		{"memcached", "get foo\r\n", Opaque},
		{"smtp", "EHLO x\r\n", Opaque},
		{"postgres SSLRequest", "\x00\x00\x00\x08\x04\xd2\x16\x2f", Opaque},
		{"ssh", "SSH-2.0-OpenSSH_9\r\n", Opaque},
		{"verb prefix in binary", "GET \x00\x01\x02", Opaque},
		{"endless method", strings.Repeat("A", maxMethod+1), Opaque},
		{"endless line", "GET /" + strings.Repeat("a", MaxBytes), Opaque},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for i := range len(tt.in) - 1 { // every proper prefix: undecided, or decided right
				if got := Client([]byte(tt.in[:i])); got != More && got != tt.want {
					t.Fatalf("after %d bytes: %v, want More or %v", i, got, tt.want)
				}
			}
			if got := Client([]byte(tt.in)); got != tt.want {
				t.Fatalf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func FuzzClient(f *testing.F) {
	for _, s := range []string{"", "GET / HTTP/1.1\r\n\r\n", preface, "\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", "PRI * HTTP/1.1\r\n"} {
		f.Add([]byte(s))
	}
	f.Add(clientHello(f, "tulle-tcp"))
	f.Fuzz(func(t *testing.T, b []byte) {
		whole := Client(b)
		if whole == More && len(b) >= MaxBytes {
			t.Fatal("wants more than it may")
		}
		// A verdict never changes as more bytes come.
		for i := range b {
			if v := Client(b[:i]); v != More {
				if w := Client(b[:i+1]); w != v {
					t.Fatalf("verdict went from %v to %v at byte %d", v, w, i)
				}
				break
			}
		}
	})
}
