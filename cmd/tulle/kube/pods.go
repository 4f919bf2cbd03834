package kube

import (
	"context"
	"errors"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	names "github.com/tulle-mesh/tulle/mesh/cluster"
)

const (
	// podPage is how many pods are asked for at once: some megabytes, whatever the
	// size of the cluster.
	podPage = 500
	// pageTimeout bounds each page.
	pageTimeout = 15 * time.Second
	// meshedPods selects those that were admitted with a proxy.
	meshedPods = names.MeshedLabel + "=true"
)

// eachPod calls do with every pod of a namespace ("": of all) that a label selector
// ("": all) matches and that is to go on. It holds one page of them at a time, and
// do may keep what it is given.
func (c *cluster) eachPod(ctx context.Context, namespace, selector string, do func(*corev1.Pod)) error {
	options := metav1.ListOptions{LabelSelector: selector, Limit: podPage}
	for {
		page, err := c.podPage(ctx, namespace, options)
		if next := goOnAt(err); next != "" {
			options.Continue = next
			continue
		}
		if err != nil {
			return c.explain(err)
		}
		for i := range page.Items {
			if p := &page.Items[i]; p.DeletionTimestamp == nil {
				do(p)
			}
		}
		if options.Continue = page.Continue; options.Continue == "" {
			return nil
		}
	}
}

func (c *cluster) podPage(ctx context.Context, namespace string, options metav1.ListOptions) (*corev1.PodList, error) {
	ctx, cancel := context.WithTimeout(ctx, pageTimeout)
	defer cancel()
	return c.client.CoreV1().Pods(namespace).List(ctx, options)
}

// goOnAt is where to go on in a list whose first pages the API server has
// forgotten, as it does after some minutes: what comes then is newer than they
// were, which does no harm here. "": the list has another error, or none.
func goOnAt(err error) string {
	var status apierrors.APIStatus
	if apierrors.IsResourceExpired(err) && errors.As(err, &status) {
		return status.Status().Continue
	}
	return ""
}
