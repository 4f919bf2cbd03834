package kube

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/tulle-mesh/tulle/mesh"
	"github.com/tulle-mesh/tulle/mesh/cluster"
)

func namespace(name string, labels, annotations map[string]string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels, Annotations: annotations}}
}

var (
	on     = map[string]string{cluster.Inject: cluster.Enabled}
	off    = map[string]string{cluster.Inject: cluster.Disabled}
	teamA  = map[string]string{"team": "a"}
	nobody = map[string]bool{}
)

type rootSet struct{ pem []byte }

// lab is a cluster with the objects, and what keeps its namespaces.
type lab struct {
	*Namespaces
	client *fake.Clientset
	roots  mesh.Latest[rootSet]
	meshed mesh.Latest[map[string]bool]
}

func newLab(t *testing.T, selector string, objects ...runtime.Object) *lab {
	t.Helper()
	l := &lab{client: fake.NewClientset(objects...)}
	l.meshed.Store(&nobody)
	l.roots.Store(&rootSet{pem: []byte("one")})
	config := Config{
		Client: l.client, Webhook: true, Log: slog.New(slog.DiscardHandler),
		Roots: func() ([]byte, <-chan struct{}) {
			set, changed := l.roots.Watch()
			return set.pem, changed
		},
		Meshed: func() map[string]bool { return *l.meshed.Load() },
	}
	if selector != "" {
		s, err := labels.Parse(selector)
		if err != nil {
			t.Fatal(err)
		}
		config.AutoMesh = s
	}
	var err error
	if l.Namespaces, err = New(config); err != nil {
		t.Fatal(err)
	}
	l.look = 10 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := l.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() { cancel(); <-ended })
	return l
}

func webhook() *admissionregistrationv1.MutatingWebhookConfiguration {
	return &admissionregistrationv1.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: cluster.Injector},
		Webhooks: []admissionregistrationv1.MutatingWebhook{{Name: "other"}, {Name: cluster.WebhookName, ClientConfig: admissionregistrationv1.WebhookClientConfig{
			Service: &admissionregistrationv1.ServiceReference{Namespace: cluster.Namespace, Name: cluster.Control},
		}}},
	}
}

// state writes down what there is: NAME[+label][=annotation][:roots].
func (l *lab) state(t *testing.T) string {
	t.Helper()
	list, err := l.client.CoreV1().Namespaces().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	words := map[string]string{}
	for _, ns := range list.Items {
		word := ns.Name
		if v := ns.Labels[cluster.Inject]; v != "" {
			word += "+" + v
		}
		if v := ns.Annotations[cluster.Inject]; v != "" {
			word += "=" + v
		}
		if config, err := l.client.CoreV1().ConfigMaps(ns.Name).Get(t.Context(), cluster.RootsConfigMap, metav1.GetOptions{}); err == nil {
			word += ":" + config.Data[cluster.RootsKey]
		}
		words[ns.Name] = word
	}
	return strings.Join(slices.Sorted(maps.Values(words)), " ")
}

func (l *lab) bundle(t *testing.T) string {
	t.Helper()
	w, err := l.client.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(t.Context(), cluster.Injector, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%s %s %t", w.Webhooks[0].ClientConfig.CABundle, w.Webhooks[1].ClientConfig.CABundle, w.Webhooks[1].ClientConfig.Service != nil)
}

func (l *lab) events(t *testing.T) []string {
	t.Helper()
	list, err := l.client.CoreV1().Events("").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var texts []string
	for _, e := range list.Items {
		texts = append(texts, fmt.Sprintf("%s %s %s/%s in %s", e.Type, e.Reason, e.InvolvedObject.Kind, e.InvolvedObject.Name, e.Namespace))
	}
	slices.Sort(texts)
	return texts
}

func eventually(t *testing.T, want string, get func() string) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		got := get()
		if got == want {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s\nwant\n%s", got, want)
		}
	}
}

