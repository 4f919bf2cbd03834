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
