package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/tulle-mesh/tulle/discovery"
	"github.com/tulle-mesh/tulle/mesh"
	"github.com/tulle-mesh/tulle/mesh/cluster"
)

// settle gathers changes that come together, as those of a rolling restart do:
// publishing 5,000 endpoints costs a few milliseconds.
const settle = 20 * time.Millisecond

// Config is what New needs.
type Config struct {
	Client      kubernetes.Interface
	State       *discovery.State
	TrustDomain string
	Strict      bool         // policy of namespaces that say nothing
	Log         *slog.Logger // nil: slog.Default()
}

// Validate reports what the Config lacks.
func (c Config) Validate() error {
	if c.Client == nil || c.State == nil {
		return errors.New("discovery/kube: Config.Client and Config.State are required")
	}
	return mesh.ControlID(c.TrustDomain).Validate()
}

// Source keeps a State at what the cluster is.
type Source struct {
	config Config
	caches *caches
	ready  atomic.Bool
	wake   chan struct{} // tells Run that something is stale

	mu    sync.Mutex          // guards what follows
	stale map[string]struct{} // services, NAMESPACE/NAME
	refs  map[string][]string // by podRef or addrRef: the services that asked for it
	pods  bool                // the list of pods is stale
	rules bool                // the namespaces are

	// Of Run's goroutine alone.
	services map[string]*builtService
	known    map[string]*discovery.ClusterPod
	strict   map[string]bool
}

type builtService struct {
	service *discovery.ClusterService // nil: of type ExternalName
	refs    []string                  // sorted
}

// New returns a Source that Run brings to life.
func New(config Config) (*Source, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	if config.Log == nil {
		config.Log = slog.Default()
	}
	s := &Source{
		config: config, caches: newCaches(config.Client), wake: make(chan struct{}, 1),
		stale: map[string]struct{}{}, refs: map[string][]string{},
		services: map[string]*builtService{}, known: map[string]*discovery.ClusterPod{},
	}
	return s, s.listen()
}

// Ready tells whether the whole cluster has been read once.
func (s *Source) Ready() bool { return s.ready.Load() }

// Run follows the cluster until ctx ends.
func (s *Source) Run(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	synced := make([]cache.InformerSynced, 0, 5)
	for _, i := range s.caches.all() {
		synced = append(synced, i.HasSynced)
		running.Go(func() { i.RunWithContext(ctx) })
	}
	// Half a cluster would be worse than none: endpoints would seem to be gone.
	if !cache.WaitForCacheSync(ctx.Done(), synced...) {
		return nil
	}
	for _, key := range s.caches.services.GetStore().ListKeys() {
		s.markService(key)
	}
	s.markAll()
	s.publish()
	s.ready.Store(true)
	for {
		select {
		case <-s.wake:
		case <-ctx.Done():
			return nil
		}
		select {
		case <-time.After(settle):
		case <-ctx.Done():
			return nil
		}
		s.publish()
	}
}

// listen marks as stale what each change concerns.
func (s *Source) listen() error {
	_, err1 := s.caches.services.AddEventHandler(onChange(func(o any) { s.markService(keyOf(o)) }))
	_, err2 := s.caches.slices.AddEventHandler(onChange(func(o any) {
		if keys, _ := indexByService(o); len(keys) > 0 {
			s.markService(keys[0])
		}
	}))
	_, err3 := s.caches.pods.AddEventHandler(onChange(func(o any) {
		if p, ok := o.(*pod); ok {
			s.markPod(p)
		}
	}))
	_, err4 := s.caches.namespaces.AddEventHandler(onChange(func(any) { s.markAll() }))
	return errors.Join(err1, err2, err3, err4)
}

// onChange calls f with the object that came, and with the one that went.
func onChange(f func(object any)) cache.ResourceEventHandler {
	return cache.ResourceEventHandlerFuncs{
		AddFunc:    f,
		UpdateFunc: func(old, now any) { f(old); f(now) },
		DeleteFunc: func(o any) {
			if t, ok := o.(cache.DeletedFinalStateUnknown); ok {
				o = t.Obj
			}
			f(o)
		},
	}
}

