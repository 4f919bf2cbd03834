package kube

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	applycorev1 "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/tulle-mesh/tulle/mesh/cluster"
)

const (
	fieldManager = cluster.Control

	// look is how often a pass is made at least: pods that bring their proxy
	// along need the roots soon.
	look = 5 * time.Second
	// soon is when it is made again after one that did not do everything: the
	// installer may not have applied everything yet.
	soon = 500 * time.Millisecond
	// again is after how long what was written is looked at: somebody may have
	// changed it.
	again = 5 * time.Minute
	// bundleAgain is the same of the webhook's: with another's certificate in it
	// no pod of the mesh could start.
	bundleAgain = 15 * time.Second
)

// systemNamespaces are never meshed: the cluster's own life must not depend on
// the mesh.
var systemNamespaces = []string{"kube-system", "kube-public", "kube-node-lease", cluster.Namespace}

// Config is what New needs.
type Config struct {
	Client kubernetes.Interface
	// Roots returns the trusted roots in PEM form, and a channel that is closed
	// once they have changed.
	Roots func() (pem []byte, changed <-chan struct{})
	// Meshed returns the namespaces that have pods with a proxy.
	Meshed func() map[string]bool
	// AutoMesh selects namespaces that are meshed without being asked; nil: none.
	AutoMesh labels.Selector
	// Webhook: keep the webhook's caBundle.
	Webhook bool
	Log     *slog.Logger
}

// Validate reports what the Config lacks.
func (c Config) Validate() error {
	if c.Client == nil || c.Roots == nil || c.Meshed == nil || c.Log == nil {
		return errors.New("inject/kube: Config.Client, Roots, Meshed and Log are required")
	}
	return nil
}

// Namespaces knows the cluster's namespaces, and keeps those of the mesh supplied.
type Namespaces struct {
	config   Config
	informer cache.SharedIndexInformer
	wake     chan struct{}
	events   events
	look     time.Duration

	// Of Run's goroutine alone.
	written map[string]written // roots, by namespace
	bundle  written            // of the webhook
}

// written is what was written last, and when.
type written struct {
	content []byte
	at      time.Time
}

func (w written) good(content []byte, now time.Time, again time.Duration) bool {
	return bytes.Equal(w.content, content) && now.Sub(w.at) < again
}

// New returns what Run brings to life.
func New(config Config) (*Namespaces, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	n := &Namespaces{config: config, wake: make(chan struct{}, 1), look: look, written: map[string]written{}}
	n.events = events{client: config.Client, log: config.Log, last: map[string]time.Time{}, now: time.Now}
	n.informer = informers.NewSharedInformerFactory(config.Client, 0).Core().V1().Namespaces().Informer()
	if err := n.informer.SetTransform(trim); err != nil {
		return nil, err
	}
	awake := func(any) {
		select {
		case n.wake <- struct{}{}:
		default:
		}
	}
	_, err := n.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: awake, UpdateFunc: func(_, o any) { awake(o) }, DeleteFunc: awake,
	})
	return n, err
}

// trim keeps of a namespace its labels, which a selector may ask for, and our
// annotations.
func trim(object any) (any, error) {
	ns, ok := object.(*corev1.Namespace)
	if !ok {
		return object, nil
	}
	kept := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: ns.Name, UID: ns.UID, ResourceVersion: ns.ResourceVersion, Labels: ns.Labels, DeletionTimestamp: ns.DeletionTimestamp,
	}}
	for key, value := range ns.Annotations {
		if strings.HasPrefix(key, cluster.Prefix) {
			metav1.SetMetaDataAnnotation(&kept.ObjectMeta, key, value)
		}
	}
	return kept, nil
}

// Ready tells whether the namespaces have been read once.
func (n *Namespaces) Ready() bool { return n.informer.HasSynced() }

// Annotations returns a namespace's annotations of ours.
func (n *Namespaces) Annotations(namespace string) map[string]string {
	object, ok, _ := n.informer.GetStore().GetByKey(namespace)
	if !ok {
		return nil
	}
	return object.(*corev1.Namespace).Annotations
}

// Skipped writes an Event on what a pod without a proxy belongs to.
func (n *Namespaces) Skipped(ctx context.Context, namespace string, owner corev1.ObjectReference, reason string) {
	if owner.Name == "" {
		owner = corev1.ObjectReference{APIVersion: "v1", Kind: "Namespace", Name: namespace}
	}
	n.events.write(ctx, owner, corev1.EventTypeWarning, "NotMeshed", reason)
}

