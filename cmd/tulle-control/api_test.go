package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tulle-mesh/tulle/mesh/cluster"
)

// api is as much of an API server as the control plane needs: a cluster that is
// listed page by page and never changes.
type api struct {
	*httptest.Server
	lists map[string]func(from, to int) []any // by resource
	total map[string]int

	mu      sync.Mutex
	secret  *corev1.Secret
	bundle  []byte
	roots   map[string]string                             // ConfigMaps, by namespace
	reviews map[string]authenticationv1.TokenReviewStatus // by token
}

func newAPI(t *testing.T) *api {
	t.Helper()
	a := &api{
		lists: map[string]func(from, to int) []any{}, total: map[string]int{},
		roots: map[string]string{}, reviews: map[string]authenticationv1.TokenReviewStatus{},
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /version", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, map[string]string{"major": "1", "minor": "34"})
	})
	for resource, kind := range map[string][2]string{
		"/api/v1/services": {"v1", "Service"}, "/api/v1/pods": {"v1", "Pod"}, "/api/v1/nodes": {"v1", "Node"},
		"/api/v1/namespaces": {"v1", "Namespace"}, "/apis/discovery.k8s.io/v1/endpointslices": {"discovery.k8s.io/v1", "EndpointSlice"},
	} {
		mux.HandleFunc("GET "+resource, func(w http.ResponseWriter, r *http.Request) { a.list(w, r, resource, kind[0], kind[1]) })
	}
	secrets := "/api/v1/namespaces/" + cluster.Namespace + "/secrets"
	mux.HandleFunc("GET "+secrets, func(w http.ResponseWriter, r *http.Request) { a.list(w, r, "secrets", "v1", "Secret") })
	mux.HandleFunc("GET "+secrets+"/"+cluster.CASecret, a.getSecret)
	mux.HandleFunc("POST "+secrets, a.createSecret)
	hooks := "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/" + cluster.Injector
	mux.HandleFunc("GET "+hooks, a.getWebhook)
	mux.HandleFunc("PATCH "+hooks, a.patchWebhook)
	mux.HandleFunc("PATCH /api/v1/namespaces/{ns}/configmaps/"+cluster.RootsConfigMap, a.applyRoots)
	mux.HandleFunc("POST /apis/authentication.k8s.io/v1/tokenreviews", a.review)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		t.Errorf("asked for %s %s", r.Method, r.URL)
		http.NotFound(w, r)
	})
	a.Server = httptest.NewServer(mux)
	return a
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

// list answers lists by pages, and watches by silence.
func (a *api) list(w http.ResponseWriter, r *http.Request, resource, version, kind string) {
	q := r.URL.Query()
	if q.Get("watch") != "" {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		return
	}
	from, _ := strconv.Atoi(q.Get("continue"))
	limit, _ := strconv.Atoi(q.Get("limit"))
	to := a.total[resource]
	meta := map[string]any{"resourceVersion": "1"}
	if limit > 0 && from+limit < to {
		to = from + limit
		meta["continue"] = strconv.Itoa(to)
	}
	items := []any{}
	if list := a.lists[resource]; list != nil {
		items = list(from, to)
	}
	answer(w, map[string]any{"apiVersion": version, "kind": kind + "List", "metadata": meta, "items": items})
}

func notFound(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusNotFound)
	_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: "Failure", Reason: "NotFound", Code: 404})
}

func (a *api) getSecret(w http.ResponseWriter, _ *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.secret == nil {
		notFound(w)
		return
	}
	answer(w, a.secret)
}

func (a *api) createSecret(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.secret = &corev1.Secret{}
	if err := decode(r, a.secret); err != nil {
		http.Error(w, err.Error(), 400)
		return
	}
	a.secret.ResourceVersion = "1"
	answer(w, a.secret)
}

func (a *api) getWebhook(w http.ResponseWriter, _ *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	answer(w, admissionregistrationv1.MutatingWebhookConfiguration{
		TypeMeta:   metav1.TypeMeta{APIVersion: "admissionregistration.k8s.io/v1", Kind: "MutatingWebhookConfiguration"},
		ObjectMeta: metav1.ObjectMeta{Name: cluster.Injector},
		Webhooks:   []admissionregistrationv1.MutatingWebhook{{Name: cluster.WebhookName, ClientConfig: admissionregistrationv1.WebhookClientConfig{CABundle: a.bundle}}},
	})
}

func (a *api) patchWebhook(w http.ResponseWriter, r *http.Request) {
	var patch admissionregistrationv1.MutatingWebhookConfiguration
	if err := decode(r, &patch); err != nil || len(patch.Webhooks) != 1 {
		http.Error(w, fmt.Sprint("bad patch: ", err), 400)
		return
	}
	a.mu.Lock()
	a.bundle = patch.Webhooks[0].ClientConfig.CABundle
	a.mu.Unlock()
	a.getWebhook(w, r)
}

