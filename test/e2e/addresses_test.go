package e2e

import (
	"fmt"
	"strings"
	"testing"
)

// tellClient is a server that tells each client what it sees of it, at once: by
// accept, and by getpeername. askServer prints that after what the client sees
// of itself and of the server.
const (
	tellClient = `
import socket
s = socket.create_server(("::", 9000), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    c, a = s.accept()
    b = c.getpeername()
    c.sendall(f"{a[0]} {a[1]} {b[0]} {b[1]}\n".replace("::ffff:", "").encode())
    c.close()
`
	askServer = `
import socket, sys
for to in sys.argv[1:]:
    c = socket.create_connection((to, 9000))
    me, it = c.getsockname(), c.getpeername()
    print(me[0], me[1], it[0], it[1], c.makefile().readline().strip())
`
	tellHTTP = `
import http.server
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        text = f"{self.client_address[0]}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
    def log_message(self, *args): pass
http.server.HTTPServer(("0.0.0.0", 8080), H).serve_forever()
`
)

// TestAddresses: with the eBPF redirect both ends of a connection see the
// addresses that they would see without the mesh.
func TestAddresses(t *testing.T) {
	host := newHost(t, "--redirect", "ebpf")
	host.serve(t, service{name: "plain", port: 9000, argv: []string{"python3", "-c", tellClient}})
	host.serve(t, service{name: "web", port: 8080, argv: []string{"python3", "-c", tellHTTP}})
	plain := host.replicas("plain")[0]
	targets := []string{address(plain.Address4), address(plain.Address6)}
	r := play(t, host, append([]string{"python3", "-c", askServer}, targets...)...)
	lines := strings.Split(strings.TrimSpace(r.stdout), "\n")
	if len(lines) != len(targets) {
		t.Fatalf("%s", r)
	}
	for i, line := range lines {
		f := strings.Fields(line)
		if len(f) != 8 {
			t.Fatalf("%s", r)
		}
		client := strings.Join(f[:2], " ")
		want := fmt.Sprintf("%s %s 9000 %s %s", client, targets[i], client, client)
		if line != want {
			t.Errorf("got %q, want %q", line, want)
		}
	}
	// Where one connection of the proxies carries many clients, the address is right.
	r = play(t, host, "bash", "-c", "curl -4 -sS http://web:8080/ http://web:8080/; hostname -I")
	f := strings.Fields(r.stdout)
	if len(f) < 3 || f[0] != f[2] || f[1] != f[2] {
		t.Errorf("web saw, and the client has: %s", r)
	}
}
