package discovery

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
	"github.com/tulle-mesh/tulle/mesh"
)

func addr(s string) netip.Addr         { return netip.MustParseAddr(s) }
func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// endpoint is "ADDR:PORT[ node=N][ for=NODE]…[ zone=Z]…[ ending]".
func endpoint(text string) ClusterEndpoint {
	words := strings.Fields(text)
	e := ClusterEndpoint{Addr: addrPort(words[0]), Workload: "w", ID: mesh.ID{TrustDomain: "cluster.local", Namespace: "shop", Account: "web"}}
	for _, w := range words[1:] {
		key, value, _ := strings.Cut(w, "=")
		switch key {
		case "node":
			e.Node = value
		case "zone":
			e.Zones = append(e.Zones, value)
		case "for":
			e.Nodes = append(e.Nodes, value)
		case "ending":
			e.Terminating = true
		}
	}
	return e
}

func clusterOf(nodeLocal bool, endpoints ...string) *Cluster {
	s := &ClusterService{Name: "web", Namespace: "shop", Addrs: []netip.Addr{addr("10.96.0.1"), addr("fd00:96::1")}, NodeLocal: nodeLocal, Ports: []ClusterPort{{Port: 80}}}
	for _, e := range endpoints {
		s.Ports[0].Endpoints = append(s.Ports[0].Endpoints, endpoint(e))
	}
	return &Cluster{Services: []*ClusterService{s}}
}

func TestClusterPlaces(t *testing.T) {
	for _, tt := range []struct {
		name      string
		nodeLocal bool
		endpoints []string
		from      Place
		dialled   string
		want      string
	}{
		{"all", false, []string{"10.0.0.1:80 node=a", "10.0.0.2:80 node=b"}, Place{"a", "z"}, "10.96.0.1:80", "10.0.0.1:80 10.0.0.2:80"},
		{"this node only", true, []string{"10.0.0.1:80 node=a", "10.0.0.2:80 node=b"}, Place{"a", "z"}, "10.96.0.1:80", "10.0.0.1:80"},
		{"this node only, from nowhere", true, []string{"10.0.0.1:80 node=a", "10.0.0.2:80"}, Place{}, "10.96.0.1:80", ""},
		{"hints for nodes", false, []string{"10.0.0.1:80 for=a zone=z", "10.0.0.2:80 for=b zone=z"}, Place{"a", "z"}, "10.96.0.1:80", "10.0.0.1:80"},
		{"hints for nodes, none for this one: its zone", false, []string{"10.0.0.1:80 for=b zone=z", "10.0.0.2:80 for=c zone=y"}, Place{"a", "z"}, "10.96.0.1:80", "10.0.0.1:80"},
		{"hints for nodes, the own one ends", false, []string{"10.0.0.1:80 for=a ending", "10.0.0.2:80 for=b"}, Place{"a", "z"}, "10.96.0.1:80", "10.0.0.1:80? 10.0.0.2:80"},
		{"hints for some nodes only", false, []string{"10.0.0.1:80 for=a", "10.0.0.2:80"}, Place{"a", "z"}, "10.96.0.1:80", "10.0.0.1:80 10.0.0.2:80"},
		{"zones", false, []string{"10.0.0.1:80 zone=x", "10.0.0.2:80 zone=y zone=z"}, Place{"a", "z"}, "10.96.0.1:80", "10.0.0.2:80"},
		{"zones, from nowhere", false, []string{"10.0.0.1:80 zone=x", "10.0.0.2:80 zone=z"}, Place{}, "10.96.0.1:80", "10.0.0.1:80 10.0.0.2:80"},
		{"half the zones", false, []string{"10.0.0.1:80", "10.0.0.2:80 zone=z"}, Place{"a", "z"}, "10.96.0.1:80", "10.0.0.1:80 10.0.0.2:80"},
		{"no endpoint for this zone", false, []string{"10.0.0.1:80 zone=x", "10.0.0.2:80 zone=y"}, Place{"a", "z"}, "10.96.0.1:80", "10.0.0.1:80 10.0.0.2:80"},
		{"only one that ends in this zone", false, []string{"10.0.0.1:80 zone=x", "10.0.0.2:80 zone=z ending"}, Place{"a", "z"}, "10.96.0.1:80", "10.0.0.1:80 10.0.0.2:80?"},
		{"its own family", false, []string{"10.0.0.1:80", "[fd00::1]:80"}, Place{}, "[fd00:96::1]:80", "[fd00::1]:80"},
		{"the other family, if there is no own one", false, []string{"10.0.0.1:80"}, Place{}, "[fd00:96::1]:80", "10.0.0.1:80"},
		{"an endpoint itself, though it ends", false, []string{"10.0.0.1:80", "10.0.0.2:80 ending"}, Place{}, "10.0.0.2:80", "10.0.0.2:80"},
		{"no such port", false, []string{"10.0.0.1:80"}, Place{}, "10.96.0.1:81", ""},
	} {
		s, err := NewState(Config{TrustDomain: "cluster.local"})
		if err != nil {
			t.Fatal(err)
		}
		s.SetCluster(clusterOf(tt.nodeLocal, tt.endpoints...))
		d := s.Load().Match(addrPort(tt.dialled)).From(tt.from).Destination()
		var got []string
		for _, e := range d.GetEndpoints() {
			word := e.GetAddress()
			if !e.GetReady() {
				word += "?"
			}
			got = append(got, word)
		}
		if d.GetService() != "web.shop" || strings.Join(got, " ") != tt.want {
			t.Errorf("%s: %s %v, want %s", tt.name, d.GetService(), got, tt.want)
		}
	}
}

