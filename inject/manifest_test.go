package inject

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

const stream = `# the shop
apiVersion: v1
kind: Service
metadata: {name: web}   # odd   spacing
spec:
    ports: [{port: 80}]
---
apiVersion: apps/v1
kind: Deployment # the web
metadata:
  name: web
spec:
  replicas: 2 # two
  template:
    metadata:
      labels: {app: web}
    spec:
      # the application
      containers:
        - name: app
          image: "app:1" # pinned
---
# nothing
---
apiVersion: v1
kind: ConfigMap
metadata: {name: text}
data:
  document: |
    --- not a separator
    kind: Deployment
--- # with a comment
apiVersion: batch/v1
kind: CronJob
metadata: {name: report}
spec:
  schedule: "* * * * *"
  jobTemplate:
    spec:
      template:
        spec: {restartPolicy: Never, containers: [{name: r, image: r}]}
`

func TestManifest(t *testing.T) {
	out, done, err := testConfig().Manifest([]byte(stream))
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(done); got != "[{Deployment web true  []} {CronJob report true  []}]" {
		t.Errorf("%s", got)
	}
	text := string(out)
	for _, want := range []string{
		"metadata: {name: web}   # odd   spacing\nspec:\n    ports: [{port: 80}]\n---\n", // untouched
		"kind: Deployment # the web", "replicas: 2 # two", "# the application", `image: "app:1" # pinned`,
		"---\n# nothing\n---\n", "    --- not a separator\n", "-service=web.$(POD_NAMESPACE)", "-service=report.$(POD_NAMESPACE)",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("lacks %q:\n%s", want, text)
		}
	}
	for _, document := range splitDocuments(out) {
		var object map[string]any
		if err := yaml.Unmarshal(document, &object); err != nil {
			t.Errorf("%v\n%s", err, document)
		}
	}
	again, done, err := testConfig().Manifest(out)
	if err != nil || !bytes.Equal(again, out) {
		t.Errorf("a second time: %v, %v", done, err)
	}
}

func TestManifestKinds(t *testing.T) {
	pod := `{metadata: {labels: {a: b}}, spec: {containers: [{name: app}]}}`
	for _, tt := range []struct {
		name, in string
		changed  bool
		err      string
	}{
		{"pod", "apiVersion: v1\nkind: Pod\n" + strings.Trim(pod, "{}")[:0] + "metadata: {name: x}\nspec: {containers: [{name: app}]}\n", true, ""},
		{"daemon set", "apiVersion: apps/v1\nkind: DaemonSet\nmetadata: {name: x}\nspec: {template: " + pod + "}\n", true, ""},
		{"stateful set", "apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {name: x}\nspec: {template: " + pod + "}\n", true, ""},
		{"job", "apiVersion: batch/v1\nkind: Job\nmetadata: {name: x}\nspec: {template: " + pod + "}\n", true, ""},
		{"list", "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Service}\n- {apiVersion: apps/v1, kind: DaemonSet, metadata: {name: x}, spec: {template: " + pod + "}}\n", true, ""},
		{"JSON", `{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"}, "spec": {"template": {"spec": {"containers": [{"name": "app"}]}}}}`, true, ""},
		{"somebody else's Deployment", "apiVersion: example.com/v1\nkind: Deployment\nspec: {template: " + pod + "}\n", false, ""},
		{"opted out", "apiVersion: v1\nkind: Pod\nmetadata: {annotations: {tulle.dev/inject: disabled}}\nspec: {containers: [{name: app}]}\n", false, ""},
		{"empty", "", false, ""},
		{"no template", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n", false, "Deployment x: it has no template"},
		{"bad annotation", "---\napiVersion: v1\nkind: Pod\nmetadata: {name: x, annotations: {tulle.dev/opaque-ports: \"70000\"}}\nspec: {containers: [{name: app}]}\n", false, "Pod x: annotation tulle.dev/opaque-ports"},
		{"bad YAML", "a: b: c\n", false, "document 1: not valid YAML"},
		{"anchors elsewhere", "x: &x 1\napiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {containers: [{name: app}], priority: *x}\n", true, ""},
		{"a shared list", "x: &x [{name: data, emptyDir: {}}]\napiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {containers: [{name: app}], volumes: *x}\n", false, "anchor"},
	} {
		out, done, err := testConfig().Manifest([]byte(tt.in))
		switch {
		case tt.err != "":
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%s: %v, want %s", tt.name, err, tt.err)
			}
		case err != nil || (string(out) != tt.in) != tt.changed:
			t.Errorf("%s: %v, %v\n%s", tt.name, done, err, out)
		default:
			var object map[string]any
			if err := yaml.Unmarshal(out, &object); err != nil {
				t.Errorf("%s: %v\n%s", tt.name, err, out)
			}
		}
	}
}

// The patch on YAML and the patch on JSON are one.
func TestManifestIsThePatch(t *testing.T) {
	in := "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\nspec:\n  containers:\n  - name: app\n    livenessProbe:\n      tcpSocket: {port: 80}\n"
	out, _, err := testConfig().Manifest([]byte(in))
	if err != nil {
		t.Fatal(err)
	}
	object := podJSON(t, in)
	result, err := testConfig().Patch(object, Origin{})
	if err != nil {
		t.Fatal(err)
	}
	patched, _ := applied(t, object, result.Patch)
	want, err := yaml.JSONToYAML(patched)
	if err != nil {
		t.Fatal(err)
	}
	var a, b any
	if yaml.Unmarshal(out, &a) != nil || yaml.Unmarshal(want, &b) != nil || fmt.Sprint(a) != fmt.Sprint(b) {
		t.Errorf("%s\nwant\n%s", out, want)
	}
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte(stream))
	config := testConfig()
	f.Fuzz(func(t *testing.T, in []byte) {
		out, _, err := config.Manifest(in)
		if err != nil {
			return
		}
		again, _, err := config.Manifest(out)
		if err != nil || !bytes.Equal(again, out) {
			t.Errorf("not idempotent: %v\n%q\n%q", err, out, again)
		}
	})
}