func keyOf(object any) string {
	key, err := cache.MetaNamespaceKeyFunc(object)
	if err != nil {
		return ""
	}
	return key
}

func (s *Source) markService(key string) {
	s.mu.Lock()
	s.stale[key] = struct{}{}
	s.mu.Unlock()
	s.awake()
}

// markPod marks the services that lead to the pod, if it matters to them.
func (s *Source) markPod(p *pod) {
	s.mu.Lock()
	s.pods = true
	s.markRefLocked(podRef(p.Namespace, p.Name))
	for _, addr := range p.addrs {
		s.markRefLocked(addrRef(addr))
	}
	s.mu.Unlock()
	s.awake()
}

func (s *Source) markRefLocked(ref string) {
	for _, key := range s.refs[ref] {
		s.stale[key] = struct{}{}
	}
}

func (s *Source) markAll() {
	s.mu.Lock()
	s.pods, s.rules = true, true
	s.mu.Unlock()
	s.awake()
}

func (s *Source) awake() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// publish builds what is stale, and hands the State the whole.
func (s *Source) publish() {
	s.mu.Lock()
	stale, pods, rules := s.stale, s.pods, s.rules
	s.stale, s.pods, s.rules = map[string]struct{}{}, false, false
	s.mu.Unlock()

	changed := false
	for key := range stale {
		changed = s.rebuild(key) || changed
	}
	if pods {
		changed = s.rebuildPods() || changed
	}
	if rules {
		changed = s.rebuildStrict() || changed
	}
	if !changed && s.ready.Load() {
		return
	}
	c := &discovery.Cluster{Strict: s.strict, Pods: slices.Collect(maps.Values(s.known))}
	for _, b := range s.services {
		if b.service != nil {
			c.Services = append(c.Services, b.service)
		}
	}
	s.config.State.SetCluster(c)
}

// rebuild builds one service anew and tells whether it has changed.
func (s *Source) rebuild(key string) bool {
	old := s.services[key]
	if old == nil {
		old = &builtService{}
	}
	now := &builtService{}
	if object, ok, _ := s.caches.services.GetStore().GetByKey(key); ok {
		endpoints := s.endpointSlices(key)
		// The references come first: a pod that changes while the service is
		// being built marks it again.
		now.refs = refsOf(endpoints)
		s.refer(key, old.refs, now.refs)
		b := builder{trustDomain: s.config.TrustDomain, pod: s.pod, podsAt: s.podsAt}
		now.service = b.build(object.(*corev1.Service), endpoints)
	} else {
		s.refer(key, old.refs, nil)
	}
	if now.service == nil && len(now.refs) == 0 {
		delete(s.services, key)
		return old.service != nil
	}
	s.services[key] = now
	if reflect.DeepEqual(old.service, now.service) {
		now.service = old.service
		return false
	}
	return true
}

// podRef and addrRef name what services refer to: when one of them changes, the
// service is stale.
func podRef(namespace, name string) string { return namespace + "/" + name }
func addrRef(addr netip.Addr) string       { return addr.String() }

// refsOf returns what build will ask for, sorted.
func refsOf(endpoints []*discoveryv1.EndpointSlice) (refs []string) {
	for _, slice := range endpoints {
		for i := range slice.Endpoints {
			e := &slice.Endpoints[i]
			if e.TargetRef != nil && e.TargetRef.Kind == "Pod" {
				refs = append(refs, podRef(slice.Namespace, e.TargetRef.Name))
			}
			for _, text := range e.Addresses {
				if addr, err := netip.ParseAddr(text); err == nil {
					refs = append(refs, addrRef(addr.Unmap()))
				}
			}
		}
	}
	slices.Sort(refs)
	return slices.Clip(slices.Compact(refs))
}

