package kube

import (
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// formats has Helm and Kustomize themselves read what `tulle install` applies:
// all three agree on every object.
func formats(t *testing.T) {
	if r := run(t, "", "helm", "lint", "--strict", chart); r.code != 0 {
		t.Errorf("helm lint: %s%s", r.stdout, r.stderr)
	}
	for _, values := range [][]string{
		nil,
		{"control.replicas=3", "autoMesh=team=red", "registry=registry.example.com/mesh", "tag=latest"},
		{"cni.enabled=false", "trustDomain=example.org", "control.resources.limits.memory=1Gi"},
		{"cni.redirect=nftables", "cni.confDir=/var/lib/cni"},
	} {
		var sets []string
		for _, v := range values {
			sets = append(sets, "--set", v)
		}
		printed := must(t, slices.Concat([]string{"install", "--print"}, sets)...)
		ours := objects(t, printed)
		dir := t.TempDir()
		r := run(t, "", "env", slices.Concat([]string{"HOME=" + dir, "helm", "template", "tulle", chart, "--namespace", "tulle-system", "--kube-version", "1.34"}, sets)...)
		if r.code != 0 {
			t.Fatalf("helm template: %s%s", r.stdout, r.stderr)
		}
		helm := objects(t, r.stdout)
		for name, file := range map[string]string{"tulle.yaml": printed, "kustomization.yaml": "resources: [tulle.yaml]\n"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(file), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		equal(t, "kustomize", objects(t, kubectl(t, "kustomize", dir)), ours)
		delete(ours, "Namespace//tulle-system") // Helm makes it itself: --create-namespace
		equal(t, "helm", helm, ours)
	}
}

// objects reads a stream of YAML.
func objects(t *testing.T, stream string) map[string]map[string]any {
	t.Helper()
	all := map[string]map[string]any{}
	for text := range strings.SplitSeq("\n"+stream, "\n---") {
		var o map[string]any
		if err := yaml.Unmarshal([]byte(text), &o); err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		if o == nil {
			continue
		}
		metadata := o["metadata"].(map[string]any)
		namespace, _ := metadata["namespace"].(string)
		all[o["kind"].(string)+"/"+namespace+"/"+metadata["name"].(string)] = o
	}
	return all
}

func equal(t *testing.T, who string, got, want map[string]map[string]any) {
	t.Helper()
	if a, b := slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)); !slices.Equal(a, b) {
		t.Errorf("%s has %v, want %v", who, a, b)
	}
	for name, o := range want {
		if !reflect.DeepEqual(got[name], o) {
			t.Errorf("%s: %s is\n%v\nwant\n%v", who, name, got[name], o)
		}
	}
}
