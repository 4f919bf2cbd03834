package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// An application that would go over to h2c is not asked to, and what follows the
// request on its connection is the next request, not something of another protocol.
func TestH2C(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	app := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %q %q %s", r.URL.Path, r.Header.Get("Upgrade"), r.Header.Get("HTTP2-Settings"), r.Header.Get("X"))
	})}
	go app.Serve(ln)
	t.Cleanup(func() { app.Close() })
	pair := newTestPair(t, ln.Addr(), false)
	for name, addr := range map[string]string{"meshed": pair.addr, "unmeshed client": pair.plain} {
		t.Run(name, func(t *testing.T) {
			c, err := net.Dial("tcp4", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(30 * time.Second))
			answers := bufio.NewReader(c)
			const ask = "GET /%d HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nX: y\r\n\r\n"
			for i, request := range []string{
				fmt.Sprintf(ask, 0),
				fmt.Sprintf(ask, 1) + fmt.Sprintf(ask, 2), // one behind the other
				"POST /3 HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nX: y\r\nContent-Length: 5\r\n\r\nhello",
				"GET /4 HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\n",
			} {
				if _, err := io.WriteString(c, request); err != nil {
					t.Fatal(err)
				}
				for range strings.Count(request, "HTTP/1.1\r\n") {
					resp, err := http.ReadResponse(answers, nil)
					if err != nil {
						t.Fatal(i, err)
					}
					b, err := io.ReadAll(resp.Body)
					if want := `"" "" y`; err != nil || resp.StatusCode != 200 || !strings.HasSuffix(string(b), want) {
						t.Fatalf("%d: %d %q %v", i, resp.StatusCode, b, err)
					}
				}
			}
		})
	}
}
