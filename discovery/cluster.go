package discovery

import (
	"cmp"
	"net/netip"
	"slices"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
	"github.com/tulle-mesh/tulle/mesh"
	"github.com/tulle-mesh/tulle/mesh/cluster"
)

// Cluster is all that is known of a Kubernetes cluster at one moment. It and
// what it points to are immutable: a change is a new ClusterService or
// ClusterPod, and what did not change keeps its pointer.
type Cluster struct {
	Services []*ClusterService
	Pods     []*ClusterPod // those in the mesh
	// Strict are the namespaces whose pods refuse callers without an identity.
	Strict map[string]bool
}

// ClusterService is a Kubernetes Service.
type ClusterService struct {
	Name, Namespace string
	// Addrs are its own addresses, which the cluster gave to it alone; none if it
	// is headless.
	Addrs []netip.Addr
	// Ingress are those of its load balancers, External those that its author
	// claimed. They may be other services' as well, or a node's, so they stand for
	// it at its ports only, and never where the cluster knows better: what anybody
	// may claim must not lead calls away from whom they are meant for.
	Ingress, External []netip.Addr
	Created           int64 // Unix seconds: the oldest one has what several claim
	Ports             []ClusterPort
	// NodeLocal: only endpoints on the caller's node may be sent what goes to Addrs
	// (internalTrafficPolicy: Local).
	NodeLocal bool
}

// ClusterPort is a TCP port of a Service.
type ClusterPort struct {
	Port      uint16
	Protocol  mesh.Protocol // Unknown: not declared
	Endpoints []ClusterEndpoint
}

// ClusterEndpoint is what one port of a Service leads to.
type ClusterEndpoint struct {
	Addr     netip.AddrPort
	ID       mesh.ID // zero: not in the mesh, plaintext
	Workload string  // name of the pod; "": not a pod
	Node     string  // where it runs; "": unknown
	// Zones and Nodes are those from which it should be called; none: from all.
	Zones, Nodes []string
	// Terminating: to be used only if there is no other one.
	Terminating bool
	Own         bool // it is a pod of the service's namespace
}

// ClusterPod is a pod in the mesh.
type ClusterPod struct {
	Name, Namespace string
	Addrs           []netip.Addr
	ID              mesh.ID
	Owner           string // name of the Deployment or the like that it belongs to
	// Protocols are what its owner declared of its ports.
	Protocols map[uint16]mesh.Protocol
	// Direct are the ports at which others meet the application without its
	// proxy: in plaintext.
	Direct []cluster.Ports
}

// Place is where a caller is, as far as that is known.
type Place struct{ Node, Zone string }

// clusterIndex finds what is behind an address of a cluster.
type clusterIndex struct {
	virtual   map[netip.AddrPort]clusterTarget // services' own addresses
	ingress   map[netip.AddrPort]clusterTarget // those of their load balancers
	external  map[netip.AddrPort]clusterTarget // those that they claim
	endpoints map[netip.AddrPort]clusterTarget // endpoints, dialled directly
	services  map[netip.Addr]*ClusterService   // by their own addresses
	pods      map[netip.Addr]*ClusterPod
	strict    map[string]bool
}

// clusterTarget is what a Match found. The zero one is nothing.
type clusterTarget struct {
	service  *ClusterService
	port     *ClusterPort     // nil: the service has no such port
	endpoint *ClusterEndpoint // set if it was dialled itself
	outside  bool             // by an address that is not the service's own
	pod      *ClusterPod      // dialled on a port of no service; service is nil then
}

// SetCluster replaces all that is known of a cluster at once.
func (s *State) SetCluster(c *Cluster) {
	index := newClusterIndex(c)
	s.mu.Lock()
	defer s.mu.Unlock()
	next := *s.Load()
	next.Revision++
	next.cluster = index
	s.snapshot.Store(&next)
}

func newClusterIndex(c *Cluster) *clusterIndex {
	x := &clusterIndex{
		virtual:   make(map[netip.AddrPort]clusterTarget, len(c.Services)),
		ingress:   make(map[netip.AddrPort]clusterTarget),
		external:  make(map[netip.AddrPort]clusterTarget),
		endpoints: make(map[netip.AddrPort]clusterTarget),
		services:  make(map[netip.Addr]*ClusterService, len(c.Services)),
		pods:      make(map[netip.Addr]*ClusterPod, len(c.Pods)),
		strict:    c.Strict,
	}
	for _, s := range c.Services {
		for _, addr := range s.Addrs {
			x.services[addr] = s
		}
		for i := range s.Ports {
			x.addPort(s, &s.Ports[i])
		}
	}
	for _, p := range c.Pods {
		for _, addr := range p.Addrs {
			x.pods[addr] = p
		}
	}
	return x
}

func (x *clusterIndex) addPort(s *ClusterService, p *ClusterPort) {
	for _, addr := range s.Addrs {
		x.virtual[netip.AddrPortFrom(addr, p.Port)] = clusterTarget{service: s, port: p}
	}
	claim(x.ingress, s.Ingress, s, p)
	claim(x.external, s.External, s, p)
	for i := range p.Endpoints {
		e := &p.Endpoints[i]
		// Several services may have the endpoint: one name is as good as the
		// other, but it has to be the same one after each change, and none that
		// another namespace gives.
		if known, ok := x.endpoints[e.Addr]; ok && (known.endpoint.Own && !e.Own ||
			known.endpoint.Own == e.Own && fullName(known.service) <= fullName(s)) {
			continue
		}
		x.endpoints[e.Addr] = clusterTarget{service: s, port: p, endpoint: e}
	}
}

