package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"github.com/tulle-mesh/tulle/cmd/tulle/command"
	names "github.com/tulle-mesh/tulle/mesh/cluster"
)

func uninstall(ctx context.Context, env *command.Env, args []string) error {
	f := command.NewFlags("uninstall [flags]", `
Removes the mesh from the cluster: the plugin from each node, then all objects,
with them the authority's key. Refuses as long as pods have a proxy, which could
not renew its certificate any more.`)
	var t Target
	t.Flags(f)
	force := f.Bool("force", false, "also if pods still have a proxy")
	timeout := f.Duration("timeout", 5*time.Minute, "give up after this `TIME`")
	if err := f.ParseNone(env, args); err != nil {
		return err
	}
	c, err := t.connect(env)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	if !*force {
		if err := c.refuseMeshed(ctx); err != nil {
			return err
		}
	}
	return c.uninstall(ctx, env)
}

// refuseMeshed is an error if pods still need the control plane.
func (c *cluster) refuseMeshed(ctx context.Context) error {
	count := map[string]int{}
	if err := c.eachPod(ctx, "", meshedPods, func(p *corev1.Pod) { count[p.Namespace]++ }); err != nil {
		return err
	}
	if len(count) == 0 {
		return nil
	}
	sum, namespaces := 0, slices.Sorted(maps.Keys(count))
	for _, n := range count {
		sum += n
	}
	return command.WithHint(fmt.Errorf("%d pods still have a proxy, in %s", sum, strings.Join(namespaces, ", ")),
		"first type: tulle unmesh "+strings.Join(namespaces, " "))
}

func (c *cluster) uninstall(ctx context.Context, env *command.Env) error {
	var w wish
	objects, err := w.objects(env.Stdin)
	if err != nil {
		return err
	}
	_, _ = fmt.Fprintf(env.Stdout, "Removing the mesh from cluster %s:\n", c.name)
	slices.Reverse(objects)
	// The webhook first: from here on no pod depends on the mesh.
	for _, o := range objects {
		if o.GetKind() == "MutatingWebhookConfiguration" {
			err = c.delete(ctx, o)
		}
	}
	if err != nil {
		return err
	}
	if err := c.clearNodes(ctx, env); err != nil {
		return err
	}
	if err := c.clearNamespaces(ctx); err != nil {
		return err
	}
	_, _ = fmt.Fprintln(env.Stdout, "  the nodes are clear; the control plane and all objects follow")
	for _, o := range objects {
		if err := c.delete(ctx, o); err != nil {
			return err
		}
	}
	// The roots are in each meshed namespace, and the control plane that keeps
	// them there has to be gone before they can be.
	if err := c.deleteRoots(ctx); err != nil {
		return err
	}
	for _, o := range objects {
		if err := c.awaitGone(ctx, o); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintln(env.Stdout, "The cluster is as it was.")
	return err
}

// clearNodes has each node's agent undo what it did there.
func (c *cluster) clearNodes(ctx context.Context, env *command.Env) error {
	w := workload{kind: "daemonset", namespace: names.Namespace, name: names.CNI}
	if _, err := c.read(ctx, w); err != nil {
		return c.explain(gone(err))
	}
	patch, err := json.Marshal([]map[string]any{
		{"op": "replace", "path": "/spec/template/spec/containers/0/args", "value": []string{"remove"}},
		{"op": "replace", "path": "/spec/template/spec/containers/0/readinessProbe/exec/command", "value": []string{"/tulle-cni", "status", "-removed"}},
	})
	if err != nil {
		return err
	}
	if err := c.patch(ctx, w, types.JSONPatchType, patch); err != nil {
		return err
	}
	return c.await(ctx, env.Stdout, []workload{w})
}

// clearNamespaces takes off what `tulle mesh` put on.
func (c *cluster) clearNamespaces(ctx context.Context) error {
	list, err := c.client.CoreV1().Namespaces().List(ctx, everything)
	if err != nil {
		return c.explain(err)
	}
	for _, n := range list.Items {
		if n.Labels[names.Inject] == "" && n.Annotations[names.Inject] == "" {
			continue
		}
		off := map[string]any{names.Inject: nil}
		if err := c.annotate(ctx, n.Name, map[string]any{names.Inject: nil, names.Policy: nil}, off); err != nil {
			return err
		}
	}
	return nil
}

func (c *cluster) deleteRoots(ctx context.Context) error {
	control := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "apps/v1", "kind": "Deployment",
		"metadata": map[string]any{"name": names.Control, "namespace": names.Namespace},
	}}
	if err := c.awaitGone(ctx, control); err != nil {
		return err
	}
	list, err := c.client.CoreV1().ConfigMaps("").List(ctx, metav1.ListOptions{
		FieldSelector: "metadata.name=" + names.RootsConfigMap, LabelSelector: "app.kubernetes.io/managed-by=" + names.Control,
	})
	if err != nil {
		return c.explain(err)
	}
	for _, m := range list.Items {
		err := c.client.CoreV1().ConfigMaps(m.Namespace).Delete(ctx, m.Name, metav1.DeleteOptions{})
		if gone(err) != nil {
			return c.explain(err)
		}
	}
	return nil
}
