package kube

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
	"github.com/tulle-mesh/tulle/discovery"
	"github.com/tulle-mesh/tulle/mesh"
	"github.com/tulle-mesh/tulle/mesh/cluster"
)

// Path returns what is known of the way from a client to a server, which are
// named as kubectl's users do ("deploy/web", "svc/catalog:8080", "pod/web-1"), as
// DNS does ("catalog", "catalog.shop.svc") or by an address. Names without a
// namespace are of the given one. Errors say what to type.
func (s *Source) Path(client, server, namespace string) (*mesh.Path, error) {
	from, err := s.find(client, namespace, false)
	if err != nil {
		return nil, err
	}
	to, err := s.find(server, namespace, true)
	if err != nil {
		return nil, err
	}
	p := &mesh.Path{Client: s.client(from), Server: s.server(to), Ports: []mesh.PathPort{}}
	var places []discovery.Place // each once: a deployment has more pods than that
	for _, pod := range from.pods {
		if place := s.placeOf(pod); !slices.Contains(places, place) {
			places = append(places, place)
		}
	}
	if to.service == nil {
		p.Ports = append(p.Ports, s.direct(to))
		return p, nil
	}
	p.Ports = s.servicePorts(to, places)
	if to.service.Spec.ClusterIP == corev1.ClusterIPNone {
		p.Server.Addresses = usedHosts(p.Ports)
	}
	return p, nil
}

// found is what a name stands for.
type found struct {
	namespace, name string
	service         *corev1.Service // nil: the pods are meant themselves
	pods            []*pod
	addr            netip.Addr // that was named; zero: a name was
	port            uint16     // 0: none was named
	alone           bool       // one pod was named, not what it belongs to
}

// kinds are what kubectl calls things, and what they are here.
var kinds = map[string]func(*Source, string, string) (found, bool){
	"": nil, "svc": (*Source).service, "service": (*Source).service, "services": (*Source).service,
	"po": (*Source).podNamed, "pod": (*Source).podNamed, "pods": (*Source).podNamed,
	"deploy": (*Source).workload, "deployment": (*Source).workload, "deployments": (*Source).workload,
	"sts": (*Source).workload, "statefulset": (*Source).workload, "statefulsets": (*Source).workload,
	"ds": (*Source).workload, "daemonset": (*Source).workload, "daemonsets": (*Source).workload,
	"job": (*Source).workload, "jobs": (*Source).workload, "cj": (*Source).workload, "cronjob": (*Source).workload, "cronjobs": (*Source).workload,
}

// podKinds are the kinds of which a name may be a pod's in DNS.
var podKinds = map[string][]func(*Source, string, string) (found, bool){
	"": {(*Source).podNamed}, "po": {(*Source).podNamed}, "pod": {(*Source).podNamed}, "pods": {(*Source).podNamed},
}

// find looks for what a name means: among servers services come first, among
// clients workloads.
func (s *Source) find(ref, namespace string, server bool) (found, error) {
	kind, name := "", ref
	if !strings.Contains(ref, "://") {
		if k, rest, ok := strings.Cut(ref, "/"); ok {
			kind, name = strings.ToLower(k), rest
		}
	}
	look, known := kinds[kind]
	if !known {
		return found{}, fmt.Errorf("%.80q: of that kind nothing calls or is called; name a deploy/, sts/, ds/, job/, cj/, pod/ or svc/", ref)
	}
	name, port, err := discovery.SplitPort(name)
	if err != nil {
		return found{}, err
	}
	if addr, err := netip.ParseAddr(name); err == nil {
		return s.at(addr.Unmap(), port)
	}
	order := []func(*Source, string, string) (found, bool){(*Source).workload, (*Source).podNamed, (*Source).service}
	switch {
	case look != nil:
		order = order[:0]
		order = append(order, look)
	case server:
		slices.Reverse(order)
	}
	for _, c := range candidates(name, namespace) {
		looks := order
		if c.pod {
			looks = podKinds[kind]
		}
		for _, look := range looks {
			if f, ok := look(s, c.namespace, c.name); ok {
				if server && f.service == nil && !f.alone {
					f.service = s.serviceOf(f.pods)
				}
				f.port = port
				return f, nil
			}
		}
	}
	if _, ok, _ := s.caches.namespaces.GetStore().GetByKey(namespace); !ok {
		return found{}, fmt.Errorf("there is no namespace %.80q; see: kubectl get namespaces", namespace)
	}
	if server {
		return found{}, fmt.Errorf("nothing is called %.80q in namespace %s; see: kubectl -n %s get services,pods (-n NAMESPACE names another one)", ref, namespace, namespace)
	}
	return found{}, fmt.Errorf("no pod of namespace %s belongs to %.80q; see: kubectl -n %s get deploy,sts,ds,pods (-n NAMESPACE names another one)", namespace, ref, namespace)
}

