package kube

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tulle-mesh/tulle/cmd/tulle/command"
)

// cli runs a command of the table.
func cli(t *testing.T, environ []string, stdin string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	env := &command.Env{Stdin: strings.NewReader(stdin), Stdout: &out, Stderr: &errs, Environ: environ}
	for _, c := range Commands() {
		if c.Name == args[0] {
			code = c.Run(context.Background(), env, args[1:])
			return code, out.String(), errs.String()
		}
	}
	t.Fatalf("no command %s", args[0])
	return 0, "", ""
}

func TestPrintIsComplete(t *testing.T) {
	code, out, stderr := cli(t, nil, "", "install", "--print", "--ha")
	if code != 0 {
		t.Fatal(stderr)
	}
	objects, err := decode([]byte(out))
	if err != nil {
		t.Fatal(err)
	}
	if objects[0].GetKind() != "Namespace" || objects[len(objects)-1].GetKind() != "MutatingWebhookConfiguration" {
		t.Errorf("the first is %s, the last %s", name(objects[0]), name(objects[len(objects)-1]))
	}
	seen := map[string]bool{}
	for _, o := range objects {
		if seen[name(o)] {
			t.Errorf("%s is there twice", name(o))
		}
		seen[name(o)] = true
	}
	for _, want := range []string{"deployment tulle-system/tulle-control", "poddisruptionbudget tulle-system/tulle-control", "daemonset tulle-system/tulle-cni"} {
		if !seen[want] {
			t.Errorf("no %s", want)
		}
	}
}

func TestBadInput(t *testing.T) {
	nowhere := filepath.Join(t.TempDir(), "config")
	old := oldCluster(t)
	for _, c := range []struct {
		name    string
		environ []string
		args    []string
		code    int
		want    string
	}{
		{"no cluster", []string{"HOME=/nonexistent"}, []string{"install"}, 1, "no Kubernetes cluster"},
		{"no such file", nil, []string{"install", "--kubeconfig", nowhere}, 1, "no such file"},
		{"too old", []string{"KUBECONFIG=" + old}, []string{"install"}, 1, "runs Kubernetes 1.24.0, Tulle needs 1.29.0 or newer"},
		{"a value that is not", nil, []string{"install", "--print", "--set", "frob=1"}, 2, "no such value: frob"},
		{"a selector that is none", nil, []string{"install", "--print", "--auto-mesh", "a in"}, 2, "--auto-mesh"},
		{"operands", nil, []string{"install", "now"}, 2, "no operands"},
		{"mesh what", nil, []string{"mesh"}, 2, "which namespace?"},
		{"unmesh what", nil, []string{"unmesh"}, 2, "which namespace?"},
		{"mesh the mesh", []string{"KUBECONFIG=" + old}, []string{"mesh", "kube-system"}, 2, "cannot be in it"},
		{"inject what", nil, []string{"inject"}, 2, "which file?"},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, _, stderr := cli(t, c.environ, "", c.args...)
			if code != c.code || !strings.Contains(stderr, c.want) || strings.Count(stderr, "\n") != 1 {
				t.Errorf("exit %d: %s\nwant %d and one line with %q", code, stderr, c.code, c.want)
			}
		})
	}
}

// oldCluster returns the kubeconfig of an API server that knows little but its
// version.
func oldCluster(t *testing.T) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if r.URL.Path != "/version" {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		_, _ = w.Write([]byte(`{"gitVersion":"v1.24.0"}`))
	}))
	t.Cleanup(server.Close)
	config := filepath.Join(t.TempDir(), "config")
	content := `{"apiVersion":"v1","kind":"Config","clusters":[{"name":"old","cluster":{"server":"` + server.URL + `"}}],
"contexts":[{"name":"old","context":{"cluster":"old"}}],"current-context":"old"}`
	if err := os.WriteFile(config, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return config
}

func TestInject(t *testing.T) {
	const pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  containers:\n  - {name: app, image: b}\n"
	code, out, stderr := cli(t, nil, pod, "inject", "-f", "-")
	if code != 0 || !strings.Contains(out, "tulle-proxy") {
		t.Errorf("exit %d\n%s%s", code, out, stderr)
	}
	code, _, stderr = cli(t, nil, "kind: [", "inject", "-f", "-")
	if code != 1 || !strings.Contains(stderr, "not valid YAML") {
		t.Errorf("exit %d\n%s", code, stderr)
	}
}
