package discovery

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
	"github.com/tulle-mesh/tulle/mesh"
)

// text writes a Destination on one line.
func text(d *tullev1.Destination) string {
	if d.GetService() == "" {
		return "-"
	}
	b := &strings.Builder{}
	fmt.Fprintf(b, "%s.%s", d.GetService(), d.GetNamespace())
	if p := d.GetProtocol(); p != 0 {
		fmt.Fprintf(b, " %s", strings.TrimPrefix(p.String(), "PROTOCOL_"))
	}
	for _, e := range d.GetEndpoints() {
		fmt.Fprintf(b, " | %s %s %s", e.GetAddress(), e.GetWorkload(), e.GetIdentity())
		if !e.GetReady() {
			b.WriteString(" unready")
		}
	}
	return b.String()
}

func lookup(s *State, addr string) string {
	return text(s.Load().Match(netip.MustParseAddrPort(addr)).Destination())
}

func TestDestination(t *testing.T) {
	s := newState(t)
	join(t, s, JoinRequest{Service: "web", Ports: []uint16{8080}, Protocol: mesh.HTTP1}).SetReady(true)
	join(t, s, JoinRequest{Service: "web", Add: true})
	setCatalog(t, s, `
services:
  - {name: billing, addresses: [192.0.2.10, "2001:db8::1"], ports: [8080, 8443], protocol: http/2}
  - {name: legacy, addresses: ["192.0.2.20:9000", 192.0.2.21], ports: [80], protocol: tcp}
  - {name: mixed, addresses: ["192.0.2.30:9000", 192.0.2.30, "192.0.2.30:80"], ports: [80, 81]}
`)
	const web = "spiffe://tulle.local/ns/default/sa/web"
	for _, tt := range []struct{ addr, want string }{
		// A run service: by its address, any port, the family that was dialled.
		{"10.84.128.1:8080", "web.default HTTP1 | 10.84.0.2:8080 web-1 " + web + " | 10.84.0.3:8080 web-2 " + web + " unready"},
		{"10.84.128.1:1", "web.default HTTP1 | 10.84.0.2:1 web-1 " + web + " | 10.84.0.3:1 web-2 " + web + " unready"},
		{"[fd84:7475:6c6c:e000:8000::1]:8080", "web.default HTTP1 | [fd84:7475:6c6c:e000::2]:8080 web-1 " + web +
			" | [fd84:7475:6c6c:e000::3]:8080 web-2 " + web + " unready"},
		{"[::ffff:10.84.128.1]:1", "web.default HTTP1 | 10.84.0.2:1 web-1 " + web + " | 10.84.0.3:1 web-2 " + web + " unready"},
		// One replica.
		{"10.84.0.3:8080", "web.default HTTP1 | 10.84.0.3:8080 web-2 " + web + " unready"},
		{"[fd84:7475:6c6c:e000::2]:9", "web.default HTTP1 | [fd84:7475:6c6c:e000::2]:9 web-1 " + web},
		// The catalog, by its address: declared ports only.
		{"10.84.128.2:8080", "billing.default HTTP2 | 192.0.2.10:8080  "},
		{"[fd84:7475:6c6c:e000:8000::2]:8443", "billing.default HTTP2 | [2001:db8::1]:8443  "},
		{"10.84.128.2:8081", "billing.default HTTP2"},
		{"10.84.128.3:80", "legacy.default TCP | 192.0.2.20:9000   | 192.0.2.21:80  "},
		{"[fd84:7475:6c6c:e000:8000::3]:80", "legacy.default TCP | 192.0.2.20:9000   | 192.0.2.21:80  "},
		{"10.84.128.4:80", "mixed.default | 192.0.2.30:9000   | 192.0.2.30:80  "},
		{"10.84.128.4:81", "mixed.default | 192.0.2.30:9000   | 192.0.2.30:81   | 192.0.2.30:80  "},
		// The catalog, by what it lists.
		{"192.0.2.10:8443", "billing.default HTTP2 | 192.0.2.10:8443  "},
		{"[2001:db8::1]:8080", "billing.default HTTP2 | [2001:db8::1]:8080  "},
		{"192.0.2.20:9000", "legacy.default TCP | 192.0.2.20:9000   | 192.0.2.21:80  "},
		{"192.0.2.21:80", "legacy.default TCP | 192.0.2.20:9000   | 192.0.2.21:80  "},
		{"192.0.2.30:9000", "mixed.default | 192.0.2.30:9000  "},
		// Nothing of ours.
		{"192.0.2.10:22", "-"},
		{"192.0.2.20:80", "-"},
		{"10.84.0.1:4190", "-"},
		{"10.84.0.4:8080", "-"},
		{"10.84.128.9:80", "-"},
		{"127.0.0.1:8080", "-"},
		{"[::1]:8080", "-"},
		{"255.255.255.255:65535", "-"},
	} {
		if got := lookup(s, tt.addr); got != tt.want {
			t.Errorf("%s:\n got %s\nwant %s", tt.addr, got, tt.want)
		}
	}
}