// refer makes changes of the pods and addresses in now mark the service, and
// those of before, which it does not ask for any more, not.
func (s *Source) refer(key string, before, now []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ref := range before {
		if _, still := slices.BinarySearch(now, ref); still {
			continue
		}
		s.refs[ref] = slices.DeleteFunc(s.refs[ref], func(k string) bool { return k == key })
		if len(s.refs[ref]) == 0 {
			delete(s.refs, ref)
		}
	}
	for _, ref := range now {
		if !slices.Contains(s.refs[ref], key) {
			s.refs[ref] = append(s.refs[ref], key)
		}
	}
}

func (s *Source) endpointSlices(key string) []*discoveryv1.EndpointSlice {
	objects, _ := s.caches.slices.GetIndexer().ByIndex(byService, key) // the index exists
	list := make([]*discoveryv1.EndpointSlice, 0, len(objects))
	for _, object := range objects {
		list = append(list, object.(*discoveryv1.EndpointSlice))
	}
	return list
}

func (s *Source) pod(namespace, name string) *pod {
	object, ok, _ := s.caches.pods.GetStore().GetByKey(namespace + "/" + name)
	if !ok {
		return nil
	}
	return object.(*pod)
}

// podsAt returns the pods with an address: several as long as it goes from one to
// another.
func (s *Source) podsAt(addr netip.Addr) []*pod {
	objects, _ := s.caches.pods.GetIndexer().ByIndex(byAddr, addr.String()) // the index exists
	pods := make([]*pod, 0, len(objects))
	for _, object := range objects {
		pods = append(pods, object.(*pod))
	}
	return pods
}

// podAt returns the only pod with an address.
func (s *Source) podAt(addr netip.Addr) *pod {
	if pods := s.podsAt(addr); len(pods) == 1 {
		return pods[0]
	}
	return nil
}

// rebuildPods lists the pods of the mesh; unchanged ones keep their pointers.
func (s *Source) rebuildPods() (changed bool) {
	known := make(map[string]*discovery.ClusterPod, len(s.known))
	for _, object := range s.caches.pods.GetStore().List() {
		p := object.(*pod).clusterPod(s.config.TrustDomain)
		if p == nil {
			continue
		}
		key := podRef(p.Namespace, p.Name)
		if old := s.known[key]; old != nil && reflect.DeepEqual(old, p) {
			p = old
		} else {
			changed = true
		}
		known[key] = p
	}
	changed = changed || len(known) != len(s.known)
	s.known = known
	return changed
}

func (s *Source) rebuildStrict() (changed bool) {
	strict := map[string]bool{}
	for _, object := range s.caches.namespaces.GetStore().List() {
		n := object.(*corev1.Namespace)
		switch policy, said := n.Annotations[cluster.Policy]; {
		case policy == cluster.Strict, !said && s.config.Strict:
			strict[n.Name] = true
		case said && policy != cluster.Permissive:
			// A word that is not understood must not open what was to be closed.
			strict[n.Name] = true
			s.config.Log.Error("namespace with an unknown policy: taken for strict", "namespace", n.Name,
				"annotation", cluster.Policy, "value", policy, "allowed", fmt.Sprint(cluster.Permissive, ", ", cluster.Strict))
		}
	}
	changed = !maps.Equal(strict, s.strict)
	s.strict = strict
	return changed
}

// Place returns where the pod with an address is, as far as that is known.
func (s *Source) Place(addr netip.Addr) discovery.Place {
	p := s.podAt(addr)
	if p == nil || p.node == "" {
		return discovery.Place{}
	}
	return s.placeOf(p)
}

// PodAddrs returns the addresses of the pod with a name and a UID: none if there
// is no such pod, or it has no address yet.
func (s *Source) PodAddrs(namespace, name, uid string) []netip.Addr {
	if p := s.pod(namespace, name); p != nil && string(p.uid) == uid {
		return p.addrs
	}
	return nil
}