type candidate struct {
	namespace, name string
	pod             bool // it can be nothing else
}

// candidates are what a name may mean: itself, NAME.NAMESPACE, and, of a pod,
// POD.SERVICE and POD.SERVICE.NAMESPACE.
func candidates(name, namespace string) []candidate {
	name, _ = cluster.CutDomain(name)
	name = strings.TrimSuffix(name, ".")
	list := []candidate{{namespace: namespace, name: name}}
	if i := strings.LastIndexByte(name, '.'); i > 0 {
		list = append(list, candidate{namespace: name[i+1:], name: name[:i]})
	}
	switch labels := strings.Split(name, "."); len(labels) {
	case 2:
		list = append(list, candidate{namespace, labels[0], true})
	case 3:
		list = append(list, candidate{labels[2], labels[0], true})
	}
	return list
}

func (s *Source) service(namespace, name string) (found, bool) {
	object, ok, _ := s.caches.services.GetStore().GetByKey(namespace + "/" + name)
	if !ok {
		return found{}, false
	}
	f := found{namespace: namespace, name: name, service: object.(*corev1.Service)}
	for _, slice := range s.endpointSlices(namespace + "/" + name) {
		for i := range slice.Endpoints {
			if ref := slice.Endpoints[i].TargetRef; ref != nil && ref.Kind == "Pod" {
				if p := s.pod(namespace, ref.Name); p != nil && !slices.Contains(f.pods, p) {
					f.pods = append(f.pods, p)
				}
			}
		}
	}
	sortPods(f.pods)
	return f, true
}

func (s *Source) podNamed(namespace, name string) (found, bool) {
	p := s.pod(namespace, name)
	if p == nil {
		return found{}, false
	}
	return found{namespace: namespace, name: p.owner, pods: []*pod{p}, alone: true}, true
}

func (s *Source) workload(namespace, name string) (found, bool) {
	f := found{namespace: namespace, name: name}
	for _, object := range s.caches.pods.GetStore().List() {
		if p := object.(*pod); p.Namespace == namespace && p.owner == name && !p.gone {
			f.pods = append(f.pods, p)
		}
	}
	sortPods(f.pods)
	return f, len(f.pods) > 0
}

func sortPods(pods []*pod) {
	slices.SortFunc(pods, func(a, b *pod) int { return cmp.Compare(a.Name, b.Name) })
}

// at finds what has an address.
func (s *Source) at(addr netip.Addr, port uint16) (found, error) {
	var key string // of several services that share it the first by name
	for _, object := range s.caches.services.GetStore().List() {
		service := object.(*corev1.Service)
		if slices.Contains(serviceAddrs(service), addr) && s.leadsTo(service, addr, port) && (key == "" || keyOf(service) < key) {
			key = keyOf(service)
		}
	}
	if namespace, name, ok := strings.Cut(key, "/"); ok {
		f, _ := s.service(namespace, name)
		f.addr, f.port = addr, port
		return f, nil
	}
	if p := s.podAt(addr); p != nil {
		return found{namespace: p.Namespace, name: p.owner, pods: []*pod{p}, addr: addr, port: port}, nil
	}
	what := addr.String()
	if port != 0 {
		what = netip.AddrPortFrom(addr, port).String()
	}
	return found{}, fmt.Errorf("no service and no pod has the address %s: connections to it pass untouched, in plaintext; see: kubectl get services,pods -A -o wide", what)
}

// leadsTo tells whether proxies are told of the service at one of its addresses,
// which may be others' as well; at any port if it is 0.
func (s *Source) leadsTo(service *corev1.Service, addr netip.Addr, port uint16) bool {
	ports := []uint16{port}
	for _, p := range service.Spec.Ports {
		if port == 0 && (p.Protocol == corev1.ProtocolTCP || p.Protocol == "") {
			ports = append(ports, uint16(p.Port))
		}
	}
	snapshot := s.config.State.Load()
	return slices.ContainsFunc(ports, func(port uint16) bool {
		return snapshot.Match(netip.AddrPortFrom(addr, port)).Destination().GetService() == service.Name+"."+service.Namespace
	})
}