// Two services have an endpoint: it goes by the same name in whatever order they come.
func TestClusterNames(t *testing.T) {
	a, b := clusterOf(false, "10.0.0.1:80").Services[0], clusterOf(false, "10.0.0.1:80").Services[0]
	b.Name, b.Addrs = "alias", nil
	for _, order := range [][]*ClusterService{{a, b}, {b, a}} {
		if got := newClusterIndex(&Cluster{Services: order}).endpoints[addrPort("10.0.0.1:80")].service.Name; got != "alias" {
			t.Errorf("%s", got)
		}
	}
	pods := &Cluster{Pods: []*ClusterPod{{Name: "web-1", Namespace: "shop", Owner: "web", Addrs: []netip.Addr{addr("10.0.0.9")}, Protocols: map[uint16]mesh.Protocol{53: mesh.TCP}}}}
	found, ok := newClusterIndex(pods).match(addrPort("10.0.0.9:53"))
	d := found.destination(addrPort("10.0.0.9:53"), Place{})
	if !ok || d.GetService() != "web.shop" || d.GetProtocol() != tullev1.Protocol_PROTOCOL_TCP || d.GetEndpoints()[0].GetAddress() != "10.0.0.9:53" {
		t.Errorf("%v", d)
	}
}

// What anybody may write into his Service or EndpointSlice must not lead calls
// away from whom they are for, and what is nobody's of the mesh stays untouched.
func TestClusterClaims(t *testing.T) {
	service := func(name string, created int64, port uint16, endpoint string, own bool) *ClusterService {
		name, ns, _ := strings.Cut(name, ".")
		return &ClusterService{Name: name, Namespace: ns, Created: created, Ports: []ClusterPort{{Port: port, Endpoints: []ClusterEndpoint{
			{Addr: addrPort(endpoint), Own: own, Node: "a", ID: mesh.ID{TrustDomain: "cluster.local", Namespace: ns, Account: name}},
		}}}}
	}
	bank := service("bank.shop", 20, 80, "10.0.0.7:80", true)
	bank.Addrs, bank.NodeLocal = []netip.Addr{addr("10.96.0.9")}, true
	bank.Ingress = []netip.Addr{addr("203.0.113.1"), addr("192.168.1.10")} // of its own, and the node's
	evil := service("a.evil", 10, 80, "10.0.0.66:80", true)
	evil.Addrs = []netip.Addr{addr("10.96.0.66")}
	evil.External = []netip.Addr{addr("10.96.0.9"), addr("10.0.0.7"), addr("203.0.113.1"), addr("198.51.100.1"), addr("198.51.100.2")}
	evil8443 := service("b.evil", 10, 8443, "10.0.0.66:8443", true)
	evil8443.External = []netip.Addr{addr("10.96.0.9"), addr("10.0.0.7"), addr("203.0.113.1")}
	older := service("z.first", 5, 80, "10.0.0.67:80", true)
	older.External = []netip.Addr{addr("198.51.100.1")}
	asOld := service("b.second", 10, 80, "10.0.0.68:80", true)
	asOld.External = []netip.Addr{addr("198.51.100.2")}
	exporter := service("node-exporter.mon", 30, 9100, "192.168.1.10:9100", false)
	forged := service("a.forged", 1, 80, "10.0.0.7:80", false)
	pods := []*ClusterPod{{Name: "bank-1", Namespace: "shop", Owner: "bank", Addrs: []netip.Addr{addr("10.0.0.7")}, ID: bank.Ports[0].Endpoints[0].ID}}

	list := []*ClusterService{bank, evil, evil8443, older, asOld, exporter, forged}
	for range len(list) * 2 { // each of them is the first once, and the last, both ways round
		list = append(list[1:], list[0])
		if list[0] == bank {
			slices.Reverse(list)
		}
		s := newState(t)
		s.SetCluster(&Cluster{Services: list, Pods: pods})
		for _, tt := range []struct{ dialled, want string }{
			{"10.96.0.9:80", "bank.shop"},            // a cluster IP is its service's alone
			{"10.96.0.9:8443", "bank.shop"},          // which has no such port
			{"10.0.0.7:80", "bank.shop 10.0.0.7:80"}, // and a pod's address the pod's
			{"10.0.0.7:8443", "bank.shop 10.0.0.7:8443"},
			{"203.0.113.1:80", "bank.shop 10.0.0.7:80"}, // what a controller wrote beats what anybody may
			{"203.0.113.1:8443", "b.evil 10.0.0.66:8443"},
			{"203.0.113.1:443", ""},
			{"198.51.100.1:80", "z.first 10.0.0.67:80"},
			{"198.51.100.2:80", "a.evil 10.0.0.66:80"},
			{"192.168.1.10:80", "bank.shop 10.0.0.7:80"}, // the load balancer is the node
			{"192.168.1.10:9100", "node-exporter.mon 192.168.1.10:9100"},
			{"192.168.1.10:10250", ""},
			{"192.168.1.10:30080", ""}, // kube-proxy knows what to do
		} {
			d := s.Load().Match(addrPort(tt.dialled)).From(Place{Node: "b"}).Destination()
			got := d.GetService()
			for _, e := range d.GetEndpoints() {
				got += " " + e.GetAddress()
			}
			if got != tt.want {
				t.Fatalf("%s is %s, want %s", tt.dialled, got, tt.want)
			}
		}
	}
}

