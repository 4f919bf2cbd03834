package discovery

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/tulle-mesh/tulle/mesh"
)

// sayPath writes a path down, a line for each end and each endpoint.
func sayPath(p *mesh.Path) string {
	var b strings.Builder
	member := func(m mesh.PathMember) {
		fmt.Fprintf(&b, "\n  %s %s %s", m.Workload, m.Address, m.State)
		if m.Identity != "" {
			b.WriteString(" " + m.Identity[strings.LastIndexByte(m.Identity, '/')+1:])
		}
		if m.Strict {
			b.WriteString(" strict")
		}
		if !m.Used {
			b.WriteString(" unused")
		}
	}
	fmt.Fprintf(&b, "%s %s", p.Client.Kind, p.Client.Name)
	for _, m := range p.Client.Members {
		member(m)
	}
	fmt.Fprintf(&b, "\n%s %s %v %v", p.Server.Kind, p.Server.Name, p.Server.Names, p.Server.Addresses[0])
	for _, port := range p.Ports {
		fmt.Fprintf(&b, "\n%d %s", port.Port, port.Protocol)
		if port.Missing {
			b.WriteString(" missing")
		}
		if len(port.Others) > 0 {
			fmt.Fprint(&b, " ", port.Others)
		}
		for _, m := range port.Endpoints {
			member(m)
		}
	}
	return b.String()
}

func TestPath(t *testing.T) {
	s := newState(t)
	setCatalog(t, s, "services:\n  - {name: billing, addresses: [192.0.2.10, \"192.0.2.11:9200\"], ports: [9100], protocol: tcp}\n")
	web := join(t, s, JoinRequest{Service: "web", Ports: []uint16{8080}, Protocol: mesh.HTTP1})
	web.SetReady(true)
	second := join(t, s, JoinRequest{Service: "web", Ports: []uint16{8080}, Add: true, Strict: true})
	client := join(t, s, JoinRequest{Service: "client"})
	client.SetReady(true)
	caller := "service client\n  client-1 10.84.0.4 ready client\n"
	for _, tt := range []struct{ client, server, want string }{
		{"client", "web", caller + "service web [web web.mesh] 10.84.128.2\n8080 http/1\n  web-1 10.84.0.2:8080 ready web\n  web-2 10.84.0.3:8080 not ready web strict unused"},
		{"client-1", "web-2.mesh:99", strings.Replace(caller, "service", "workload", 1) + "workload web [web-2 web-2.mesh] 10.84.0.3\n99 http/1 [8080]\n  web-2 10.84.0.3:99 not ready web strict unused"},
		{"client", "http://web.mesh:8080/x", caller + "service web [web web.mesh] 10.84.128.2\n8080 http/1\n  web-1 10.84.0.2:8080 ready web\n  web-2 10.84.0.3:8080 not ready web strict unused"},
		{"host", "client", "host host\n  host  ready unused\nservice client [client client.mesh] 10.84.128.3\n0 \n  client-1 10.84.0.4 ready client"},
		{"client", "billing", caller + "catalog billing [billing billing.mesh] 10.84.128.1\n9100 tcp\n   192.0.2.10:9100 ready\n   192.0.2.11:9200 ready"},
		{"client", "billing:9", caller + "catalog billing [billing billing.mesh] 10.84.128.1\n9 tcp missing [9100]"},
		{"client", "10.84.0.2:8080", caller + "workload web [web-1 web-1.mesh] 10.84.0.2\n8080 http/1\n  web-1 10.84.0.2:8080 ready web"},
	} {
		p, err := s.Load().Path(tt.client, tt.server, "mesh")
		if err != nil {
			t.Errorf("%s to %s: %v", tt.client, tt.server, err)
			continue
		}
		if got := sayPath(p); got != tt.want {
			t.Errorf("%s to %s:\n%s\nwant\n%s", tt.client, tt.server, got, tt.want)
		}
	}
	second.Lose()
	if p, err := s.Load().Path("web", "web-2", "mesh"); err != nil || p.Client.Members[1].State != "lost" || p.Ports[0].Endpoints[0].Remedy != "tulle logs web-2" {
		t.Errorf("a lost one: %+v %v", p, err)
	}
	for pair, want := range map[string]string{
		"client nobody":        "its name resolves to nothing; what there is: tulle ps",
		"nobody web":           "it does not run; what does: tulle ps",
		"deploy/client web":    "tulle why web catalog",
		"client svc/web":       "tulle why web catalog",
		"billing web":          "name a workload of: tulle ps",
		"client web:0":         "1 to 65535",
		"client web:99999":     "1 to 65535",
		"client 192.0.2.99:80": "tulle ps",
		"client 192.0.2.99":    "pass untouched",
	} {
		from, to, _ := strings.Cut(pair, " ")
		if p, err := s.Load().Path(from, to, "mesh"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %+v, %v; want %q", pair, p, err, want)
		}
	}
}

