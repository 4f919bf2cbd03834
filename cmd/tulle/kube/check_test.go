package kube

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/tulle-mesh/tulle/cmd/tulle/check"
	"github.com/tulle-mesh/tulle/cmd/tulle/command"
	names "github.com/tulle-mesh/tulle/mesh/cluster"
)

// What somebody has deleted is missed, and what was never wanted is not.
func TestCheckOfWhatIsGone(t *testing.T) {
	control := func(args ...string) *appsv1.Deployment {
		d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: names.Namespace, Name: names.Control}}
		d.Spec.Template.Spec.Containers = []corev1.Container{{Name: "control", Args: args}}
		return d
	}
	agents := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: names.Namespace, Name: names.CNI}}
	agents.Status.DesiredNumberScheduled, agents.Status.UpdatedNumberScheduled, agents.Status.NumberReady = 2, 2, 2
	for _, c := range []struct {
		name    string
		objects []runtime.Object
		verdict check.Verdict
		says    string
	}{
		{"agents", []runtime.Object{control("-cni=true"), agents}, check.OK, "2 of 2 ready"},
		{"no agents, and none wanted", []runtime.Object{control("-log-level=info", "-cni=false")}, check.OK, "init containers"},
		{"no agents, though wanted", []runtime.Object{control("-cni=true")}, check.Failed, "tulle upgrade"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := (&cluster{name: "test", client: fake.NewClientset(c.objects...)}).checkNodes(t.Context())[0]
			if r.Verdict != c.verdict || !strings.Contains(r.Detail+r.Fix, c.says) {
				t.Errorf("%+v, want %s with %q", r, c.verdict, c.says)
			}
		})
	}
	if r := (&cluster{name: "test", client: fake.NewClientset()}).checkIdentity(t.Context())[0]; r.Verdict != check.Failed || !strings.Contains(r.Fix, "rollout restart") {
		t.Errorf("without a secret: %+v", r)
	}
	if r := (&cluster{name: "test", client: fake.NewClientset()}).checkInjector(t.Context())[0]; r.Verdict != check.Failed || !strings.Contains(r.Fix, "tulle upgrade") {
		t.Errorf("without a webhook: %+v", r)
	}
}

// What to type stands on a line of its own, also where an error brings it along.
func TestFailed(t *testing.T) {
	hint := command.WithHint(errors.New("you may not"), "ask for it")
	for _, c := range []struct {
		err         error
		fix         string
		detail, and string
	}{
		{errors.New("broken"), "mend it", "broken", "mend it"},
		{hint, "", "you may not", "ask for it"},
		{fmt.Errorf("look: %w", hint), "", "look: you may not", "ask for it"},
		{hint, "another", "you may not; ask for it", "another"},
	} {
		if r := failed("x", c.err, c.fix)[0]; r.Detail != c.detail || r.Fix != c.and {
			t.Errorf("%v: %+v", c.err, r)
		}
	}
}

// A namespace's policy is told as the control plane takes it.
func TestCheckPolicy(t *testing.T) {
	for policy, want := range map[string]check.Result{
		"none":           {Verdict: check.OK, Detail: "permissive, 0 pods"},
		"":               {Verdict: check.Warning, Detail: `"" is unknown, and taken for strict`},
		names.Permissive: {Verdict: check.OK, Detail: "permissive, 0 pods"},
		names.Strict:     {Verdict: check.OK, Detail: "strict, 0 pods"},
		"strikt":         {Verdict: check.Warning, Detail: `"strikt" is unknown, and taken for strict`},
	} {
		n := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Annotations: map[string]string{names.Policy: policy}}}
		if policy == "none" {
			n.Annotations = nil
		}
		if r := (&cluster{name: "test", client: fake.NewClientset()}).checkNamespace(t.Context(), n); r.Verdict != want.Verdict || !strings.Contains(r.Detail, want.Detail) {
			t.Errorf("%q: %+v, want %+v", policy, r, want)
		}
	}
}

// A pod whose address its proxy takes for one outside the cluster would be called
// in plaintext; where IPv6 comes first, it has public addresses more often.
func TestCheckNetworks(t *testing.T) {
	pod := func(networks string, ips ...string) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web-1", Annotations: map[string]string{names.InjectedAnnotation: "1"}}}
		p.Spec.InitContainers = []corev1.Container{{Name: names.ProxyContainer, Args: []string{"-networks=" + networks}}}
		for _, ip := range ips {
			p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: ip})
		}
		return p
	}
	const private = "10.0.0.0/8,fc00::/7"
	for _, c := range []struct {
		pod  *corev1.Pod
		want string
	}{
		{pod(private, "fd00::1", "10.1.2.3"), ""},
		{pod(private, "2001:db8::1", "10.1.2.3"), "2001:db8::1"},
		{pod(private, "fd00::1", "192.0.2.1"), "192.0.2.1"},
		{pod(private+",2001:db8::/32", "2001:db8::1"), ""},
		{pod("what", "192.0.2.1"), ""}, // another version's, which knows better
		{pod(private), ""},
	} {
		r := (&cluster{name: "test", client: fake.NewClientset(c.pod)}).checkNamespace(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}})
		if found := r.Verdict == check.Warning && strings.Contains(r.Detail+r.Fix, c.want) && strings.Contains(r.Fix, "networks="); found != (c.want != "") {
			t.Errorf("%v: %+v, want %q", c.pod.Status.PodIPs, r, c.want)
		}
	}
}

// A cluster that will do, but without restartable init containers, is told apart
// from newer ones and from those that are too old.
func TestCheckVersionOfCluster(t *testing.T) {
	for version, want := range map[string]check.Verdict{"v1.27.9": check.Failed, "v1.28.3": check.Warning, "v1.29.0-eks-1": check.OK, "v1.34.4": check.OK} {
		target := Target{kubeconfig: answering(t, map[string]string{"/version": `{"gitVersion":"` + version + `"}`})}
		c, err := target.connect(&command.Env{})
		if err != nil {
			t.Fatal(err)
		}
		if r := c.checkAPI(t.Context())[0]; r.Verdict != want || want != check.OK && r.Fix == "" {
			t.Errorf("%s: %+v, want %s", version, r, want)
		}
	}
}
