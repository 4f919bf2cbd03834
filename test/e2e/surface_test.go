package e2e

import (
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tulle-mesh/tulle/mesh"
)

// TestGarbage: whatever is said to whichever port of a proxy, it goes on
// serving, and nothing of the proxy itself answers a stranger.
func TestGarbage(t *testing.T) {
	host := newHost(t)
	host.serve(t, service{name: "web", port: 8080, argv: peerCommand("web", "--name", "well", ":8080")})
	web := host.replicas("web")[0]
	noise := make([]byte, 4096)
	rand.Read(noise)
	nonsense := []struct{ name, text string }{
		{"nothing", ""},
		{"noise", string(noise)},
		{"zeros", strings.Repeat("\x00", 4096)},
		{"http", "GET /metrics HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n"},
		{"http-0.9", "GET /\r\n"},
		{"http-cut", "GET / HTTP/1.1\r\nHo"},
		{"http-smuggling", "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
		{"http-2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + string(noise)},
		{"tls-cut", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"},
		{"tls-noise", "\x16\x03\x01\x10\x00" + string(noise)},
		{"ssl-3", "\x80\x2e\x01\x00\x02" + string(noise)},
		{"endless-line", strings.Repeat("A", 1<<20)},
	}
	for _, from := range []string{address(web.Address4), address(web.Address6)} {
		for _, port := range []int{8080, mesh.OutboundPort, mesh.InboundPort, mesh.AdminPort} {
			for _, n := range nonsense {
				t.Run(fmt.Sprintf("%s/%d/%s", from, port, n.name), func(t *testing.T) {
					answer := shout(net.JoinHostPort(from, strconv.Itoa(port)), n.text)
					if (port == mesh.OutboundPort || port == mesh.InboundPort) && answer != "" {
						t.Errorf("a stranger was answered: %.1000q", answer)
					}
				})
			}
		}
	}
	if r := play(t, host, "curl", "-sS", "http://web:8080/"); r.stdout != "well\n" {
		t.Errorf("afterwards: %s", r)
	}
}

// shout sends text and returns what comes back in a short while: on most ports
// nothing ever does.
func shout(addr, text string) string {
	conn, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return ""
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(200 * time.Millisecond))
	io.WriteString(conn, text)
	conn.(*net.TCPConn).CloseWrite()
	answer, _ := io.ReadAll(conn)
	return string(answer)
}

// TestProxyPorts: the ports of a proxy are no way around or through it, neither
// for its own workload nor for another one. Each dial ends with nothing.
func TestProxyPorts(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			host := newHost(t, "--redirect", backend)
			host.serve(t, service{name: "web", port: 8080, argv: peerCommand("web", "--name", "well", ":8080")})
			web := host.replicas("web")[0]
			targets := []string{"web", address(web.Address4), address(web.Address6), "127.0.0.1", "::1"}
			for _, target := range targets {
				for _, port := range []int{mesh.OutboundPort, mesh.InboundPort} {
					addr := net.JoinHostPort(target, strconv.Itoa(port))
					r := play(t, host, peerCommand("dial", addr, `send:GET / HTTP/1.1\r\nHost: web:8080\r\nConnection: close\r\n\r\n`, "eof")...)
					if strings.Contains(r.stdout, "200 OK") || strings.Contains(r.stdout, "timeout") {
						t.Errorf("%s: %s", addr, r)
					}
				}
			}
			for _, target := range targets[:3] {
				addr := net.JoinHostPort(target, strconv.Itoa(mesh.AdminPort))
				r := play(t, host, "curl", "-sS", "--max-time", "10", "http://"+addr+"/metrics")
				if strings.Contains(r.stdout, "tulle") || r.code == 28 {
					t.Errorf("%s: %s", addr, r)
				}
			}
			// A workload may call itself, by name and by address.
			self := service{name: "selfish", argv: []string{"bash", "-c", self() + " peer web --name me :8080 & until curl -fsS http://selfish:8080/ && curl -fsS http://127.0.0.1:8080/; do sleep 0.05; done; kill %1"}}
			if r := start(t, self.runArgs()...).wait(t); !strings.HasSuffix(r.stdout, "me\nme\n") {
				t.Errorf("to itself: %s", r)
			}
		})
	}
}

// address drops the prefix length of an address that has one.
func address(s string) string {
	s, _, _ = strings.Cut(s, "/")
	return s
}
