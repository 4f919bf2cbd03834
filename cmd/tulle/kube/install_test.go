package kube

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/tulle-mesh/tulle/cmd/tulle/check"
	"github.com/tulle-mesh/tulle/cmd/tulle/command"
	"github.com/tulle-mesh/tulle/cmd/tulle/kube/chart"
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
	old := answering(t, map[string]string{"/version": `{"gitVersion":"v1.24.0"}`})
	for _, c := range []struct {
		name    string
		environ []string
		args    []string
		code    int
		want    string
	}{
		{"no cluster", []string{"HOME=/nonexistent"}, []string{"install"}, 1, "no Kubernetes cluster"},
		{"KUBECONFIG leads nowhere", []string{"KUBECONFIG=" + nowhere}, []string{"install"}, 1, "KUBECONFIG=" + nowhere + " leads to none"},
		{"no such file", nil, []string{"install", "--kubeconfig", nowhere}, 1, "no such file"},
		{"too old", []string{"KUBECONFIG=" + old}, []string{"install"}, 1, "runs Kubernetes 1.24.0, Tulle needs 1.28.0 or newer"},
		{"a value that is not", nil, []string{"install", "--print", "--set", "frob=1"}, 2, "no such value: frob"},
		{"a selector that is none", nil, []string{"install", "--print", "--auto-mesh", "a in"}, 2, "--auto-mesh"},
		{"networks that are none", nil, []string{"install", "--print", "--set", "networks=10.0.0.0"}, 2, "networks: "},
		{"a trust domain that is none", nil, []string{"install", "--print", "--set", "trustDomain=a b"}, 2, "trust domain"},
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

// answering returns the kubeconfig of an API server that has nothing but these
// answers, by path.
func answering(t *testing.T, answers map[string]string) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		answer, ok := answers[r.URL.Path]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		_, _ = w.Write([]byte(answer))
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

// An upgrade keeps to what was set, and does nothing where that is not known.
func TestUpgradeOfTheUnknown(t *testing.T) {
	deployment := func(annotations string) map[string]string {
		return map[string]string{"/version": `{"gitVersion":"v1.34.0"}`, "/apis/apps/v1/namespaces/tulle-system/deployments/tulle-control": `{"apiVersion":"apps/v1","kind":"Deployment",
"metadata":{"name":"tulle-control","namespace":"tulle-system","labels":{"app.kubernetes.io/version":"0.0.1"},"annotations":{` + annotations + `}}}`}
	}
	const refusal = "nothing tells with which values Tulle 0.0.1 was installed in cluster old"
	for _, c := range []struct {
		annotations string
		args        []string
		refused     bool
	}{
		{"", nil, true},
		{"", []string{"-f", "/dev/null"}, false},
		{"", []string{"--ha"}, false},
		{`"tulle.dev/values":"{}"`, nil, false},
	} {
		_, _, stderr := cli(t, nil, "", append([]string{"upgrade", "--kubeconfig", answering(t, deployment(c.annotations))}, c.args...)...)
		if strings.Contains(stderr, refusal) != c.refused {
			t.Errorf("annotations %q, flags %v: refused is to be %t\n%s", c.annotations, c.args, c.refused, stderr)
		}
	}
}

func TestInject(t *testing.T) {
	const pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  containers:\n  - {name: app, image: b}\n"
	code, out, stderr := cli(t, nil, pod, "inject", "-f", "-")
	if code != 0 || !strings.Contains(out, "tulle-proxy") {
		t.Errorf("exit %d\n%s%s", code, out, stderr)
	}
	code, out, stderr = cli(t, nil, pod, "inject", "-f", "-", "--native-sidecar=false")
	if code != 0 || !strings.Contains(out, "tulle-proxy") || strings.Contains(out, "initContainers") {
		t.Errorf("for an old cluster: exit %d\n%s%s", code, out, stderr)
	}
	code, out, stderr = cli(t, nil, "kind: ConfigMap\n", "inject", "-f", "-")
	if code != 0 || out != "kind: ConfigMap\n" || !strings.Contains(stderr, "has no pods") {
		t.Errorf("what has no pods: exit %d\n%s%s", code, out, stderr)
	}
	code, _, stderr = cli(t, nil, "kind: [", "inject", "-f", "-")
	if code != 1 || !strings.Contains(stderr, "not valid YAML") {
		t.Errorf("exit %d\n%s", code, stderr)
	}
}

// What `tulle inject` adds is what the webhook of an installation with the same
// values adds: it is told nothing else that matters to a pod. Its own defaults
// are held to the injector's in cmd/tulle-control.
func TestInjectIsTheWebhook(t *testing.T) {
	for _, sets := range []command.List{
		nil,
		{"registry=registry.example.com/mesh", "tag=next", "pullPolicy=Always", "trustDomain=example.org", "cni.enabled=false"},
	} {
		w := wish{sets: sets}
		values, err := w.values(nil)
		if err != nil {
			t.Fatal(err)
		}
		config, err := injection(values)
		if err != nil {
			t.Fatal(err)
		}
		objects, err := render(values)
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]string{
			"-proxy-image": config.Image, "-init-image": config.InitImage, "-pull-policy": config.PullPolicy,
			"-trust-domain": config.TrustDomain, "-cni": fmt.Sprint(config.CNI),
		}
		for _, o := range objects {
			if o.GetKind() != "Deployment" {
				continue
			}
			var d appsv1.Deployment
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &d); err != nil {
				t.Fatal(err)
			}
			for _, arg := range d.Spec.Template.Spec.Containers[0].Args {
				flag, value, _ := strings.Cut(arg, "=")
				switch expected, known := want[flag]; {
				case known && value != expected:
					t.Errorf("%v: the control plane has %s, tulle inject %s", sets, arg, expected)
				case !known && flag != "-log-level" && flag != "-auto-mesh" && flag != "-linger":
					t.Errorf("%v: the control plane is told %s, of which tulle inject knows nothing", sets, arg)
				}
				delete(want, flag)
			}
		}
		if len(want) > 0 {
			t.Errorf("%v: the control plane is not told %v", sets, want)
		}
	}
}

