package kube

import (
	"context"
	"fmt"
	"slices"
	"strings"

	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/tulle-mesh/tulle/cmd/tulle/command"
)

func lower(kind string) string { return strings.ToLower(kind) }

// missingRights names all that the user would need and does not have to apply
// objects, before the first of them is applied.
func (c *cluster) missingRights(ctx context.Context, objects []*unstructured.Unstructured) error {
	var missing []string
	for _, o := range objects {
		kind := o.GroupVersionKind()
		mapping, err := c.mapper.RESTMapping(kind.GroupKind(), kind.Version)
		if err != nil {
			return c.explain(err)
		}
		attributes := authorizationv1.ResourceAttributes{Group: mapping.Resource.Group, Resource: mapping.Resource.Resource, Namespace: o.GetNamespace()}
		var verbs []string
		for _, attributes.Verb = range []string{"create", "patch"} {
			may, err := c.may(ctx, &attributes)
			if err != nil {
				return err
			}
			if !may {
				verbs = append(verbs, attributes.Verb)
			}
		}
		if right := spell(verbs, &attributes); len(verbs) > 0 && !slices.Contains(missing, right) {
			missing = append(missing, right)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return command.WithHint(fmt.Errorf("you have too few rights in cluster %s; missing: %s", c.name, strings.Join(missing, ", ")),
		"ask for them, or use a context that has them (--context NAME)")
}

// may asks the API server whether we may do something.
func (c *cluster) may(ctx context.Context, attributes *authorizationv1.ResourceAttributes) (bool, error) {
	review, err := c.client.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, &authorizationv1.SelfSubjectAccessReview{
		Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: attributes},
	}, metav1.CreateOptions{})
	if err != nil {
		return false, c.explain(err)
	}
	return review.Status.Allowed, nil
}

// spell writes rights as kubectl does: create and patch deployments.apps in tulle-system.
func spell(verbs []string, a *authorizationv1.ResourceAttributes) string {
	s := strings.Join(verbs, " and ") + " " + a.Resource
	if a.Group != "" {
		s += "." + a.Group
	}
	if a.Namespace != "" {
		s += " in " + a.Namespace
	}
	return s
}
