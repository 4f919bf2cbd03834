package kube

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// rights compares what the control plane may do with what it did: in the audit
// log of the API server there is no refusal, and nothing that it may do is
// missing there.
func rights(t *testing.T) {
	used := usedRights(t)
	for _, kind := range [][]string{{"clusterrole", "tulle-control"}, {"-n", "tulle-system", "role", "tulle-control"}} {
		role := decode[struct {
			Rules []struct{ APIGroups, Resources, Verbs []string }
		}](t, kubectl(t, slices.Concat([]string{"get"}, kind, []string{"-o", "json"})...))
		for _, rule := range role.Rules {
			for _, resource := range rule.Resources {
				for _, verb := range rule.Verbs {
					right := verb + " " + resource
					// A server-side apply is audited as what it is, a patch; making an
					// object by it takes the right to create one.
					if !used[right] && right != "create configmaps" {
						t.Errorf("the control plane may %s, and never did; it did %v", right, slices.Sorted(maps.Keys(used)))
					}
				}
			}
		}
	}
}

// usedRights reads the audit log.
func usedRights(t *testing.T) map[string]bool {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(state, "audit.log"))
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	for line := range strings.Lines(string(content)) {
		var entry struct {
			Verb        string
			RequestURI  string
			ObjectRef   struct{ Resource string }
			Annotations map[string]string
		}
		if !strings.HasSuffix(line, "\n") {
			continue // being written
		}
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Fatalf("%v\n%s", err, line)
		}
		if entry.ObjectRef.Resource == "" {
			continue // /version and the like, which everybody may ask for
		}
		if entry.Annotations["authorization.k8s.io/decision"] == "forbid" {
			t.Errorf("refused to the control plane: %s %s: %s", entry.Verb, entry.RequestURI, entry.Annotations["authorization.k8s.io/reason"])
		}
		used[entry.Verb+" "+entry.ObjectRef.Resource] = true
	}
	return used
}
