package discovery

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
	"github.com/tulle-mesh/tulle/mesh"
)

// Source tells where a service comes from.
type Source uint8

// Sources.
const (
	Run     Source = iota // `tulle run`: its replicas are in the mesh
	Catalog               // the catalog file: plaintext
)

// String returns "run" or "catalog".
func (s Source) String() string {
	if s == Catalog {
		return "catalog"
	}
	return "run"
}

// Service is one service of a Snapshot. It is immutable.
type Service struct {
	Name       string
	Namespace  string
	Source     Source
	VIP4, VIP6 netip.Addr // what its name resolves to
	Ports      []uint16   // declared; a run service answers on others, too
	Protocol   mesh.Protocol
	ID         mesh.ID           // of every replica; zero if of the catalog
	Replicas   []Replica         // of a run service, in the order of their numbers
	Endpoints  []CatalogEndpoint // of a catalog service
}

// Replica is one workload of a run service.
type Replica struct {
	Name         string // "web-2"
	Addr4, Addr6 netip.Addr
	Ready        bool // it said so; see Serving
	Lost         bool // its lease is lost: it will be gone after the grace
	Strict       bool

	number int // 2
}

// Serving tells whether the replica should be sent anything.
func (r *Replica) Serving() bool { return r.Ready && !r.Lost }

// CatalogEndpoint is one address of a catalog service.
type CatalogEndpoint struct {
	Addr netip.Addr
	Port uint16 // 0: the service's declared ports
}

// Snapshot is all that is known at one moment. It is immutable.
type Snapshot struct {
	Revision uint64

	names  map[string]target         // of services and of replicas
	addrs  map[netip.Addr]target     // of services and of replicas
	listed map[netip.AddrPort]target // of catalog endpoints

	cluster *clusterIndex // nil: there is none
}

// target is a service, or one replica of it.
type target struct {
	service *Service
	replica *Replica // nil: the service
}

// Services returns all services by name.
func (s *Snapshot) Services() []*Service {
	var services []*Service
	for _, t := range s.names {
		if t.replica == nil {
			services = append(services, t.service)
		}
	}
	slices.SortFunc(services, func(a, b *Service) int { return cmp.Compare(a.Name, b.Name) })
	return services
}

// Service returns the service of a name, or nil.
func (s *Snapshot) Service(name string) *Service {
	if t := s.names[name]; t.replica == nil {
		return t.service
	}
	return nil
}

// Replica returns the replica of a name and its service, or nil.
func (s *Snapshot) Replica(name string) (*Replica, *Service) {
	if t := s.names[name]; t.replica != nil {
		return t.replica, t.service
	}
	return nil, nil
}

// Resolve returns the addresses of the service or replica called name, as DNS
// answers with; false if there is none. Either address may be the zero Addr.
func (s *Snapshot) Resolve(name string) (addr4, addr6 netip.Addr, ok bool) {
	t, ok := s.names[name]
	switch {
	case !ok:
		return netip.Addr{}, netip.Addr{}, false
	case t.replica != nil:
		return t.replica.Addr4, t.replica.Addr6, true
	}
	return t.service.VIP4, t.service.VIP6, true
}

// Match is what is behind an address and port. Two equal Matches have the same
// Destination; the zero Match is nothing of the mesh.
type Match struct {
	Service *Service
	Replica *Replica // set if a replica's own address was asked for
	Addr    netip.AddrPort

	cluster clusterTarget // instead of Service
	from    Place
}

// Match looks up what is behind an address.
func (s *Snapshot) Match(addr netip.AddrPort) Match {
	addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
	t, ok := s.addrs[addr.Addr()]
	if !ok {
		t, ok = s.listed[addr]
	}
	if !ok {
		found, ok := s.cluster.match(addr)
		if !ok {
			return Match{}
		}
		return Match{Addr: addr, cluster: found}
	}
	return Match{Service: t.service, Replica: t.replica, Addr: addr}
}

// From returns the Match as it is for a caller at place. Only a cluster knows
// of places.
func (m Match) From(place Place) Match {
	if m.cluster != (clusterTarget{}) {
		m.from = place
	}
	return m
}

// Destination returns the Match as the API carries it, without a revision.
func (m Match) Destination() *tullev1.Destination {
	if m.cluster != (clusterTarget{}) {
		return m.cluster.destination(m.Addr, m.from)
	}
	if m.Service == nil {
		return &tullev1.Destination{}
	}
	d := &tullev1.Destination{
		Service:   m.Service.Name,
		Namespace: m.Service.Namespace,
		Protocol:  wireProtocol(m.Service.Protocol),
	}
	switch {
	case m.Service.Source == Catalog:
		for _, addr := range m.Service.endpointsFor(m.Addr) {
			d.Endpoints = append(d.Endpoints, &tullev1.Endpoint{Address: addr.String(), Ready: true})
		}
	case m.Replica != nil:
		d.Endpoints = append(d.Endpoints, m.endpoint(m.Replica))
	default:
		for i := range m.Service.Replicas {
			d.Endpoints = append(d.Endpoints, m.endpoint(&m.Service.Replicas[i]))
		}
	}
	return d
}

