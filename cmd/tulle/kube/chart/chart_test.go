package chart

import (
	"slices"
	"strings"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"

	"github.com/tulle-mesh/tulle/mesh/cluster"
)

func defaults(t *testing.T) Values {
	t.Helper()
	v, err := Defaults()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// render returns the rendered objects by kind and name.
func render(t *testing.T, v Values) map[string]map[string]any {
	t.Helper()
	out, err := Render("here", v)
	if err != nil {
		t.Fatal(err)
	}
	objects := map[string]map[string]any{}
	for document := range strings.SplitSeq("\n"+string(out), "\n---\n") {
		var o map[string]any
		if err := yaml.UnmarshalStrict([]byte(document), &o); err != nil {
			t.Fatalf("%v\n%s", err, document)
		}
		if o == nil {
			continue
		}
		name := o["metadata"].(map[string]any)["name"].(string)
		objects[o["kind"].(string)+" "+name] = o
	}
	return objects
}

func TestRender(t *testing.T) {
	for _, c := range []struct {
		name          string
		set           []string
		there, absent []string
	}{
		{name: "defaults", there: []string{"Deployment tulle-control", "DaemonSet tulle-cni", "Service tulle-control", "MutatingWebhookConfiguration tulle-injector"},
			absent: []string{"PodDisruptionBudget tulle-control"}},
		{name: "three replicas", set: []string{"control.replicas=3"}, there: []string{"PodDisruptionBudget tulle-control"}},
		{name: "no CNI", set: []string{"cni.enabled=false"}, there: []string{"Deployment tulle-control"}, absent: []string{"DaemonSet tulle-cni", "ServiceAccount tulle-cni"}},
		{name: "odd text", set: []string{`autoMesh=team in ("a",b): #x`, "registry=host:5000/a", "tag=1"}, there: []string{"Deployment tulle-control"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := defaults(t)
			for _, s := range c.set {
				if err := v.Set(s); err != nil {
					t.Fatal(err)
				}
			}
			objects := render(t, v)
			for _, name := range c.there {
				if objects[name] == nil {
					t.Errorf("no %s", name)
				}
			}
			for _, name := range c.absent {
				if objects[name] != nil {
					t.Errorf("%s is there", name)
				}
			}
			for name, o := range objects {
				labels, _ := o["metadata"].(map[string]any)["labels"].(map[string]any)
				if labels["app.kubernetes.io/part-of"] != "tulle" {
					t.Errorf("%s is not marked as ours", name)
				}
			}
		})
	}
}

// The webhook hears of pods in namespaces of the mesh only, and no pod there
// starts without its answer. It has no caBundle: the control plane writes that
// field, so nobody who applies the chart again, or compares, sees a difference.
func TestWebhook(t *testing.T) {
	var config admissionregistrationv1.MutatingWebhookConfiguration
	raw, err := yaml.Marshal(render(t, defaults(t))["MutatingWebhookConfiguration tulle-injector"])
	if err == nil {
		err = yaml.UnmarshalStrict(raw, &config)
	}
	if err != nil || len(config.Webhooks) != 1 {
		t.Fatalf("%v: %d webhooks", err, len(config.Webhooks))
	}
	w := config.Webhooks[0]
	if w.FailurePolicy == nil || *w.FailurePolicy != admissionregistrationv1.Fail || w.ClientConfig.CABundle != nil || w.ClientConfig.Service == nil {
		t.Errorf("failurePolicy %v, caBundle %q, service %v", w.FailurePolicy, w.ClientConfig.CABundle, w.ClientConfig.Service)
	}
	if r := w.Rules; len(r) != 1 || !slices.Equal(r[0].Resources, []string{"pods"}) || !slices.Equal(r[0].Operations, []admissionregistrationv1.OperationType{admissionregistrationv1.Create}) {
		t.Errorf("rules %+v", r)
	}
	selects := func(s *metav1.LabelSelector, of map[string]string) bool {
		selector, err := metav1.LabelSelectorAsSelector(s)
		if err != nil {
			t.Fatal(err)
		}
		return selector.Matches(labels.Set(of))
	}
	for name, want := range map[string]bool{"shop": true, "kube-system": false, "here": false} {
		of := map[string]string{"kubernetes.io/metadata.name": name, cluster.Inject: cluster.Enabled}
		if got := selects(w.NamespaceSelector, of); got != want {
			t.Errorf("namespace %s, enabled: %t", name, got)
		}
		delete(of, cluster.Inject)
		if selects(w.NamespaceSelector, of) {
			t.Errorf("namespace %s is selected without being asked for", name)
		}
	}
	if selects(w.ObjectSelector, map[string]string{cluster.Inject: cluster.Disabled}) || !selects(w.ObjectSelector, nil) {
		t.Errorf("objectSelector %v", w.ObjectSelector)
	}
	if len(w.MatchConditions) != 2 {
		t.Errorf("matchConditions %v", w.MatchConditions)
	}
}

func TestSet(t *testing.T) {
	for _, c := range []struct{ set, err string }{
		{"control.replicas=3", ""},
		{"control.resources.limits.cpu=1", ""},
		{"tag=1.0", ""},
		{"cni.enabled=false", ""},
		{"frob=1", "no such value: frob"},
		{"control.frob=1", "no such value: control.frob"},
		{"control=1", "of another kind"},
		{"control.replicas=many", "of another kind"},
		{"cni.enabled=maybe", "of another kind"},
		{"nothing", "must be KEY=VALUE"},
	} {
		err := defaults(t).Set(c.set)
		if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("Set(%q): %v, want %q", c.set, err, c.err)
		}
	}
}