// A watch hears of its own place, and of nothing that does not concern it.
func TestClusterWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := NewState(Config{TrustDomain: "cluster.local"})
		if err != nil {
			t.Fatal(err)
		}
		c := clusterOf(true, "10.0.0.1:80 node=a", "10.0.0.2:80 node=b")
		s.SetCluster(c)
		place := Place{}
		server := NewServer(ServerConfig{State: s, Place: func(context.Context) Place { return place }})
		ctx, cancel := context.WithCancel(t.Context())
		requests, ended := make(chan *tullev1.WatchRequest), make(chan struct{})
		var sent []string
		go func() {
			defer close(ended)
			_ = server.follow(ctx, "c", requests, func(d *tullev1.Destination) error {
				sent = append(sent, fmt.Sprint(len(d.GetEndpoints())))
				return nil
			})
		}()
		requests <- &tullev1.WatchRequest{Add: []string{"10.96.0.1:80"}}
		synctest.Wait()
		s.SetCluster(&Cluster{Services: c.Services, Strict: map[string]bool{"x": true}}) // nothing of interest
		synctest.Wait()
		place = Place{Node: "b"} // the news of where the caller is
		s.SetCluster(c)
		synctest.Wait()
		cancel()
		<-ended
		if got := strings.Join(sent, " "); got != "0 1" {
			t.Errorf("sent %s", got)
		}
	})
}

// policyStream collects what WatchPolicy sends.
type policyStream struct {
	grpc.ServerStream
	ctx  context.Context
	sent []bool
}

func (p *policyStream) Context() context.Context { return p.ctx }
func (p *policyStream) Send(m *tullev1.Policy) error {
	p.sent = append(p.sent, m.GetStrict())
	return nil
}

func TestWatchPolicy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := NewState(Config{TrustDomain: "cluster.local"})
		if err != nil {
			t.Fatal(err)
		}
		server := NewServer(ServerConfig{State: s, WatchLimit: 1, PeerID: func(context.Context) (mesh.ID, bool) {
			return mesh.ID{TrustDomain: "cluster.local", Namespace: "shop", Account: "web"}, true
		}})
		ctx, cancel := context.WithCancel(t.Context())
		stream := &policyStream{ctx: ctx}
		ended := make(chan struct{})
		go func() { defer close(ended); _ = server.WatchPolicy(nil, stream) }()
		synctest.Wait() // no cluster yet: no answer
		for _, strict := range []bool{false, false, true, true, false} {
			s.SetCluster(&Cluster{Strict: map[string]bool{"shop": strict, "other": true}})
			synctest.Wait()
		}
		if err := server.WatchPolicy(nil, &policyStream{ctx: ctx}); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("one too many: %v", err)
		}
		cancel()
		<-ended
		if got := fmt.Sprint(stream.sent); got != "[false true false]" {
			t.Errorf("sent %s", got)
		}
	})
	s := newState(t)
	if err := NewServer(ServerConfig{State: s}).WatchPolicy(nil, &policyStream{ctx: t.Context()}); status.Code(err) != codes.Unimplemented {
		t.Errorf("on a host: %v", err)
	}
}
