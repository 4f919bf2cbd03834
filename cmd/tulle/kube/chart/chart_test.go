package chart

import (
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
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
