package kube

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"
)

// decode reads objects from a stream of YAML.
func decode(stream []byte) ([]*unstructured.Unstructured, error) {
	var objects []*unstructured.Unstructured
	for d := utilyaml.NewYAMLOrJSONDecoder(bytes.NewReader(stream), 4096); ; {
		o := &unstructured.Unstructured{}
		err := d.Decode(&o.Object)
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, err
		}
		if len(o.Object) > 0 {
			objects = append(objects, o)
		}
	}
}

// order is which kinds others need to be there before them.
var order = []string{"Namespace", "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "ConfigMap", "Secret", "Service"}

// sortForApply puts first what others need, and the webhook last: from then on
// pods depend on what is behind it.
func sortForApply(objects []*unstructured.Unstructured) {
	rank := func(o *unstructured.Unstructured) int {
		if o.GetKind() == "MutatingWebhookConfiguration" {
			return len(order) + 1
		}
		if i := slices.Index(order, o.GetKind()); i >= 0 {
			return i
		}
		return len(order)
	}
	slices.SortStableFunc(objects, func(a, b *unstructured.Unstructured) int { return rank(a) - rank(b) })
}

// name is how to speak of an object: "deployment tulle-system/tulle-control".
func name(o *unstructured.Unstructured) string {
	n := o.GetName()
	if o.GetNamespace() != "" {
		n = o.GetNamespace() + "/" + n
	}
	return strings.ToLower(o.GetKind()) + " " + n
}

func (c *cluster) resource(o *unstructured.Unstructured) (dynamic.ResourceInterface, error) {
	kind := o.GroupVersionKind()
	mapping, err := c.mapper.RESTMapping(kind.GroupKind(), kind.Version)
	if err != nil {
		return nil, c.explain(err)
	}
	resource := c.dynamic.Resource(mapping.Resource)
	if o.GetNamespace() != "" {
		return resource.Namespace(o.GetNamespace()), nil
	}
	return resource, nil
}

// apply makes an object be as given, in the fields that are given (server-side
// apply). Others that manage the same fields lose them.
func (c *cluster) apply(ctx context.Context, o *unstructured.Unstructured) error {
	resource, err := c.resource(o)
	if err != nil {
		return err
	}
	_, err = resource.Apply(ctx, o.GetName(), o, metav1.ApplyOptions{FieldManager: manager, Force: true})
	if err != nil {
		return fmt.Errorf("apply %s: %w", name(o), c.explain(err))
	}
	return nil
}

// delete removes an object and what belongs to it; none is no error.
func (c *cluster) delete(ctx context.Context, o *unstructured.Unstructured) error {
	resource, err := c.resource(o)
	if err != nil {
		return gone(err)
	}
	policy := metav1.DeletePropagationForeground
	err = resource.Delete(ctx, o.GetName(), metav1.DeleteOptions{PropagationPolicy: &policy})
	if gone(err) != nil {
		return fmt.Errorf("delete %s: %w", name(o), c.explain(err))
	}
	return nil
}

// awaitGone returns when an object is no more.
func (c *cluster) awaitGone(ctx context.Context, o *unstructured.Unstructured) error {
	resource, err := c.resource(o)
	if err != nil {
		return gone(err)
	}
	err = poll(ctx, func() (bool, error) {
		_, err := resource.Get(ctx, o.GetName(), metav1.GetOptions{})
		return apierrors.IsNotFound(err), gone(err)
	})
	if err != nil {
		return fmt.Errorf("wait for the end of %s: %w", name(o), c.explain(err))
	}
	return nil
}

// namespaceObject is a namespace in which the node's agent may run: it needs
// the node's folders and network.
func namespaceObject(name string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1",
		"kind":       "Namespace",
		"metadata": map[string]any{
			"name": name,
			"labels": map[string]any{
				"app.kubernetes.io/part-of":          "tulle",
				"pod-security.kubernetes.io/enforce": "privileged",
			},
		},
	}}
}
