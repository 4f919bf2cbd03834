package kube

import (
	"cmp"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
)

// Meshed returns the namespaces with pods that have a proxy, or are about to.
func (s *Source) Meshed() map[string]bool {
	meshed := map[string]bool{}
	for _, object := range s.caches.pods.GetStore().List() {
		if p := object.(*pod); p.meshed && !p.gone {
			meshed[p.Namespace] = true
		}
	}
	return meshed
}

// Inventory lists the pods in the mesh, and the services of their namespaces.
func (s *Source) Inventory() *tullev1.ListResponse {
	list := &tullev1.ListResponse{}
	meshed := map[string]bool{}
	for _, object := range s.caches.pods.GetStore().List() {
		p := object.(*pod)
		if !p.meshed || p.gone {
			continue
		}
		meshed[p.Namespace] = true
		w := &tullev1.Workload{
			Replica: p.Name, Service: p.owner + "." + p.Namespace, Identity: p.id(s.config.TrustDomain).String(),
			State: "starting", StartedUnix: p.started,
		}
		w.Address4, w.Address6 = families(p.addrs)
		if len(p.addrs) > 0 {
			w.State = "running"
		}
		list.Workloads = append(list.Workloads, w)
	}
	for _, object := range s.caches.services.GetStore().List() {
		service := object.(*corev1.Service)
		if !meshed[service.Namespace] {
			continue
		}
		row := &tullev1.Service{Name: service.Name + "." + service.Namespace, Source: "kubernetes"}
		row.Address4, row.Address6 = families(serviceAddrs(service))
		for _, port := range service.Spec.Ports {
			row.Ports = append(row.Ports, uint32(port.Port))
		}
		list.Services = append(list.Services, row)
	}
	slices.SortFunc(list.Workloads, func(a, b *tullev1.Workload) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Replica, b.Replica))
	})
	slices.SortFunc(list.Services, func(a, b *tullev1.Service) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

// families returns the first address of each family, "" for one without.
func families(addrs []netip.Addr) (v4, v6 string) {
	for _, addr := range addrs {
		if addr.Is4() {
			v4 = cmp.Or(v4, addr.String())
		} else {
			v6 = cmp.Or(v6, addr.String())
		}
	}
	return v4, v6
}
