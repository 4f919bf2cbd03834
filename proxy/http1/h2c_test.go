package http1

import "testing"

func TestWithoutH2C(t *testing.T) {
	for _, tt := range []struct{ name, head, want string }{
		{"as clients send it",
			"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\nX: y\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nX: y\r\n\r\n"},
		{"first, last, twice, in capitals",
			"GET / HTTP/1.1\r\nUPGRADE: h2c\r\nHost: a\r\nConnection: upgrade\r\nupgrade: websocket\r\nhttp2-SETTINGS:\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\n\r\n"},
		{"behind an empty line",
			"\r\nGET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: foo, h2c\r\n\r\n",
			"\r\nGET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\n\r\n"},
		{"other fields that look alike",
			"GET /upgrade: HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\nX-Upgrade: h2c\r\nUpgrade-Insecure-Requests: 1\r\n\r\n",
			"GET /upgrade: HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nX-Upgrade: h2c\r\nUpgrade-Insecure-Requests: 1\r\n\r\n"},
	} {
		b := []byte(tt.head)
		var r Request
		if n, err := r.Parse(b); n != len(b) || err != nil || !r.H2C {
			t.Fatalf("%s: %d, %v, h2c %v", tt.name, n, err, r.H2C)
		}
		b = b[WithoutH2C(b):]
		if string(b) != tt.want {
			t.Errorf("%s: %q", tt.name, b)
		}
		if n, err := r.Parse(b); n != len(b) || err != nil || r.H2C || r.Upgrade {
			t.Errorf("%s: %d, %v, h2c %v, upgrade %v", tt.name, n, err, r.H2C, r.Upgrade)
		}
	}
}
