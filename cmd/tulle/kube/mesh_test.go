package kube

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	ktesting "k8s.io/client-go/testing"

	"github.com/tulle-mesh/tulle/cmd/tulle/command"
	names "github.com/tulle-mesh/tulle/mesh/cluster"
)

// Which workloads get new pods: those with a pod that lacks the proxy, or has
// that of another version; on demand all.
func TestStalePods(t *testing.T) {
	owned := func(name, version string, change func(*appsv1.Deployment, *corev1.Pod)) (*appsv1.Deployment, *corev1.Pod) {
		labels := map[string]string{"app": name}
		d := &appsv1.Deployment{
			ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "shop"},
			Spec:       appsv1.DeploymentSpec{Selector: &metav1.LabelSelector{MatchLabels: labels}},
		}
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name + "-1", Namespace: "shop", Labels: labels}}
		if version != "" {
			p.Annotations = map[string]string{names.InjectedAnnotation: version}
		}
		if change != nil {
			change(d, p)
		}
		return d, p
	}
	client := fake.NewClientset(
		&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "alone", Namespace: "shop"}, Status: corev1.PodStatus{Phase: corev1.PodRunning}},
	)
	for _, w := range []struct {
		name, version string
		change        func(*appsv1.Deployment, *corev1.Pod)
	}{
		{"bare", "", nil},
		{"current", "2", nil},
		{"older", "1", nil},
		{"by-hand", "1", func(d *appsv1.Deployment, _ *corev1.Pod) {
			d.Spec.Template.Annotations = map[string]string{names.InjectedAnnotation: "1"}
		}},
		{"out", "", func(_ *appsv1.Deployment, p *corev1.Pod) { p.Labels[names.Inject] = names.Disabled }},
		{"host", "", func(_ *appsv1.Deployment, p *corev1.Pod) { p.Spec.HostNetwork = true }},
	} {
		d, p := owned(w.name, w.version, w.change)
		if err := client.Tracker().Add(d); err != nil {
			t.Fatal(err)
		}
		if err := client.Tracker().Add(p); err != nil {
			t.Fatal(err)
		}
	}
	c := &cluster{name: "test", client: client}
	wait, timeout := false, time.Minute
	for _, tt := range []struct {
		name    string
		stale   func(workload, *corev1.Pod) bool
		want    string
		mention string
	}{
		{"mesh", staleForMesh("2", nil), "bare older", "pod alone stays as it is"},
		{"mesh, all of them", staleForMesh("2", []string{"shop"}), "bare by-hand current older", "4 workloads get new pods"},
		{"mesh, all of another", staleForMesh("2", []string{"other"}), "bare older", "2 workloads"},
		{"unmesh", func(_ workload, p *corev1.Pod) bool { return hasProxy(p) }, "by-hand current older", "3 workloads"},
	} {
		client.ClearActions()
		var out bytes.Buffer
		if err := c.roll(t.Context(), &command.Env{Stdout: &out}, rolling{wait: &wait, timeout: &timeout}, []string{"shop"}, tt.stale, "meshed"); err != nil {
			t.Fatal(err)
		}
		var restarted []string
		for _, a := range client.Actions() {
			if p, ok := a.(ktesting.PatchAction); ok {
				restarted = append(restarted, p.GetName())
			}
		}
		slices.Sort(restarted)
		if got := strings.Join(restarted, " "); got != tt.want || !strings.Contains(out.String(), tt.mention) {
			t.Errorf("%s: %s, want %s\n%s", tt.name, got, tt.want, &out)
		}
	}
}