// serviceOf returns the service that leads to pods, nil if none does: of several
// the one that is called as their owner is, else the first by name.
func (s *Source) serviceOf(pods []*pod) (first *corev1.Service) {
	for _, object := range s.caches.services.GetStore().List() {
		service := object.(*corev1.Service)
		if first != nil && (first.Name == pods[0].owner || first.Name <= service.Name && service.Name != pods[0].owner) {
			continue
		}
		for _, slice := range s.endpointSlices(keyOf(service)) {
			if slices.ContainsFunc(slice.Endpoints, func(e discoveryv1.Endpoint) bool {
				return e.TargetRef != nil && e.TargetRef.Kind == "Pod" && slices.ContainsFunc(pods, func(p *pod) bool {
					return p.Namespace == slice.Namespace && p.Name == e.TargetRef.Name
				})
			}) {
				first = service
			}
		}
	}
	return first
}

func (s *Source) client(f found) mesh.PathEnd {
	end := mesh.PathEnd{
		Name: f.name + "." + f.namespace, Namespace: f.namespace, Kind: mesh.PathWorkload, Names: []string{}, Addresses: []string{},
		Hint: "kubectl -n " + f.namespace + " get pods", Members: []mesh.PathMember{},
	}
	for i, p := range f.pods {
		if f.service != nil && i == 0 { // a service calls as its pods do
			end.Name = p.owner + "." + f.namespace
		}
		m := s.member(p, 0)
		m.Address = addrOf(p.addrs, 0)
		for _, ports := range p.around {
			m.SkipOutbound = strings.TrimPrefix(m.SkipOutbound+","+ports.String(), ",")
		}
		end.Members = append(end.Members, m)
	}
	return end
}

// member describes a pod, nil for what is none, as who answers at a port.
func (s *Source) member(p *pod, port uint16) mesh.PathMember {
	if p == nil {
		return mesh.PathMember{Plain: "no pod has this address, so no proxy of the mesh is there", State: mesh.PathReady}
	}
	place := s.placeOf(p)
	m := mesh.PathMember{Workload: p.Name, Identity: p.idAt(port, s.config.TrustDomain).String(), State: mesh.PathReady, Node: place.Node, Zone: place.Zone}
	if len(p.addrs) == 0 && !p.host {
		m.State = "starting"
	}
	if m.Identity == "" {
		m.Plain, m.Remedy = s.outside(p, port)
		return m
	}
	m.Strict, _ = s.config.State.Load().Strict(p.Namespace)
	return m
}

// outside says why a pod is not in the mesh, or not at this port, and what to type.
func (s *Source) outside(p *pod, port uint16) (why, remedy string) {
	meshed := false
	if object, ok, _ := s.caches.namespaces.GetStore().GetByKey(p.Namespace); ok {
		n := object.(*corev1.Namespace)
		meshed = cmp.Or(n.Labels[cluster.Inject], n.Annotations[cluster.Inject]) == cluster.Enabled
	}
	switch {
	case p.meshed:
		return fmt.Sprintf("its annotation %s has %d: connections go around its proxy", cluster.SkipInboundPorts, port),
			"take the port out of that annotation (of the pod's template, or of the namespace)"
	case p.host:
		return "it is in its node's network (hostNetwork), where there is no proxy", "to mesh it, give it a network of its own: hostNetwork: false"
	case p.optedOut:
		return fmt.Sprintf("it has opted out (%s: %s)", cluster.Inject, cluster.Disabled), "take that label or annotation off its template"
	case !meshed:
		return "its namespace " + p.Namespace + " is not in the mesh", "tulle mesh " + p.Namespace
	}
	return "it was made before its namespace was meshed, and never replaced", "tulle mesh " + p.Namespace
}

