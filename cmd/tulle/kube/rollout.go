package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/tulle-mesh/tulle/cmd/tulle/command"
)

// workload is a Deployment, StatefulSet or DaemonSet, as far as its rollout goes.
type workload struct {
	kind, namespace, name string
	selector              *metav1.LabelSelector
	template              *corev1.PodTemplateSpec

	wanted, updated, ready int32
	seen                   bool // the controller has read the newest version
	onDelete               bool // its pods are replaced only when somebody deletes them
}

func (w workload) String() string { return w.kind + "/" + w.name }

// done tells whether all pods are of the newest version and ready.
func (w workload) done() bool {
	return w.seen && (w.onDelete || w.updated >= w.wanted) && w.ready >= w.wanted
}

func replicas(n *int32) int32 {
	if n == nil {
		return 1
	}
	return *n
}

func fromDeployment(d *appsv1.Deployment) workload {
	w := workload{
		kind: "deployment", namespace: d.Namespace, name: d.Name, selector: d.Spec.Selector, template: &d.Spec.Template,
		wanted: replicas(d.Spec.Replicas), updated: d.Status.UpdatedReplicas, ready: d.Status.AvailableReplicas,
		seen: d.Status.ObservedGeneration >= d.Generation,
	}
	if d.Status.Replicas > w.updated { // old ones still end
		w.ready = min(w.ready, w.wanted-1)
	}
	return w
}

func fromStatefulSet(s *appsv1.StatefulSet) workload {
	return workload{
		kind: "statefulset", namespace: s.Namespace, name: s.Name, selector: s.Spec.Selector, template: &s.Spec.Template,
		wanted: replicas(s.Spec.Replicas), updated: s.Status.UpdatedReplicas, ready: s.Status.ReadyReplicas,
		seen:     s.Status.ObservedGeneration >= s.Generation,
		onDelete: s.Spec.UpdateStrategy.Type == appsv1.OnDeleteStatefulSetStrategyType,
	}
}

func fromDaemonSet(d *appsv1.DaemonSet) workload {
	return workload{
		kind: "daemonset", namespace: d.Namespace, name: d.Name, selector: d.Spec.Selector, template: &d.Spec.Template,
		wanted: d.Status.DesiredNumberScheduled, updated: d.Status.UpdatedNumberScheduled, ready: d.Status.NumberReady,
		seen:     d.Status.ObservedGeneration >= d.Generation && d.Status.DesiredNumberScheduled > 0,
		onDelete: d.Spec.UpdateStrategy.Type == appsv1.OnDeleteDaemonSetStrategyType,
	}
}

// workloads lists those of a namespace.
func (c *cluster) workloads(ctx context.Context, namespace string) ([]workload, error) {
	var all []workload
	deployments, err := c.client.AppsV1().Deployments(namespace).List(ctx, everything)
	if err != nil {
		return nil, c.explain(err)
	}
	for i := range deployments.Items {
		all = append(all, fromDeployment(&deployments.Items[i]))
	}
	sets, err := c.client.AppsV1().StatefulSets(namespace).List(ctx, everything)
	if err != nil {
		return nil, c.explain(err)
	}
	for i := range sets.Items {
		all = append(all, fromStatefulSet(&sets.Items[i]))
	}
	daemons, err := c.client.AppsV1().DaemonSets(namespace).List(ctx, everything)
	if err != nil {
		return nil, c.explain(err)
	}
	for i := range daemons.Items {
		all = append(all, fromDaemonSet(&daemons.Items[i]))
	}
	return all, nil
}

// read returns a workload as it is now.
func (c *cluster) read(ctx context.Context, w workload) (workload, error) {
	switch w.kind {
	case "deployment":
		d, err := c.client.AppsV1().Deployments(w.namespace).Get(ctx, w.name, metav1.GetOptions{})
		return fromDeployment(d), err
	case "statefulset":
		s, err := c.client.AppsV1().StatefulSets(w.namespace).Get(ctx, w.name, metav1.GetOptions{})
		return fromStatefulSet(s), err
	default:
		d, err := c.client.AppsV1().DaemonSets(w.namespace).Get(ctx, w.name, metav1.GetOptions{})
		return fromDaemonSet(d), err
	}
}

