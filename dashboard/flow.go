package dashboard

import (
	"cmp"
	"net/netip"
	"slices"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
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

// edgeRow is what tells an edge of the mesh from others.
type edgeRow struct{ source, kind, identity, service, serviceKind, security, protocol string }

// flow is one row of one proxy, told as "source calls service": what the
// services, edges and replicas are sums of.
type flow struct {
	edge  edgeRow
	place replicaPlace // zero where no replica is to be seen
}

// caller is a workload that calls.
type caller struct {
	id   mesh.ID
	name string // what it belongs to
}

// teller tells each exchange once: the client's side of it, or, where the
// client has no proxy that reports, the server's.
type teller struct {
	identities map[string]bool   // those of which a proxy reports
	workloads  map[string]caller // by address
	hosts      []netip.Addr
	plain      map[[2]string]bool // pairs whose plaintext the client reports
}

func newTeller(records []*record, hosts []netip.Addr, inventory *tullev1.ListResponse) *teller {
	t := &teller{identities: map[string]bool{}, workloads: map[string]caller{}, hosts: hosts, plain: map[[2]string]bool{}}
	for _, connected := range []bool{false, true} { // who has an address now wins over who had it
		for _, r := range records {
			if (r.session != 0) == connected && r.address != "" {
				t.workloads[r.address] = caller{r.id, r.service}
			}
		}
	}
	for _, r := range records {
		t.identities[r.name] = true
		for _, row := range r.rows {
			if key := row.key.Value(); !key.inbound && key.security == mesh.Plaintext.String() {
				f := outboundFlow(r, key)
				t.plain[[2]string{f.edge.source, f.edge.service}] = true
			}
		}
	}
	for _, w := range inventory.GetWorkloads() {
		id, err := mesh.ParseID(w.Identity)
		if err != nil {
			continue
		}
		for _, a := range []string{w.Address4, w.Address6} {
			if host := hostOf(withoutLength(a)); host != "" {
				if known := t.workloads[host]; known.id != id {
					t.workloads[host] = caller{id, cmp.Or(w.Service, id.Account)}
				}
			}
		}
	}
	return t
}

// tell returns false for what the other side's proxy tells already.
func (t *teller) tell(row *row) (flow, bool) {
	key := row.key.Value()
	if !key.inbound {
		return outboundFlow(row.record, key), true
	}
	f, ok := t.inboundFlow(row.record, key)
	return f, ok && !t.plain[[2]string{f.edge.source, f.edge.service}]
}

func outboundFlow(r *record, key edgeKey) flow {
	f := flow{edge: edgeRow{
		source: r.service, kind: kindWorkload, identity: r.name, service: key.service, serviceKind: kindService,
		security: key.security, protocol: key.protocol,
	}}
	if f.edge.service == "" {
		f.edge.service, f.edge.serviceKind = key.peerAddress, kindOutside
		if f.edge.service == "" {
			f.edge.service = "unknown"
		}
		return f
	}
	if key.peerWorkload != "" || key.peerAddress != "" {
		f.place = replicaPlace{f.edge.service, key.peerWorkload, key.peerAddress}
	}
	return f
}

func (t *teller) inboundFlow(r *record, key edgeKey) (flow, bool) {
	service := key.service
	if service == "" {
		service = r.service
	}
	f := flow{place: replicaPlace{service, r.workload, r.address}, edge: edgeRow{
		service: service, serviceKind: kindService, security: key.security, protocol: key.protocol,
	}}
	if r.workload == "" && r.address == "" {
		f.place = replicaPlace{}
	}
	if key.peerIdentity != "" {
		if t.identities[key.peerIdentity] {
			return flow{}, false
		}
		id, _ := mesh.ParseID(key.peerIdentity)
		f.edge.source, f.edge.kind, f.edge.identity = id.Account, kindWorkload, key.peerIdentity
		return f, true
	}
	f.edge.source, f.edge.kind = callerName(key.peerAddress, t.hosts)
	if from, ok := t.workloads[f.edge.source]; ok { // it went around its proxy, or its proxy let it pass
		f.edge.source, f.edge.kind, f.edge.identity = from.name, kindWorkload, from.id.String()
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