func (s *Source) server(f found) mesh.PathEnd {
	end := mesh.PathEnd{
		Name: f.name + "." + f.namespace, Namespace: f.namespace, Kind: mesh.PathWorkload, Names: []string{}, Addresses: []string{},
		Hint: "kubectl -n " + f.namespace + " get pods", Members: []mesh.PathMember{},
	}
	if f.service == nil {
		for _, p := range f.pods {
			end.Addresses = append(end.Addresses, texts(p.addrs)...)
		}
		if service := s.serviceOf(f.pods); service != nil {
			end.Also = []string{service.Name + "." + service.Namespace}
		}
		return end
	}
	service := f.service
	end.Name, end.Namespace = service.Name+"."+service.Namespace, service.Namespace
	end.Kind, end.Names, end.Addresses = mesh.PathService, []string{end.Name + ".svc"}, texts(serviceAddrs(service))
	end.Hint = fmt.Sprintf("kubectl -n %s get endpointslices -l %s=%s", service.Namespace, discoveryv1.LabelServiceName, service.Name)
	switch {
	case service.Spec.Type == corev1.ServiceTypeExternalName:
		end.Kind, end.Target = mesh.PathExternal, service.Spec.ExternalName
	case service.Spec.ClusterIP == corev1.ClusterIPNone:
		end.Kind = mesh.PathHeadless
	}
	return end
}

// direct is what pods do that are dialled by their own addresses.
func (s *Source) direct(f found) mesh.PathPort {
	port := mesh.PathPort{Port: f.port, Endpoints: []mesh.PathMember{}}
	for _, p := range f.pods {
		m := s.member(p, f.port)
		m.Address, m.Used = addrOf(f.first(p.addrs), f.port), len(p.addrs) > 0 && !p.gone
		if !m.Used {
			m.Unused = "it has no address"
		}
		if declared := p.protocols[f.port]; declared != mesh.Unknown {
			port.Protocol, port.Declared = declared.String(), "the pod's annotation"
		}
		port.Endpoints = append(port.Endpoints, m)
	}
	return port
}

// first returns the addresses of what was found, before all others the one by which
// it was: a dual-stack service leads from there to endpoints of that family.
func (f found) first(addrs []netip.Addr) []netip.Addr {
	if slices.Contains(addrs, f.addr) {
		return append([]netip.Addr{f.addr}, slices.DeleteFunc(slices.Clone(addrs), func(a netip.Addr) bool { return a == f.addr })...)
	}
	return addrs
}

func addrOf(addrs []netip.Addr, port uint16) string {
	switch {
	case len(addrs) == 0:
		return ""
	case port == 0:
		return addrs[0].String()
	}
	return netip.AddrPortFrom(addrs[0], port).String()
}

func texts(addrs []netip.Addr) []string {
	list := make([]string, 0, len(addrs))
	for _, a := range addrs {
		list = append(list, a.String())
	}
	return list
}

// servicePorts describes the ports of a service, or the one that was named, as
// clients at the places are told of them.
func (s *Source) servicePorts(f found, places []discovery.Place) []mesh.PathPort {
	list, numbers := []mesh.PathPort{}, []uint16{}
	for _, port := range f.service.Spec.Ports {
		if port.Protocol != corev1.ProtocolTCP && port.Protocol != "" {
			continue
		}
		numbers = append(numbers, uint16(port.Port))
		if f.port == 0 || f.port == uint16(port.Port) {
			list = append(list, s.servicePort(f, port, places))
		}
	}
	if len(list) == 0 && f.port != 0 && f.service.Spec.Type != corev1.ServiceTypeExternalName {
		list = append(list, mesh.PathPort{Port: f.port, Missing: true, Others: numbers, Endpoints: []mesh.PathMember{}})
	}
	return list
}

func (s *Source) servicePort(f found, port corev1.ServicePort, places []discovery.Place) mesh.PathPort {
	service, addrs := f.service, f.first(serviceAddrs(f.service))
	endpoints := s.endpointSlices(keyOf(service))
	b := builder{trustDomain: s.config.TrustDomain, pod: s.pod, podsAt: s.podsAt}
	slices.SortFunc(endpoints, func(a, b *discoveryv1.EndpointSlice) int { return cmp.Compare(a.Name, b.Name) })
	built := b.port(service, port, endpoints)
	described := mesh.PathPort{Port: built.Port, Endpoints: []mesh.PathMember{}}
	if built.Protocol != mesh.Unknown {
		described.Protocol, described.Declared = built.Protocol.String(), "the pods' annotation"
		if protocolOf(port.AppProtocol) != mesh.Unknown {
			described.Declared = "appProtocol"
		}
	}
	told := s.told(addrs, built, places)
	for _, slice := range endpoints {
		number, _, ok := slicePort(slice, port)
		if !ok || slice.AddressType == discoveryv1.AddressTypeFQDN {
			continue
		}
		for i := range slice.Endpoints {
			described.Endpoints = append(described.Endpoints, s.endpoint(service, &slice.Endpoints[i], number, told)...)
		}
	}
	described.Endpoints = oneFamily(described.Endpoints, addrs)
	return described
}