func (a *api) applyRoots(w http.ResponseWriter, r *http.Request) {
	var config corev1.ConfigMap
	if err := decode(r, &config); err != nil {
		http.Error(w, err.Error(), 400)
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.roots[r.PathValue("ns")] = config.Data[cluster.RootsKey]
	answer(w, config)
}

func (a *api) review(w http.ResponseWriter, r *http.Request) {
	var review authenticationv1.TokenReview
	if err := decode(r, &review); err != nil {
		http.Error(w, err.Error(), 400)
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	review.Status = a.reviews[review.Spec.Token]
	answer(w, review)
}

// decode reads JSON, or the protobuf that the client prefers.
func decode(r *http.Request, into interface{ Unmarshal([]byte) error }) error {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return err
	}
	if !strings.Contains(r.Header.Get("Content-Type"), "protobuf") {
		return json.Unmarshal(body, into)
	}
	var unknown rawUnknown
	if err := unknown.Unmarshal(body[4:]); err != nil { // after the magic "k8s\0"
		return err
	}
	return into.Unmarshal(unknown.Raw)
}

// numbered makes a list of objects that are made as they are asked for.
func numbered[T any](newOne func(i int) T) func(from, to int) []any {
	return func(from, to int) []any {
		items := make([]any, 0, to-from)
		for i := from; i < to; i++ {
			items = append(items, newOne(i))
		}
		return items
	}
}

func ptr[T any](v T) *T { return &v }

// bigCluster has services with five endpoints each, all pods in the mesh.
func (a *api) bigCluster(services int) {
	labels := map[string]string{"app.kubernetes.io/name": "shop", "app.kubernetes.io/part-of": "a-larger-whole", "pod-template-hash": "5d4f8c7b9", cluster.MeshedLabel: "true"}
	filler := strings.Repeat("what other controllers write down about their pods; ", 20)
	ip := func(i int) string { return fmt.Sprintf("10.%d.%d.%d", 1+i/65536, i/256%256, i%256) }
	namespace := func(i int) string { return fmt.Sprintf("team-%d", i%20) }
	set := func(resource string, n int, list func(from, to int) []any) {
		a.total[resource], a.lists[resource] = n, list
	}
	set("/api/v1/namespaces", 20, numbered(func(i int) corev1.Namespace {
		return corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace(i), Labels: map[string]string{cluster.Inject: cluster.Enabled}}}
	}))
	set("/api/v1/services", services, numbered(func(i int) corev1.Service {
		return corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("service-%d", i), Namespace: namespace(i), Labels: labels, Annotations: map[string]string{"note": filler}},
			Spec: corev1.ServiceSpec{ClusterIP: fmt.Sprintf("10.96.%d.%d", i/256, i%256), Ports: []corev1.ServicePort{
				{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}, {Name: "grpc", Port: 90, Protocol: corev1.ProtocolTCP},
			}, Selector: labels},
		}
	}))
	set("/apis/discovery.k8s.io/v1/endpointslices", services, numbered(func(i int) discoveryv1.EndpointSlice {
		s := discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Name: fmt.Sprintf("service-%d-abcde", i), Namespace: namespace(i), Labels: map[string]string{discoveryv1.LabelServiceName: fmt.Sprintf("service-%d", i)}},
			AddressType: discoveryv1.AddressTypeIPv4,
			Ports:       []discoveryv1.EndpointPort{{Name: ptr("http"), Port: ptr[int32](8080)}, {Name: ptr("grpc"), Port: ptr[int32](9090)}},
		}
		for n := range 5 {
			s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
				Addresses: []string{ip(5*i + n)}, NodeName: ptr("node-1"), Zone: ptr("zone-1"),
				Conditions: discoveryv1.EndpointConditions{Ready: ptr(true), Serving: ptr(true), Terminating: ptr(false)},
				TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: namespace(i), Name: fmt.Sprintf("pod-%d", 5*i+n)},
			})
		}
		return s
	}))
	set("/api/v1/pods", 5*services, numbered(func(i int) corev1.Pod {
		container := corev1.Container{
			Name: "application", Image: "registry.example.com/shop/application:v1.2.3", Args: []string{"--configuration", "/etc/app/config.yaml"},
			Env: []corev1.EnvVar{{Name: "ONE", Value: filler}, {Name: "TWO", Value: filler}},
		}
		return corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{
				Name: fmt.Sprintf("pod-%d", i), Namespace: namespace(i / 5), Labels: labels, Annotations: map[string]string{"note": filler, cluster.InjectedAnnotation: "1"},
				OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "shop-5d4f8c7b9", UID: "x", Controller: ptr(true)}},
				ManagedFields:   []metav1.ManagedFieldsEntry{{Manager: "kubelet", Operation: "Update", FieldsV1: &metav1.FieldsV1{Raw: []byte(`{"f:status":{"f:conditions":"` + filler + `"}}`)}}},
			},
			Spec: corev1.PodSpec{
				NodeName: "node-1", ServiceAccountName: "shop",
				InitContainers: []corev1.Container{{Name: cluster.ProxyContainer, Image: "x", Args: []string{filler}}}, Containers: []corev1.Container{container, container},
			},
			Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: ip(i)}}},
		}
	}))
}