func (c *cluster) patch(ctx context.Context, w workload, kind types.PatchType, patch []byte) (err error) {
	options := metav1.PatchOptions{FieldManager: manager}
	switch w.kind {
	case "deployment":
		_, err = c.client.AppsV1().Deployments(w.namespace).Patch(ctx, w.name, kind, patch, options)
	case "statefulset":
		_, err = c.client.AppsV1().StatefulSets(w.namespace).Patch(ctx, w.name, kind, patch, options)
	default:
		_, err = c.client.AppsV1().DaemonSets(w.namespace).Patch(ctx, w.name, kind, patch, options)
	}
	return c.explain(err)
}

// restart has a workload's pods replaced, as `kubectl rollout restart` does.
func (c *cluster) restart(ctx context.Context, w workload, now time.Time) error {
	patch := fmt.Sprintf(`{"spec":{"template":{"metadata":{"annotations":{"kubectl.kubernetes.io/restartedAt":%q}}}}}`, now.UTC().Format(time.RFC3339))
	return c.patch(ctx, w, types.StrategicMergePatchType, []byte(patch))
}

// await waits until workloads are rolled out, and prints each step.
func (c *cluster) await(ctx context.Context, out io.Writer, all []workload) error {
	printed := map[string]string{}
	waiting := slices.Clone(all)
	err := poll(ctx, func() (bool, error) {
		var still []workload
		for _, w := range waiting {
			now, err := c.read(ctx, w)
			if apierrors.IsNotFound(err) {
				continue
			}
			if err != nil {
				return false, c.explain(err)
			}
			if line := fmt.Sprintf("  %s: %d of %d ready", w, now.progress(), now.wanted); printed[w.String()] != line && now.seen {
				printed[w.String()] = line
				_, _ = fmt.Fprintln(out, line)
			}
			if !now.done() {
				still = append(still, now)
			}
		}
		waiting = still
		return len(waiting) == 0, nil
	})
	if err == nil || !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return c.stuck(waiting)
}

// progress is how many pods are new and ready, as far as the counters tell.
func (w workload) progress() int32 {
	if w.onDelete {
		return w.ready
	}
	return min(w.updated, w.ready)
}

// stuck says why a workload does not get ready.
func (c *cluster) stuck(waiting []workload) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	w := waiting[0]
	reason := c.trouble(ctx, w)
	if reason == "" {
		reason = "its pods are not ready in time"
	}
	return command.WithHint(fmt.Errorf("%s in namespace %s: %s", w, w.namespace, reason),
		fmt.Sprintf("look with: kubectl -n %s describe %s", w.namespace, w))
}

// trouble finds what the cluster says about pods that do not run.
func (c *cluster) trouble(ctx context.Context, w workload) string {
	pods, err := c.client.CoreV1().Pods(w.namespace).List(ctx, metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(w.selector)})
	if err != nil {
		return ""
	}
	for i := range pods.Items {
		if reason := podTrouble(&pods.Items[i]); reason != "" {
			return reason
		}
	}
	events, err := c.client.CoreV1().Events(w.namespace).List(ctx, metav1.ListOptions{FieldSelector: "type=Warning"})
	if err != nil {
		return ""
	}
	last := ""
	for _, e := range events.Items { // of a ReplicaSet or a pod, both named after the workload
		if strings.HasPrefix(e.InvolvedObject.Name, w.name) {
			last = e.Message
		}
	}
	return last
}

// podTrouble tells why a pod does not run, "" if that is not known. Why a
// container ended says more than that it is not started again yet.
func podTrouble(p *corev1.Pod) string {
	for _, s := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		if s.State.Waiting == nil {
			continue
		}
		reason := s.State.Waiting.Message
		if last := s.LastTerminationState.Terminated; last != nil && strings.TrimSpace(last.Message) != "" {
			reason = strings.TrimSpace(last.Message)
		}
		if reason != "" {
			return fmt.Sprintf("pod %s, container %s: %s", p.Name, s.Name, reason)
		}
	}
	for _, condition := range p.Status.Conditions {
		if condition.Type == corev1.PodScheduled && condition.Status == corev1.ConditionFalse {
			return fmt.Sprintf("pod %s: %s", p.Name, condition.Message)
		}
	}
	return ""
}