// told are the endpoints that proxies at the places are told to use, who dial the
// first of a service's addresses.
func (s *Source) told(addrs []netip.Addr, port discovery.ClusterPort, places []discovery.Place) map[string]bool {
	told := map[string]bool{}
	if len(addrs) == 0 { // DNS tells
		for _, e := range port.Endpoints {
			told[e.Addr.String()] = !e.Terminating
		}
		return told
	}
	if len(places) == 0 {
		places = []discovery.Place{{}}
	}
	snapshot := s.config.State.Load()
	for _, place := range places {
		endpoints := snapshot.Match(netip.AddrPortFrom(addrs[0], port.Port)).From(place).Destination().GetEndpoints()
		ready := slices.ContainsFunc(endpoints, func(e *tullev1.Endpoint) bool { return e.GetReady() })
		for _, e := range endpoints {
			told[e.GetAddress()] = told[e.GetAddress()] || e.GetReady() || !ready
		}
	}
	return told
}

// endpoint describes one entry of a slice, also one that nobody is sent to.
func (s *Source) endpoint(service *corev1.Service, e *discoveryv1.Endpoint, port uint16, told map[string]bool) []mesh.PathMember {
	var list []mesh.PathMember
	for _, text := range e.Addresses {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			continue
		}
		b := builder{pod: s.pod, podsAt: s.podsAt}
		p, unknown := b.podOf(service.Namespace, e, addr.Unmap())
		m := s.member(p, port)
		m.Address = netip.AddrPortFrom(addr.Unmap(), port).String()
		m.Used = told[m.Address]
		ending, usable := condition(service, e)
		switch {
		case unknown != "":
			m = mesh.PathMember{Address: m.Address, State: "ended", Unused: unknown}
			if e.TargetRef != nil {
				m.Workload = e.TargetRef.Name
			}
		case ending && usable:
			m.State, m.Unused = "ending", "it is being stopped; used only while no other is ready"
		case !usable:
			m.State, m.Unused = "not ready", "its readiness probe does not pass, or it has just begun"
			m.Remedy = fmt.Sprintf("kubectl -n %s describe pod %s", service.Namespace, m.Workload)
		case !m.Used:
			m.Unused = farAway(service, e)
		}
		if m.Used {
			m.Unused = ""
		}
		list = append(list, m)
	}
	return list
}

// farAway says why a ready endpoint is not for the client.
func farAway(service *corev1.Service, e *discoveryv1.Endpoint) string {
	if policy := service.Spec.InternalTrafficPolicy; policy != nil && *policy == corev1.ServiceInternalTrafficPolicyLocal {
		return "internalTrafficPolicy: Local keeps to the client's node"
	}
	if e.Hints != nil && len(e.Hints.ForNodes)+len(e.Hints.ForZones) > 0 {
		var places []string
		for _, n := range e.Hints.ForNodes {
			places = append(places, "on "+n.Name)
		}
		for _, z := range e.Hints.ForZones {
			places = append(places, "in zone "+z.Name)
		}
		return "topology hints keep it for clients " + strings.Join(places, ", ")
	}
	return "the control plane has not told of it yet"
}

// oneFamily leaves out the same pods under their other addresses.
func oneFamily(list []mesh.PathMember, addrs []netip.Addr) []mesh.PathMember {
	if len(addrs) == 0 {
		return list
	}
	of := func(m mesh.PathMember) bool { return strings.HasPrefix(m.Address, "[") == addrs[0].Is6() }
	if !slices.ContainsFunc(list, of) {
		return list
	}
	return slices.DeleteFunc(list, func(m mesh.PathMember) bool { return !of(m) })
}

// usedHosts are the addresses that the name of a headless service resolves to.
func usedHosts(ports []mesh.PathPort) []string {
	hosts := []string{}
	for _, port := range ports {
		for _, m := range port.Endpoints {
			if addr, err := netip.ParseAddrPort(m.Address); err == nil && m.Used && !slices.Contains(hosts, addr.Addr().String()) {
				hosts = append(hosts, addr.Addr().String())
			}
		}
	}
	return hosts
}

// placeOf is where a pod is.
func (s *Source) placeOf(p *pod) discovery.Place {
	place := discovery.Place{Node: p.node}
	if object, ok, _ := s.caches.nodes.GetStore().GetByKey(p.node); ok {
		place.Zone = object.(*corev1.Node).Labels[zoneLabel]
	}
	return place
}
