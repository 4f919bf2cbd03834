package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/tulle-mesh/tulle/cmd/tulle/command"
	names "github.com/tulle-mesh/tulle/mesh/cluster"
)

const meshAbout = `
Annotates namespaces (tulle.dev/inject: enabled), so that each pod that starts
there gets a proxy, and replaces the pods of their workloads that have none, or
that of another version, as a rolling update does. Pods that no workload owns,
and Jobs that run, stay as they are.`

// rolling are the flags of commands that replace pods.
type rolling struct {
	Target
	wait    *bool
	timeout *time.Duration
}

func (r *rolling) flags(f *command.Flags) {
	r.Target.Flags(f)
	r.wait = f.Bool("wait", true, "wait until all pods are replaced")
	r.timeout = f.Duration("timeout", 10*time.Minute, "give up waiting after this `TIME`")
}

func meshNamespaces(ctx context.Context, env *command.Env, args []string) error {
	f := command.NewFlags("mesh NAMESPACE... [flags]", meshAbout)
	var r rolling
	r.flags(f)
	strict := f.Bool("strict", false, "refuse clients outside the mesh")
	var whole command.List
	f.Var(&whole, "all-workloads-of", "mesh this `NAMESPACE`, and replace all of its workloads' pods, whatever they have; may be repeated")
	namespaces, err := f.Parse(env, args)
	if err != nil {
		return err
	}
	for _, namespace := range whole {
		if !slices.Contains(namespaces, namespace) {
			namespaces = append(namespaces, namespace)
		}
	}
	if len(namespaces) == 0 {
		return command.Usagef("which namespace? tulle mesh NAMESPACE; all: kubectl get namespaces")
	}
	for _, namespace := range namespaces {
		if slices.Contains([]string{"kube-system", names.Namespace}, namespace) {
			return command.Usagef("namespace %s: its pods are what the mesh itself needs, and cannot be in it", namespace)
		}
	}
	c, err := r.connect(env)
	if err != nil {
		return err
	}
	there, err := c.installed(ctx)
	if err != nil {
		return err
	}
	if there == nil {
		return notInstalled(c)
	}
	annotations := map[string]any{names.Inject: names.Enabled}
	if *strict {
		annotations[names.Policy] = names.Strict
	}
	for _, namespace := range namespaces {
		if err := c.annotate(ctx, namespace, annotations, map[string]any{names.Inject: names.Enabled}); err != nil {
			return err
		}
	}
	word := "meshed"
	if *strict {
		word += ", and strict"
	}
	return c.roll(ctx, env, r, namespaces, staleForMesh(there.version, whole), word)
}

// staleForMesh tells which pods to replace: those without a proxy, those with
// another version's, and all of the workloads of whole namespaces.
func staleForMesh(version string, whole []string) func(workload, *corev1.Pod) bool {
	return func(w workload, p *corev1.Pod) bool {
		return slices.Contains(whole, w.namespace) || !hasProxy(p) || !carriesProxy(w) && p.Annotations[names.InjectedAnnotation] != version
	}
}

// carriesProxy tells whether the workload's own template has the proxy (tulle
// inject): whatever replaces its pods, they have that one.
func carriesProxy(w workload) bool {
	return w.template != nil && w.template.Annotations[names.InjectedAnnotation] != ""
}

func unmeshNamespaces(ctx context.Context, env *command.Env, args []string) error {
	f := command.NewFlags("unmesh NAMESPACE... [flags]", `
Takes the annotations off namespaces, and replaces the pods that have a proxy.`)
	var r rolling
	r.flags(f)
	namespaces, err := f.Parse(env, args)
	if err != nil {
		return err
	}
	if len(namespaces) == 0 {
		return command.Usagef("which namespace? tulle unmesh NAMESPACE; those in the mesh: kubectl get namespaces -l %s", names.Inject)
	}
	c, err := r.connect(env)
	if err != nil {
		return err
	}
	for _, namespace := range namespaces {
		none := map[string]any{names.Inject: nil}
		if err := c.annotate(ctx, namespace, map[string]any{names.Inject: nil, names.Policy: nil}, none); err != nil {
			return err
		}
	}
	return c.roll(ctx, env, r, namespaces, func(_ workload, p *corev1.Pod) bool { return hasProxy(p) }, "not meshed any more")
}

// annotate sets annotations and labels (marks) of a namespace; nil takes one off.
func (c *cluster) annotate(ctx context.Context, namespace string, annotations, marks map[string]any) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": annotations, "labels": marks}})
	if err != nil {
		return err
	}
	_, err = c.client.CoreV1().Namespaces().Patch(ctx, namespace, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: manager})
	if apierrors.IsNotFound(err) {
		return command.WithHint(fmt.Errorf("cluster %s has no namespace %s", c.name, namespace), "all of them: kubectl get namespaces")
	}
	return c.explain(err)
}

// roll replaces the pods of workloads of which one is stale.
func (c *cluster) roll(ctx context.Context, env *command.Env, r rolling, namespaces []string, isStale func(workload, *corev1.Pod) bool, word string) error {
	ctx, cancel := context.WithTimeout(ctx, *r.timeout)
	defer cancel()
	looked := false
	for _, namespace := range namespaces {
		pods, err := c.pods(ctx, namespace)
		if err != nil {
			return err
		}
		all, err := c.workloads(ctx, namespace)
		if err != nil {
			return err
		}
		var replaced []workload
		owned := map[string]bool{}
		for _, w := range all {
			stale := false
			for name, p := range pods {
				if !w.owns(p) {
					continue
				}
				owned[name] = true
				stale = stale || isStale(w, p) && !optedOut(p)
			}
			if !stale {
				continue
			}
			if !looked {
				c.beforeRoll(ctx, env.Stdout, *r.wait)
				looked = true
			}
			if err := c.restart(ctx, w, time.Now()); err != nil {
				return err
			}
			replaced = append(replaced, w)
		}
		_, _ = fmt.Fprintf(env.Stdout, "Namespace %s is %s: %d workloads get new pods.\n", namespace, word, len(replaced))
		for _, name := range slices.Sorted(maps.Keys(pods)) {
			if p := pods[name]; !owned[name] && isStale(workload{}, p) && !optedOut(p) && p.Status.Phase == corev1.PodRunning {
				_, _ = fmt.Fprintf(env.Stdout, "  pod %s stays as it is until it ends: no workload would replace it\n", name)
			}
		}
		if *r.wait {
			if err := c.await(ctx, env.Stdout, replaced); err != nil {
				return err
			}
		}
	}
	return nil
}

// pods returns a namespace's pods that do not end yet, by name.
func (c *cluster) pods(ctx context.Context, namespace string) (map[string]*corev1.Pod, error) {
	pods := map[string]*corev1.Pod{}
	err := c.eachPod(ctx, namespace, "", func(p *corev1.Pod) { pods[p.Name] = p })
	return pods, err
}

// owns tells whether a pod is one of the workload's.
func (w workload) owns(p *corev1.Pod) bool {
	selector, err := metav1.LabelSelectorAsSelector(w.selector)
	return err == nil && !selector.Empty() && selector.Matches(labels.Set(p.Labels))
}

func hasProxy(p *corev1.Pod) bool { return p.Annotations[names.InjectedAnnotation] != "" }

// optedOut tells whether a pod is outside the mesh because it wants or has to.
func optedOut(p *corev1.Pod) bool {
	return p.Annotations[names.Inject] == names.Disabled || p.Labels[names.Inject] == names.Disabled || p.Spec.HostNetwork
}