func TestNamespaces(t *testing.T) {
	l := newLab(t, "", webhook(),
		namespace("a-annotated", nil, on), namespace("b-labelled", on, nil), namespace("c-neither", nil, nil),
		namespace("d-disabled", on, off), namespace("e-offline", nil, nil), namespace("kube-system", nil, on), namespace(cluster.Namespace, nil, on))
	want := "a-annotated+enabled=enabled:%[1]s b-labelled+enabled:%[1]s c-neither d-disabled=disabled e-offline kube-system=enabled tulle-system=enabled"
	state := func() string { return l.state(t) }
	eventually(t, fmt.Sprintf(want, "one"), state)
	eventually(t, " one true", func() string { return l.bundle(t) })
	if got := l.Annotations("a-annotated"); got[cluster.Inject] != cluster.Enabled {
		t.Errorf("%v", got)
	}
	if got := l.Annotations("nowhere"); got != nil {
		t.Errorf("%v", got)
	}
	// The authority changes.
	l.roots.Store(&rootSet{pem: []byte("two")})
	eventually(t, fmt.Sprintf(want, "two"), state)
	eventually(t, " two true", func() string { return l.bundle(t) })
	// A namespace is meshed no more.
	if _, err := l.client.CoreV1().Namespaces().Update(t.Context(), namespace("b-labelled", nil, nil), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, strings.Replace(fmt.Sprintf(want, "two"), "b-labelled+enabled:two", "b-labelled", 1), state)
	eventually(t, "Warning NotMeshed Namespace/kube-system in default;Warning NotMeshed Namespace/tulle-system in default",
		func() string { return strings.Join(l.events(t), ";") })
}

// Somebody else writes certificates into webhooks (cert-manager's injector, an
// older installation): ours comes back, or every pod of the mesh would wait.
func TestBundleClash(t *testing.T) {
	l := &lab{client: fake.NewClientset(webhook())}
	var err error
	l.Namespaces, err = New(Config{
		Client: l.client, Webhook: true, Log: slog.New(slog.DiscardHandler),
		Roots: func() ([]byte, <-chan struct{}) { return []byte("ours"), nil }, Meshed: func() map[string]bool { return nobody },
	})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	if err := l.pass(t.Context(), []byte("ours"), now); err != nil || l.bundle(t) != " ours true" {
		t.Fatalf("%v, %s", err, l.bundle(t))
	}
	w := webhook()
	w.Webhooks[1].ClientConfig.CABundle = []byte("theirs")
	if _, err := l.client.AdmissionregistrationV1().MutatingWebhookConfigurations().Update(t.Context(), w, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := l.pass(t.Context(), []byte("ours"), now.Add(bundleAgain)); err != nil || l.bundle(t) != " ours true" {
		t.Errorf("when it looks again: %v, %s", err, l.bundle(t))
	}
}

func TestAutoMesh(t *testing.T) {
	l := newLab(t, "team in (a,b)", webhook(),
		namespace("one", teamA, nil), namespace("two", map[string]string{"team": "c"}, nil), namespace("no", teamA, off), namespace("kube-system", teamA, nil))
	eventually(t, "kube-system no=disabled one+enabled=enabled:one two", func() string { return l.state(t) })
	// One that comes later.
	if _, err := l.client.CoreV1().Namespaces().Create(t.Context(), namespace("later", map[string]string{"team": "b"}, nil), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "kube-system later+enabled=enabled:one no=disabled one+enabled=enabled:one two", func() string { return l.state(t) })
	eventually(t, "Normal Meshed Namespace/later in default;Normal Meshed Namespace/one in default", func() string { return strings.Join(l.events(t), ";") })
}

// A manifest that was patched offline runs in a namespace that is not meshed.
func TestMeshedOffline(t *testing.T) {
	l := newLab(t, "", webhook(), namespace("shop", nil, nil), namespace("other", nil, nil))
	l.meshed.Store(&map[string]bool{"shop": true})
	eventually(t, "other shop:one", func() string { return l.state(t) })
	l.meshed.Store(&nobody)
	eventually(t, "other shop", func() string { return l.state(t) })
}

func TestEvents(t *testing.T) {
	l := newLab(t, "", webhook())
	about := corev1.ObjectReference{APIVersion: "apps/v1", Kind: "DaemonSet", Name: "agent", Namespace: "shop"}
	for range 3 {
		l.Skipped(t.Context(), "shop", about, "no proxy")
	}
	l.Skipped(t.Context(), "shop", corev1.ObjectReference{}, "no proxy")
	if got := strings.Join(l.events(t), ";"); got != "Warning NotMeshed DaemonSet/agent in shop;Warning NotMeshed Namespace/shop in default" {
		t.Error(got)
	}
}