func TestSplitPort(t *testing.T) {
	for in, want := range map[string]string{
		"web": "web 0", "web:80": "web 80", "http://web.mesh:80/a?b": "web.mesh 80", "https://web": "web 0",
		"10.0.0.1": "10.0.0.1 0", "10.0.0.1:80": "10.0.0.1 80", "[fd00::1]:80": "fd00::1 80", "fd00::1": "fd00::1 0",
		"http://[fd00::1]/": "fd00::1 0", "http://[fd00::1]:80/a": "fd00::1 80", "http://[fd00::1]": "fd00::1 0", "http://[fd00::1]:80?a=b": "fd00::1 80",
		"[fd00::1]": "fd00::1 0", "[::ffff:10.0.0.1]:80": "10.0.0.1 80", "::ffff:10.0.0.1": "10.0.0.1 0",
		"grpc://me:secret@web.mesh:80#a": "web.mesh 80", "http://web?to=a@b:9": "web 0", "http://10.0.0.1:80/": "10.0.0.1 80",
	} {
		name, port, err := SplitPort(in)
		if got := fmt.Sprint(name, " ", port); got != want || err != nil {
			t.Errorf("%s: %s, %v; want %s", in, got, err, want)
		}
	}
}

func TestSplitPortRefuses(t *testing.T) {
	for in, want := range map[string]string{
		"web:":            "as in web:8080",
		"web:0":           "1 to 65535",
		"web:65536":       "1 to 65535",
		"web:http":        "1 to 65535",
		"[fd00::1]:0":     "as in [fd00::1]:8080",
		"[fd00::1":        "brackets",
		"[fd00::1]80":     "brackets",
		"http://[web]:80": "brackets",
		"[]:80":           "brackets",
		"fd00::1:2:g":     "1 to 65535",
	} {
		if name, port, err := SplitPort(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %q, %d, %v; want %q", in, name, port, err, want)
		}
	}
}

// What was split is put together again as URLs have it, and means the same.
func FuzzSplitPort(f *testing.F) {
	for _, seed := range []string{"web", "web:80", "http://web.mesh:80/a?b", "[fd00::1]:80", "http://[fd00::1]/", "::1", "a@[::1]", "[fe80::1%eth0]:1", "://", "a://b@:1"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, server string) {
		name, port, err := SplitPort(server)
		if err != nil {
			if name != "" || port != 0 {
				t.Errorf("%q: %q, %d beside %v", server, name, port, err)
			}
			return
		}
		if addr, err := netip.ParseAddr(name); strings.Contains(name, ":") && (err != nil || addr.Is4In6()) {
			t.Errorf("%q: %q is no address", server, name)
		}
		if strings.ContainsAny(name, "/@") || port == 0 {
			return
		}
		again, portAgain, err := SplitPort("http://" + net.JoinHostPort(name, strconv.Itoa(int(port))) + "/")
		if !strings.ContainsAny(name, "?#") && (again != name || portAgain != port || err != nil) {
			t.Errorf("%q: %q, %d and then %q, %d, %v", server, name, port, again, portAgain, err)
		}
	})
}