func TestResolve(t *testing.T) {
	s := newState(t)
	join(t, s, JoinRequest{Service: "web"})
	setCatalog(t, s, "services: [{name: db, addresses: [192.0.2.1], ports: [5432]}]")
	for name, want := range map[string]string{
		"web":   "10.84.128.1 fd84:7475:6c6c:e000:8000::1 true",
		"web-1": "10.84.0.2 fd84:7475:6c6c:e000::2 true",
		"db":    "10.84.128.2 fd84:7475:6c6c:e000:8000::2 true",
		"web-2": "invalid IP invalid IP false",
		"":      "invalid IP invalid IP false",
	} {
		if got := fmt.Sprintln(s.Load().Resolve(name)); strings.TrimSpace(got) != want {
			t.Errorf("Resolve(%q) = %s, want %s", name, got, want)
		}
	}
	snapshot := s.Load()
	if snapshot.Service("web-1") != nil || snapshot.Service("web") == nil || snapshot.Service("x") != nil {
		t.Error("Service returns what is none, or not what is one")
	}
	if r, svc := snapshot.Replica("web-1"); r == nil || svc.Name != "web" {
		t.Error("Replica does not find web-1")
	}
	if r, svc := snapshot.Replica("web"); r != nil || svc != nil {
		t.Error("Replica takes a service for a replica")
	}
	if services := snapshot.Services(); len(services) != 2 || services[0].Name != "db" {
		t.Errorf("services %v", services)
	}
}

func TestParseAddress(t *testing.T) {
	for in, want := range map[string]string{ // "": refused
		"10.84.0.1:80":             "10.84.0.1:80",
		"[fd84::1]:65535":          "[fd84::1]:65535",
		"[::ffff:10.84.0.1]:80":    "10.84.0.1:80",
		"":                         "",
		"10.84.0.1":                "",
		"10.84.0.1:":               "",
		"10.84.0.1:0":              "",
		"10.84.0.1:65536":          "",
		"10.84.0.1:-1":             "",
		"10.84.0.01:80":            "",
		"fd84::1:80":               "",
		"[fd84::1%eth0]:80":        "",
		"[::]:80":                  "",
		"0.0.0.0:80":               "",
		"[::ffff:0.0.0.0]:80":      "",
		"web.mesh:80":              "",
		"10.84.0.1:80\x00":         "",
		" 10.84.0.1:80":            "",
		strings.Repeat("1", 1<<20): "",
	} {
		got, err := ParseAddress(in)
		if (err == nil) != (want != "") || (err == nil && got.String() != want) {
			t.Errorf("ParseAddress(%.40q) = %v, %v, want %q", in, got, err, want)
		}
		if err != nil && len(err.Error()) > 400 {
			t.Errorf("ParseAddress(%.40q): error of %d bytes", in, len(err.Error()))
		}
	}
}

func FuzzParseAddress(f *testing.F) {
	for _, s := range []string{"10.84.128.1:8080", "[fd84::1]:8080", "[::ffff:10.84.128.1]:1", "[fe80::1%x]:1", "0.0.0.0:0", "::1"} {
		f.Add(s)
	}
	s, err := NewState(testConfig())
	if err != nil {
		f.Fatal(err)
	}
	join(f, s, JoinRequest{Service: "web"})
	setCatalog(f, s, "services: [{name: db, addresses: [192.0.2.1], ports: [5432]}]")
	f.Fuzz(func(t *testing.T, in string) {
		addr, err := ParseAddress(in)
		if err != nil {
			return
		}
		if again, err := ParseAddress(addr.String()); err != nil || again != addr {
			t.Errorf("%q reads as %v, which reads as %v, %v", in, addr, again, err)
		}
		d := s.Load().Match(addr).Destination()
		for _, e := range d.GetEndpoints() {
			if _, err := netip.ParseAddrPort(e.GetAddress()); err != nil {
				t.Errorf("%q: endpoint %q", in, e.GetAddress())
			}
		}
	})
}