// claim enters a service's port at addresses that others may have as well. In
// whatever order they come, the oldest service has them.
func claim(at map[netip.AddrPort]clusterTarget, addrs []netip.Addr, s *ClusterService, p *ClusterPort) {
	for _, addr := range addrs {
		addr := netip.AddrPortFrom(addr, p.Port)
		if known, ok := at[addr]; ok && cmp.Or(cmp.Compare(known.service.Created, s.Created), cmp.Compare(fullName(known.service), fullName(s))) <= 0 {
			continue
		}
		at[addr] = clusterTarget{service: s, port: p, outside: true}
	}
}

func fullName(s *ClusterService) string { return s.Name + "." + s.Namespace }

// match looks up what is behind an address. The nil index knows nothing. What
// the cluster gave to a service or a pod alone comes before what was claimed.
func (x *clusterIndex) match(addr netip.AddrPort) (clusterTarget, bool) {
	if x == nil {
		return clusterTarget{}, false
	}
	if t, ok := x.virtual[addr]; ok {
		return t, true
	}
	if s, ok := x.services[addr.Addr()]; ok {
		return clusterTarget{service: s}, true // refused at once, as by kube-proxy
	}
	endpoint, isEndpoint := x.endpoints[addr]
	if p, ok := x.pods[addr.Addr()]; ok && !isEndpoint {
		return clusterTarget{pod: p}, true
	} else if ok {
		return endpoint, true
	}
	// At other ports these addresses are whosever they are, a node's for instance.
	if t, ok := x.ingress[addr]; ok {
		return t, true
	}
	if t, ok := x.external[addr]; ok {
		return t, true
	}
	return endpoint, isEndpoint
}

// destination returns the target as the API carries it, to one who calls from place.
func (t clusterTarget) destination(addr netip.AddrPort, from Place) *tullev1.Destination {
	if p := t.pod; p != nil {
		id := p.ID
		if cluster.ContainPort(p.Direct, addr.Port()) {
			id = mesh.ID{}
		}
		return &tullev1.Destination{
			Service: p.Owner + "." + p.Namespace, Namespace: p.Namespace, Protocol: wireProtocol(p.Protocols[addr.Port()]),
			Endpoints: []*tullev1.Endpoint{{Address: addr.String(), Identity: id.String(), Workload: p.Name, Ready: true}},
		}
	}
	d := &tullev1.Destination{Service: fullName(t.service), Namespace: t.service.Namespace}
	if t.port == nil {
		return d
	}
	d.Protocol = wireProtocol(t.port.Protocol)
	if t.endpoint != nil {
		e := t.endpoint.message()
		e.Ready = true // whoever dials it knows what he wants
		d.Endpoints = append(d.Endpoints, e)
		return d
	}
	// Like kube-proxy: what pods send to external addresses may go to every node.
	for _, e := range t.port.near(addr.Addr().Is4(), from, t.service.NodeLocal && !t.outside) {
		d.Endpoints = append(d.Endpoints, e.message())
	}
	return d
}

func (e *ClusterEndpoint) message() *tullev1.Endpoint {
	return &tullev1.Endpoint{Address: e.Addr.String(), Identity: e.ID.String(), Workload: e.Workload, Ready: !e.Terminating}
}

// near returns the endpoints that a caller at place is to use for what it
// dialled in one family; those of the other one serve if there are none. Like
// kube-proxy it follows nodes (KEP-3015), else zones (KEP-2433), only if each
// endpoint has some and one has the caller's: half-written hints would send
// everything to one endpoint.
func (p *ClusterPort) near(v4 bool, from Place, nodeLocal bool) []*ClusterEndpoint {
	var all, local, node, zone []*ClusterEndpoint
	byZone, byNode := from.Zone != "", from.Node != ""
	for i := range p.Endpoints {
		e := &p.Endpoints[i]
		if e.Addr.Addr().Is4() != v4 && p.has(v4) {
			continue // the same pods, under their other addresses
		}
		all = append(all, e)
		if e.Node != "" && e.Node == from.Node {
			local = append(local, e)
		}
		if !e.Terminating {
			byZone, byNode = byZone && len(e.Zones) > 0, byNode && len(e.Nodes) > 0
		}
		if slices.Contains(e.Zones, from.Zone) {
			zone = append(zone, e)
		}
		if slices.Contains(e.Nodes, from.Node) {
			node = append(node, e)
		}
	}
	ready := func(e *ClusterEndpoint) bool { return !e.Terminating }
	switch {
	case nodeLocal:
		return local
	case byNode && slices.ContainsFunc(node, ready):
		return node
	case byZone && slices.ContainsFunc(zone, ready):
		return zone
	}
	return all
}

// has tells whether there are endpoints of a family.
func (p *ClusterPort) has(v4 bool) bool {
	return slices.ContainsFunc(p.Endpoints, func(e ClusterEndpoint) bool { return e.Addr.Addr().Is4() == v4 })
}