// endpoint returns a replica in the family and at the port that were dialled.
func (m Match) endpoint(r *Replica) *tullev1.Endpoint {
	addr := r.Addr4
	if m.Addr.Addr().Is6() {
		addr = r.Addr6
	}
	return &tullev1.Endpoint{
		Address:  netip.AddrPortFrom(addr, m.Addr.Port()).String(),
		Identity: m.Service.ID.String(),
		Workload: r.Name,
		Ready:    r.Serving(),
	}
}

// endpointsFor returns where to dial for what was dialled: the service's own
// address or a listed one. Endpoints of the same family are preferred, but a
// service that has none in it is reached all the same: the proxy dials anew, so
// it can turn one family into the other.
func (s *Service) endpointsFor(dialled netip.AddrPort) []netip.AddrPort {
	port := dialled.Port()
	onVIP := dialled.Addr() == s.VIP4 || dialled.Addr() == s.VIP6
	declared := slices.Contains(s.Ports, port)
	if onVIP && !declared {
		return nil // refused at once, as by a host that does not listen there
	}
	if !declared && len(s.Ports) == 1 {
		port, declared = s.Ports[0], true // a listed "address:port" override
	}
	var same, other []netip.AddrPort
	for _, e := range s.Endpoints {
		addr := netip.AddrPortFrom(e.Addr, cmp.Or(e.Port, port))
		switch {
		case !declared && e.Port != port:
		case slices.Contains(same, addr) || slices.Contains(other, addr): // "A" and "A:port"
		case e.Addr.Is4() == dialled.Addr().Is4():
			same = append(same, addr)
		default:
			other = append(other, addr)
		}
	}
	if len(same) > 0 {
		return same
	}
	return other
}

// listedAddrs returns every address and port the catalog lists for the service.
func (s *Service) listedAddrs() []netip.AddrPort {
	var addrs []netip.AddrPort
	for _, e := range s.Endpoints {
		if e.Port != 0 {
			addrs = append(addrs, netip.AddrPortFrom(e.Addr, e.Port))
			continue
		}
		for _, port := range s.Ports {
			addrs = append(addrs, netip.AddrPortFrom(e.Addr, port))
		}
	}
	return addrs
}

func wireProtocol(p mesh.Protocol) tullev1.Protocol {
	switch p {
	case mesh.HTTP1:
		return tullev1.Protocol_PROTOCOL_HTTP1
	case mesh.HTTP2:
		return tullev1.Protocol_PROTOCOL_HTTP2
	case mesh.TCP:
		return tullev1.Protocol_PROTOCOL_TCP
	}
	return tullev1.Protocol_PROTOCOL_UNSPECIFIED
}

// maxAddressLength fits the longest "[IPv6]:port".
const maxAddressLength = 64

// ParseAddress reads the address of a WatchRequest.
func ParseAddress(s string) (netip.AddrPort, error) {
	if len(s) > maxAddressLength {
		return netip.AddrPort{}, fmt.Errorf("address of %d bytes", len(s))
	}
	ap, err := netip.ParseAddrPort(s)
	switch {
	case err != nil:
		return netip.AddrPort{}, fmt.Errorf("address %q: must be IP:PORT or [IPv6]:PORT", s)
	case ap.Addr().Zone() != "":
		return netip.AddrPort{}, fmt.Errorf("address %q: a zone has no meaning here", s)
	case ap.Port() == 0 || ap.Addr().Unmap().IsUnspecified():
		return netip.AddrPort{}, fmt.Errorf("address %q: nobody can be dialled there", s)
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), nil
}

// draft is a Snapshot in the making. The maps are copied for each change, which
// for 1,000 services of 3 replicas costs below 1 ms: changes are rare, lookups
// (50 ns) are not.
type draft struct{ *Snapshot }

func newDraft(old *Snapshot) draft {
	return draft{&Snapshot{
		Revision: old.Revision + 1,
		names:    maps.Clone(old.names),
		addrs:    maps.Clone(old.addrs),
		listed:   maps.Clone(old.listed),
		cluster:  old.cluster,
	}}
}

// put replaces the service of the same name, if there is one.
func (d draft) put(s *Service) {
	d.drop(s.Name)
	d.names[s.Name] = target{service: s}
	d.index(s.VIP4, target{service: s})
	d.index(s.VIP6, target{service: s})
	for i := range s.Replicas {
		t := target{service: s, replica: &s.Replicas[i]}
		d.names[t.replica.Name] = t
		d.index(t.replica.Addr4, t)
		d.index(t.replica.Addr6, t)
	}
	for _, addr := range s.listedAddrs() {
		d.listed[addr] = target{service: s}
	}
}

func (d draft) index(addr netip.Addr, t target) {
	if addr.IsValid() {
		d.addrs[addr] = t
	}
}

func (d draft) drop(name string) {
	s := d.Service(name)
	if s == nil {
		return
	}
	delete(d.names, s.Name)
	delete(d.addrs, s.VIP4)
	delete(d.addrs, s.VIP6)
	for i := range s.Replicas {
		delete(d.names, s.Replicas[i].Name)
		delete(d.addrs, s.Replicas[i].Addr4)
		delete(d.addrs, s.Replicas[i].Addr6)
	}
	for _, addr := range s.listedAddrs() {
		delete(d.listed, addr)
	}
}
