package kube

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/tulle-mesh/tulle/mesh/cluster"
)

// pageSize bounds what a list holds of objects that are not trimmed yet: a page
// of pods is 5 to 10 MB.
const pageSize = 250

// Indexes of the caches.
const (
	byService = "service"
	byAddr    = "address"
	zoneLabel = corev1.LabelTopologyZone
)

type caches struct {
	services, slices, pods, nodes, namespaces cache.SharedIndexInformer
}

func newCaches(client kubernetes.Interface) *caches {
	core := client.CoreV1()
	return &caches{
		services: informer(core.Services("").List, core.Services("").Watch, &corev1.Service{}, trimService, nil),
		slices: informer(client.DiscoveryV1().EndpointSlices("").List, client.DiscoveryV1().EndpointSlices("").Watch,
			&discoveryv1.EndpointSlice{}, trimSlice, cache.Indexers{byService: indexByService}),
		pods:       informer(core.Pods("").List, core.Pods("").Watch, &corev1.Pod{}, trimPod, cache.Indexers{byAddr: indexByAddr}),
		nodes:      informer(core.Nodes().List, core.Nodes().Watch, &corev1.Node{}, trimNode, nil),
		namespaces: informer(core.Namespaces().List, core.Namespaces().Watch, &corev1.Namespace{}, trimNamespace, nil),
	}
}

func (c *caches) all() []cache.SharedIndexInformer {
	return []cache.SharedIndexInformer{c.services, c.slices, c.pods, c.nodes, c.namespaces}
}

// informer lists page by page and trims each page at once: the whole list of a
// big cluster's pods would cost more memory than everything else here.
func informer[L runtime.Object](
	list func(context.Context, metav1.ListOptions) (L, error),
	watch func(context.Context, metav1.ListOptions) (watch.Interface, error),
	example runtime.Object, trim cache.TransformFunc, indexers cache.Indexers,
) cache.SharedIndexInformer {
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			return listTrimmed(ctx, options, list, trim)
		},
		WatchFuncWithContext: watch,
	}
	i := cache.NewSharedIndexInformer(lw, example, 0, indexers)
	_ = i.SetTransform(trim) // fails only once it runs
	return i
}

// listTrimmed returns a whole list of trimmed objects.
func listTrimmed[L runtime.Object](
	ctx context.Context, options metav1.ListOptions, list func(context.Context, metav1.ListOptions) (L, error), trim cache.TransformFunc,
) (runtime.Object, error) {
	// "0" would let the API server answer from its cache, and ignore the limit.
	options.ResourceVersion, options.ResourceVersionMatch, options.Limit = "", "", pageSize
	whole := &metav1.List{}
	for {
		page, err := list(ctx, options)
		if err != nil {
			return nil, err
		}
		err = apimeta.EachListItem(page, func(object runtime.Object) error {
			trimmed, err := trim(object)
			if err != nil {
				return err
			}
			whole.Items = append(whole.Items, runtime.RawExtension{Object: trimmed.(runtime.Object)}) // each trim returns one
			return nil
		})
		if err != nil {
			return nil, err
		}
		of, err := apimeta.ListAccessor(page)
		if err != nil {
			return nil, err
		}
		whole.ResourceVersion = of.GetResourceVersion()
		if options.Continue = of.GetContinue(); options.Continue == "" {
			return whole, nil
		}
	}
}

func indexByService(object any) ([]string, error) {
	slice, ok := object.(*discoveryv1.EndpointSlice)
	if !ok || slice.Labels[discoveryv1.LabelServiceName] == "" {
		return nil, nil
	}
	return []string{slice.Namespace + "/" + slice.Labels[discoveryv1.LabelServiceName]}, nil
}

func indexByAddr(object any) ([]string, error) {
	p, ok := object.(*pod)
	if !ok || p.gone {
		return nil, nil
	}
	var keys []string
	for _, addr := range p.addrs {
		keys = append(keys, addr.String())
	}
	return keys, nil
}

// meta keeps of an object's metadata what a cache needs, and the labels and
// annotations of the given names.
func meta(m metav1.ObjectMeta, names ...string) metav1.ObjectMeta {
	kept := metav1.ObjectMeta{Name: m.Name, Namespace: m.Namespace, ResourceVersion: m.ResourceVersion}
	keep := func(from map[string]string) (to map[string]string) {
		for _, name := range names {
			if value, ok := from[name]; ok {
				if to == nil {
					to = make(map[string]string, 1)
				}
				to[name] = value
			}
		}
		return to
	}
	kept.Labels, kept.Annotations = keep(m.Labels), keep(m.Annotations)
	return kept
}

func trimService(object any) (any, error) {
	if s, ok := object.(*corev1.Service); ok {
		spec := &s.Spec
		trimmed := &corev1.Service{ObjectMeta: meta(s.ObjectMeta)}
		trimmed.CreationTimestamp = s.CreationTimestamp
		trimmed.Spec = corev1.ServiceSpec{
			Type: spec.Type, ClusterIP: spec.ClusterIP, ClusterIPs: spec.ClusterIPs, ExternalIPs: spec.ExternalIPs, Ports: spec.Ports,
			InternalTrafficPolicy: spec.InternalTrafficPolicy, PublishNotReadyAddresses: spec.PublishNotReadyAddresses,
			ExternalName: spec.ExternalName,
		}
		trimmed.Status.LoadBalancer = s.Status.LoadBalancer
		return trimmed, nil
	}
	return object, nil
}

func trimSlice(object any) (any, error) {
	if s, ok := object.(*discoveryv1.EndpointSlice); ok {
		trimmed := &discoveryv1.EndpointSlice{
			ObjectMeta: meta(s.ObjectMeta, discoveryv1.LabelServiceName), AddressType: s.AddressType, Ports: s.Ports, Endpoints: s.Endpoints,
		}
		for i := range trimmed.Endpoints {
			e := &trimmed.Endpoints[i]
			e.DeprecatedTopology, e.Hostname, e.Zone = nil, nil, nil
			if e.TargetRef != nil {
				e.TargetRef.APIVersion, e.TargetRef.ResourceVersion, e.TargetRef.FieldPath = "", "", ""
			}
		}
		return trimmed, nil
	}
	return object, nil
}

func trimNode(object any) (any, error) {
	if n, ok := object.(*corev1.Node); ok {
		return &corev1.Node{ObjectMeta: meta(n.ObjectMeta, zoneLabel)}, nil
	}
	return object, nil
}

func trimNamespace(object any) (any, error) {
	if n, ok := object.(*corev1.Namespace); ok {
		return &corev1.Namespace{ObjectMeta: meta(n.ObjectMeta, cluster.Policy, cluster.Inject)}, nil
	}
	return object, nil
}
