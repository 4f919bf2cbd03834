package dashboard

import (
	"slices"
)

type replicaKey struct{ service, name string }

// replicaRows are the places that a service's requests go to: those of the
// inventory, those that balancers know, and those seen in traffic.
func (t *tables) replicaRows() []Replica {
	rows := map[replicaKey]*Replica{}
	row := func(key replicaKey, address string) *Replica {
		if rows[key] == nil {
			rows[key] = &Replica{Service: key.service, Workload: key.name, Clients: []ClientView{}}
		}
		if rows[key].Address == "" {
			rows[key].Address = address
		}
		return rows[key]
	}
	for _, w := range t.inventory.GetWorkloads() {
		row(replicaKey{w.Service, w.Replica}, hostOf(withoutLength(w.Address4))).Ready = isReady(w.State)
	}
	for key := range t.listed {
		row(key, key.name).Ready = true // nobody probes them
	}
	t.addEndpoints(row)
	for key := range t.replicas {
		row(key, t.addresses[key])
	}
	list := make([]Replica, 0, len(rows))
	for key, r := range rows {
		s := t.replicas[key]
		if s == nil {
			s = &sum{}
		}
		r.Figures = t.figures(s)
		list = append(list, *r)
	}
	list = t.onlyServed(list)
	setShares(list)
	slices.SortFunc(list, func(a, b Replica) int { return cmpStrings(a.Service, b.Service, a.Workload, b.Workload) })
	return list
}

// listed are the places of catalog services, which may be told without a port.
func (s *snapshot) listed() map[replicaKey]bool {
	places := map[replicaKey]bool{}
	for _, service := range s.inventory.GetServices() {
		if service.Source == "catalog" {
			for _, address := range service.Endpoints {
				places[replicaKey{service.Name, address}] = true
			}
		}
	}
	return places
}

// addEndpoints adds what the clients' balancers estimate.
func (t *tables) addEndpoints(row func(key replicaKey, address string) *Replica) {
	known := map[string]bool{} // services whose readiness the inventory knows better
	for _, w := range t.inventory.GetWorkloads() {
		known[w.Service] = true
	}
	for _, p := range t.proxies {
		for _, e := range p.endpoints {
			if e.service == "" {
				continue
			}
			r := row(t.place(replicaPlace{e.service, e.workload, e.address}), e.address)
			if !known[e.service] {
				r.Ready = r.Ready || e.ready
			}
			r.InFlight += uint64(e.inFlight)
			r.Clients = append(r.Clients, ClientView{Workload: p.workload, EWMA: round(e.ewmaMicros, 1) / 1e6, InFlight: e.inFlight})
		}
	}
}

// onlyServed leaves out workloads that nobody calls and that declared no port:
// the mere clients of the mesh.
func (s *snapshot) onlyServed(list []Replica) []Replica {
	offered := map[string]bool{}
	for _, service := range s.inventory.GetServices() {
		offered[service.Name] = len(service.Ports) > 0 || service.Source == "catalog"
	}
	return slices.DeleteFunc(list, func(r Replica) bool {
		return !offered[r.Service] && len(r.Clients) == 0 && r.TotalRequests == 0 && r.Open == 0
	})
}

func setShares(list []Replica) {
	requests, replicas := map[string]uint64{}, map[string]int{}
	for _, r := range list {
		requests[r.Service] = add(requests[r.Service], r.Requests)
		if r.Ready || r.Requests > 0 {
			replicas[r.Service]++
		}
	}
	for i := range list {
		r := &list[i]
		r.Share = share(r.Requests, requests[r.Service])
		r.Fair = 1 / float64(max(replicas[r.Service], 1))
		if len(r.Clients) > 0 {
			total := 0.0
			for _, c := range r.Clients {
				total += c.EWMA
			}
			r.EWMA = new(round(total/float64(len(r.Clients)), 1e6))
		}
	}
}