func TestRuntimes(t *testing.T) {
	node := func(runtime string) corev1.Node {
		return corev1.Node{Status: corev1.NodeStatus{NodeInfo: corev1.NodeSystemInfo{ContainerRuntimeVersion: runtime}}}
	}
	for _, c := range []struct {
		nodes   []corev1.Node
		verdict check.Verdict
		want    string
	}{
		{[]corev1.Node{node("containerd://1.6.20~ds1"), node("containerd://2.1.0")}, check.OK, "containerd on 2 of the nodes"},
		{[]corev1.Node{node("cri-o://1.34.0"), node("containerd://2.1.0")}, check.OK, "containerd on 1, cri-o on 1 of the nodes"},
		{[]corev1.Node{node("docker://26.1.5"), node("containerd://2.1.0")}, check.Warning, "containerd on 1, docker on 1 of the nodes"},
	} {
		if r := runtimes(c.nodes); r.Verdict != c.verdict || r.Detail != c.want || (r.Fix != "") != (c.verdict == check.Warning) {
			t.Errorf("%+v, want %s", r, c.want)
		}
	}
}

// What was asked for at the installation is kept as a note: no more than that,
// and all of it.
func TestNote(t *testing.T) {
	w := wish{sets: command.List{"registry=example.com/mesh", "control.resources.limits.memory=1Gi"}, ha: true, autoMesh: "team in (a,b)"}
	objects, err := w.noted(strings.NewReader(""))
	if err != nil {
		t.Fatal(err)
	}
	note := ""
	for _, o := range objects {
		note += o.GetAnnotations()[valuesNote]
	}
	if want := `{"autoMesh":"team in (a,b)","control":{"replicas":3,"resources":{"limits":{"memory":"1Gi"}}},"registry":"example.com/mesh"}`; note != want {
		t.Errorf("%s, want %s", note, want)
	}
	before, err := chart.ParseValues([]byte(note))
	if err != nil {
		t.Fatal(err)
	}
	again := wish{before: before, sets: command.List{"tag=next"}}
	values, err := again.values(strings.NewReader(""))
	if err != nil {
		t.Fatal(err)
	}
	if values["tag"] != "next" || values["autoMesh"] != "team in (a,b)" || fmt.Sprint(values["control"].(map[string]any)["replicas"]) != "3" {
		t.Errorf("%v", values)
	}
	unknown := wish{before: chart.Values{"gone": 1}}
	if _, err := unknown.values(strings.NewReader("")); err == nil || !strings.Contains(err.Error(), "no such value: gone") {
		t.Errorf("a value that this version does not know: %v", err)
	}
}
