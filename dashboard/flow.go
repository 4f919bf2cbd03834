package dashboard

import (
	"net/netip"
	"slices"

	"github.com/tulle-mesh/tulle/mesh"
)

// Kinds of sources and destinations.
const (
	kindWorkload = "workload" // of the mesh, with an identity
	kindHost     = "host"     // this machine
	kindAddress  = "address"  // a caller that is nobody of the mesh
	kindService  = "service"  // of the mesh or of the catalog
	kindOutside  = "outside"  // an address that nothing is known of
)

// flow is one row of one proxy, told as "source calls service": what the
// services, edges and replicas are sums of.
type flow struct {
	source, sourceKind, sourceIdentity, sourceWorkload string
	service, serviceKind                               string
	replica, address                                   string
	*rowState
}

// flows tells each exchange once: the client's side of it, or, where the
// client has no proxy that reports, the server's.
func (s *snapshot) flows() []flow {
	var flows []flow
	for i := range s.proxies {
		for j := range s.proxies[i].rows {
			if row := &s.proxies[i].rows[j]; !row.key.inbound {
				flows = append(flows, outboundFlow(&s.proxies[i], row))
			}
		}
	}
	plain := map[[2]string]bool{} // pairs whose plaintext the client reports
	for _, f := range flows {
		if f.key.security == mesh.Plaintext.String() {
			plain[[2]string{f.source, f.service}] = true
		}
	}
	callers := s.callers()
	for i := range s.proxies {
		p := &s.proxies[i]
		for j := range p.rows {
			row := &p.rows[j]
			if !row.key.inbound {
				continue
			}
			if f, ok := inboundFlow(p, row, callers); ok && !plain[[2]string{f.source, f.service}] {
				flows = append(flows, f)
			}
		}
	}
	return flows
}

func outboundFlow(p *proxyState, row *rowState) flow {
	f := flow{
		source: p.id.Account, sourceKind: kindWorkload, sourceIdentity: p.id.String(), sourceWorkload: p.workload,
		service: row.key.service, serviceKind: kindService,
		replica: row.key.peerWorkload, address: row.key.peerAddress,
		rowState: row,
	}
	if f.service == "" {
		f.service, f.serviceKind = row.key.peerAddress, kindOutside
		if f.service == "" {
			f.service = "unknown"
		}
	}
	return f
}

// callers is what is needed to name a caller that proved no identity.
type callers struct {
	identities map[string]bool    // those of which a proxy reports
	workloads  map[string]mesh.ID // by address
	hosts      []netip.Addr
}

func (s *snapshot) callers() callers {
	c := callers{identities: map[string]bool{}, workloads: map[string]mesh.ID{}, hosts: s.hosts}
	for _, connected := range []bool{false, true} { // who has an address now wins over who had it
		for _, p := range s.proxies {
			c.identities[p.id.String()] = true
			if p.connected == connected && p.address != "" {
				c.workloads[p.address] = p.id
			}
		}
	}
	for _, w := range s.inventory.Workloads {
		id, err := mesh.ParseID(w.Identity)
		if err != nil {
			continue
		}
		for _, a := range []string{w.Address4, w.Address6} {
			if host := hostOf(withoutLength(a)); host != "" {
				c.workloads[host] = id
			}
		}
	}
	return c
}

// inboundFlow returns false for what the caller's own proxy tells already.
func inboundFlow(p *proxyState, row *rowState, callers callers) (flow, bool) {
	service := row.key.service
	if service == "" {
		service = p.id.Account
	}
	f := flow{service: service, serviceKind: kindService, replica: p.workload, address: p.address, rowState: row}
	if row.key.peerIdentity != "" {
		if callers.identities[row.key.peerIdentity] {
			return flow{}, false
		}
		id, _ := mesh.ParseID(row.key.peerIdentity)
		f.source, f.sourceKind, f.sourceIdentity = id.Account, kindWorkload, row.key.peerIdentity
		return f, true
	}
	f.source, f.sourceKind = callerName(row.key.peerAddress, callers.hosts)
	if id, ok := callers.workloads[f.source]; ok { // it went around its proxy, or its proxy let it pass
		f.source, f.sourceKind, f.sourceIdentity = id.Account, kindWorkload, id.String()
	}
	return f, true
}

// callerName names a caller by its address alone.
func callerName(address string, hosts []netip.Addr) (name, kind string) {
	host := hostOf(address)
	if host == "" {
		return "unknown", kindAddress
	}
	if a, err := netip.ParseAddr(host); err == nil && slices.Contains(hosts, a) {
		return "host", kindHost
	}
	return host, kindAddress
}

// withoutLength cuts the prefix length off an address that has one.
func withoutLength(address string) string {
	if p, err := netip.ParsePrefix(address); err == nil {
		return p.Addr().String()
	}
	return address
}

// sum is what several flows come to together.
type sum struct {
	rps      float64
	counts   counts
	latency  [mesh.Buckets]uint64
	mtls     uint64 // of counts.requests
	total    counts
	open     uint64
	history  [historySeconds]float64
	outcomes map[string]uint64
	statuses map[uint32]uint64
}

func (s *sum) add(f flow) {
	s.rps += f.rps
	s.counts = s.counts.plus(f.counts)
	f.rowState.latency.addTo(&s.latency)
	if f.key.security == mesh.MutualTLS.String() {
		s.mtls = add(s.mtls, f.counts.requests)
	}
	s.total = s.total.plus(f.total)
	s.open = add(s.open, f.open)
	if f.history != nil {
		for i, n := range f.history {
			s.history[i] += n
		}
	}
	if s.outcomes == nil {
		s.outcomes, s.statuses = map[string]uint64{}, map[uint32]uint64{}
	}
	grow(s.outcomes, nil, f.outcomes, maxOutcomes)
	grow(s.statuses, nil, f.statuses, maxStatuses)
}