// Run makes a pass at each change, and from time to time, until ctx ends.
func (n *Namespaces) Run(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	running.Go(func() { n.informer.RunWithContext(ctx) })
	if !cache.WaitForCacheSync(ctx.Done(), n.informer.HasSynced) {
		return nil
	}
	for problem := ""; ; {
		pem, changed := n.config.Roots()
		next := n.look
		switch err := n.pass(ctx, pem, time.Now()); {
		case err == nil:
			problem = ""
		case ctx.Err() == nil && err.Error() != problem:
			problem = err.Error()
			n.config.Log.Warn("a namespace or the webhook is not up to date yet; trying again", "reason", err)
			fallthrough
		default:
			next = min(next, soon)
		}
		timer := time.NewTimer(next)
		select {
		case <-changed:
		case <-n.wake:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
		if ctx.Err() != nil {
			return nil
		}
	}
}

func (n *Namespaces) pass(ctx context.Context, pem []byte, now time.Time) error {
	var errs []error
	if n.config.Webhook && !n.bundle.good(pem, now, bundleAgain) {
		if err := n.writeBundle(ctx, pem); err != nil {
			errs = append(errs, err)
		} else {
			n.bundle = written{pem, now}
		}
	}
	meshed := n.config.Meshed()
	for _, object := range n.informer.GetStore().List() {
		ns := object.(*corev1.Namespace)
		if ns.DeletionTimestamp != nil {
			delete(n.written, ns.Name)
			continue
		}
		enabled, err := n.settle(ctx, ns)
		errs = append(errs, err)
		if enabled || meshed[ns.Name] {
			errs = append(errs, n.writeRoots(ctx, ns.Name, pem, now))
		} else {
			errs = append(errs, n.removeRoots(ctx, ns.Name))
		}
	}
	return errors.Join(errs...)
}

// settle makes a namespace's label what its annotation and the selector ask for,
// and tells whether its pods are meshed.
func (n *Namespaces) settle(ctx context.Context, ns *corev1.Namespace) (enabled bool, err error) {
	said, label := ns.Annotations[cluster.Inject], ns.Labels[cluster.Inject]
	if slices.Contains(systemNamespaces, ns.Name) {
		if said == cluster.Enabled {
			n.events.write(ctx, corev1.ObjectReference{APIVersion: "v1", Kind: "Namespace", Name: ns.Name, UID: ns.UID},
				corev1.EventTypeWarning, "NotMeshed", "a system namespace is never meshed")
		}
		return false, nil
	}
	auto := said == "" && label == "" && n.config.AutoMesh != nil && n.config.AutoMesh.Matches(labels.Set(ns.Labels))
	switch {
	case auto:
		err = n.mark(ctx, ns, cluster.Enabled, true)
		if err == nil {
			n.config.Log.Info("meshed a namespace that the selector asks for", "namespace", ns.Name)
			n.events.write(ctx, corev1.ObjectReference{APIVersion: "v1", Kind: "Namespace", Name: ns.Name, UID: ns.UID},
				corev1.EventTypeNormal, "Meshed", fmt.Sprintf("pods created from now on are meshed, by --auto-mesh %q", n.config.AutoMesh))
		}
	case said == cluster.Enabled && label == "":
		err = n.mark(ctx, ns, cluster.Enabled, false)
	case said == cluster.Disabled && label == cluster.Enabled:
		return false, n.mark(ctx, ns, "", false)
	}
	return auto || said == cluster.Enabled || label == cluster.Enabled, err
}

// mark sets a namespace's label ("": removes it), and its annotation too. It
// changes only what has been seen: of several replicas one does it.
func (n *Namespaces) mark(ctx context.Context, ns *corev1.Namespace, value string, annotate bool) error {
	set := map[string]any{cluster.Inject: value}
	if value == "" {
		set[cluster.Inject] = nil
	}
	metadata := map[string]any{"labels": set, "resourceVersion": ns.ResourceVersion}
	if annotate {
		metadata["annotations"] = set
	}
	patch, err := json.Marshal(map[string]any{"metadata": metadata})
	if err != nil {
		return err
	}
	_, err = n.config.Client.CoreV1().Namespaces().Patch(ctx, ns.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager})
	if err != nil && !apierrors.IsConflict(err) { // it has changed meanwhile: the next pass looks again
		return fmt.Errorf("label namespace %s: %w", ns.Name, err)
	}
	return nil
}

func (n *Namespaces) writeRoots(ctx context.Context, namespace string, pem []byte, now time.Time) error {
	if n.written[namespace].good(pem, now, again) {
		return nil
	}
	want := applycorev1.ConfigMap(cluster.RootsConfigMap, namespace).
		WithLabels(map[string]string{"app.kubernetes.io/managed-by": cluster.Control}).
		WithData(map[string]string{cluster.RootsKey: string(pem)})
	_, err := n.config.Client.CoreV1().ConfigMaps(namespace).Apply(ctx, want, metav1.ApplyOptions{FieldManager: fieldManager, Force: true})
	if err != nil {
		return fmt.Errorf("write the roots for namespace %s: %w", namespace, err)
	}
	n.written[namespace] = written{pem, now}
	return nil
}

// removeRoots cleans up where nothing is meshed any more.
func (n *Namespaces) removeRoots(ctx context.Context, namespace string) error {
	if _, ok := n.written[namespace]; !ok {
		return nil
	}
	err := n.config.Client.CoreV1().ConfigMaps(namespace).Delete(ctx, cluster.RootsConfigMap, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("remove the roots from namespace %s: %w", namespace, err)
	}
	delete(n.written, namespace)
	return nil
}

// writeBundle tells the API server whom to trust when it calls the webhook.
func (n *Namespaces) writeBundle(ctx context.Context, pem []byte) error {
	webhooks := n.config.Client.AdmissionregistrationV1().MutatingWebhookConfigurations()
	now, err := webhooks.Get(ctx, cluster.Injector, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("webhook %s: %w", cluster.Injector, err)
	}
	found := false
	for _, w := range now.Webhooks {
		if w.Name == cluster.WebhookName {
			if found = true; bytes.Equal(w.ClientConfig.CABundle, pem) {
				return nil
			}
		}
	}
	if !found {
		return fmt.Errorf("webhook %s: it has no webhook %s; type: tulle install", cluster.Injector, cluster.WebhookName)
	}
	patch, err := json.Marshal(map[string]any{"webhooks": []any{
		map[string]any{"name": cluster.WebhookName, "clientConfig": map[string]any{"caBundle": pem}},
	}})
	if err != nil {
		return err
	}
	_, err = webhooks.Patch(ctx, cluster.Injector, types.StrategicMergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager})
	if err != nil {
		return fmt.Errorf("webhook %s: %w", cluster.Injector, err)
	}
	return nil
}
