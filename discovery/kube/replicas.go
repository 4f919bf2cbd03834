package kube

import (
	"cmp"
	"net/netip"
	"slices"
)

// Replica is a pod behind a service.
type Replica struct {
	Pod     string
	Addr    netip.Addr
	started int64 // Unix seconds
}

// Replicas returns the ready pods behind a service, in an order that everybody
// who knows them finds: the one that started first comes first.
func (s *Source) Replicas(namespace, service string) []Replica {
	var replicas []Replica
	for _, slice := range s.endpointSlices(namespace + "/" + service) {
		for i := range slice.Endpoints {
			e := &slice.Endpoints[i]
			if e.TargetRef == nil || e.Conditions.Ready != nil && !*e.Conditions.Ready {
				continue
			}
			p := s.pod(namespace, e.TargetRef.Name)
			if p == nil || len(p.addrs) == 0 || slices.ContainsFunc(replicas, func(r Replica) bool { return r.Pod == p.Name }) {
				continue // the other family's slice has it, too
			}
			replicas = append(replicas, Replica{p.Name, p.addrs[0], p.started})
		}
	}
	slices.SortFunc(replicas, func(a, b Replica) int {
		return cmp.Or(cmp.Compare(a.started, b.started), cmp.Compare(a.Pod, b.Pod))
	})
	return replicas
}
