package kube

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// The recipe test-kube says in the environment where the cluster is.
var (
	state   = os.Getenv("TULLE_KUBE_STATE")   // folder of the running cluster
	scripts = os.Getenv("TULLE_KUBE_CLUSTER") // folder of what runs it
	bin     = os.Getenv("TULLE_BIN")          // folder of the binaries
	chart   = os.Getenv("TULLE_CHART")        // folder of the chart
)

// limit is how long to wait for what has to come; it never does in a test that
// passes.
const limit = 2 * time.Minute

func TestMain(m *testing.M) {
	if state == "" {
		fmt.Println("skipped: needs a cluster (type: ./just test-kube)")
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// result is how a command ended.
type result struct {
	stdout, stderr string
	code           int
}

// run runs a command to its end.
func run(t *testing.T, stdin string, name string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v", name, err)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// kubectl runs kubectl, which must succeed, and returns what it printed.
func kubectl(t *testing.T, args ...string) string {
	t.Helper()
	r := run(t, "", "kubectl", args...)
	if r.code != 0 {
		t.Fatalf("kubectl %s: exit %d\n%s%s", strings.Join(args, " "), r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

// apply creates objects, and deletes their namespaces when the test ends.
func apply(t *testing.T, manifest string) {
	t.Helper()
	if r := run(t, manifest, "kubectl", "apply", "-f", "-"); r.code != 0 {
		t.Fatalf("kubectl apply: %s%s", r.stdout, r.stderr)
	}
}

// tulle runs the CLI.
func tulle(t *testing.T, args ...string) result {
	t.Helper()
	return run(t, "", filepath.Join(bin, "tulle"), args...)
}

// must runs the CLI, which has to succeed.
func must(t *testing.T, args ...string) string {
	t.Helper()
	r := tulle(t, args...)
	if r.code != 0 {
		t.Fatalf("tulle %s: exit %d\n%s%s", strings.Join(args, " "), r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

// refused runs the CLI, which has to fail and to say why.
func refused(t *testing.T, why string, args ...string) {
	t.Helper()
	r := tulle(t, args...)
	if r.code == 0 || !strings.Contains(r.stderr, why) {
		t.Errorf("tulle %s: exit %d, want a refusal with %q\n%s%s", strings.Join(args, " "), r.code, why, r.stdout, r.stderr)
	}
}

// output is what a process has written so far.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// follow runs the CLI until what it has printed is enough, then interrupts it,
// as Ctrl-C does, which has to be no error.
func follow(t *testing.T, enough func(stdout string) bool, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(bin, "tulle"), args...)
	var stdout, stderr output
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	what := "tulle " + strings.Join(args, " ")
	eventually(t, what, func() (bool, string) { return enough(stdout.String()), stdout.String() + stderr.String() })
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Errorf("%s: %v", what, err)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("%s, interrupted: %v\n%s", what, err, stderr.String())
		}
	case <-time.After(limit):
		t.Errorf("%s does not end", what)
	}
}

// eventually waits until a condition holds; say tells what was seen last.
func eventually(t *testing.T, what string, condition func() (ok bool, say string)) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		ok, say := condition()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v; last seen: %s", what, limit, say)
		}
		time.Sleep(250 * time.Millisecond)
	}
}

// inPod runs the scenarios' program in a pod.
func inPod(t *testing.T, namespace, pod string, args ...string) result {
	t.Helper()
	return run(t, "", "kubectl", slices.Concat([]string{"-n", namespace, "exec", pod, "-c", "app", "--", "/app"}, args)...)
}

// fetch returns the answer to a GET from inside a pod, which must succeed.
func fetch(t *testing.T, namespace, pod, url string) string {
	t.Helper()
	r := inPod(t, namespace, pod, "fetch", url)
	if r.code != 0 {
		t.Fatalf("GET %s from %s/%s: exit %d\n%s%s", url, namespace, pod, r.code, r.stdout, r.stderr)
	}
	return strings.TrimSpace(r.stdout)
}

// rolledOut waits for workloads as kubectl knows them.
func rolledOut(t *testing.T, namespace string, workloads ...string) {
	t.Helper()
	for _, w := range workloads {
		kubectl(t, "-n", namespace, "rollout", "status", w, "--timeout", limit.String())
	}
}

// namespace makes one, meshed or not, which ends with the test: nobody waits for
// that but allGone.
func namespace(t *testing.T, name string, meshed bool, more ...string) {
	t.Helper()
	kubectl(t, "create", "namespace", name)
	t.Cleanup(func() {
		if t.Failed() {
			artifacts(t, name)
		}
		run := exec.Command("kubectl", "delete", "namespace", name, "--wait=false")
		if out, err := run.CombinedOutput(); err != nil {
			t.Errorf("delete namespace %s: %v\n%s", name, err, out)
		}
	})
	if meshed {
		must(t, append([]string{"mesh", name}, more...)...)
	}
}

// allGone waits until the namespaces of all tests are gone.
func allGone(t *testing.T) {
	t.Helper()
	eventually(t, "the namespaces of all scenarios are gone", func() (bool, string) {
		left := kubectl(t, "get", "namespaces", "--no-headers")
		return !strings.Contains(left, "Terminating"), left
	})
}

// artifacts prints what explains a failure.
func artifacts(t *testing.T, namespace string) {
	for _, args := range [][]string{
		{"-n", namespace, "get", "pods", "-o", "wide"},
		{"-n", namespace, "get", "events", "--field-selector", "type=Warning"},
		{"-n", namespace, "logs", "--all-containers", "--prefix", "--tail=20", "-l", "scenario"},
		{"-n", "tulle-system", "logs", "deployment/tulle-control", "--tail=20"},
		{"-n", "tulle-system", "logs", "daemonset/tulle-cni", "--tail=20"},
	} {
		out, _ := exec.Command("kubectl", args...).CombinedOutput()
		t.Logf("kubectl %s\n%s", strings.Join(args, " "), out)
	}
}

// onNode runs a shell command on a node.
func onNode(t *testing.T, node, script string) string {
	t.Helper()
	pid, err := os.ReadFile(filepath.Join(state, node, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	r := run(t, "", "nsenter", "--target", strings.TrimSpace(string(pid)), "--net", "--mount", "--pid", "--uts", "sh", "-c", script)
	if r.code != 0 {
		t.Fatalf("on %s: %s: exit %d\n%s%s", node, script, r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

// pods returns the names of pods with a label that run and are to go on.
func pods(t *testing.T, namespace, label string) []string {
	t.Helper()
	list := decode[struct {
		Items []struct {
			Metadata struct{ Name, DeletionTimestamp string }
			Status   struct{ Phase string }
		}
	}](t, kubectl(t, "-n", namespace, "get", "pods", "-l", label, "-o", "json"))
	var names []string
	for _, p := range list.Items {
		if p.Metadata.DeletionTimestamp == "" && p.Status.Phase == "Running" {
			names = append(names, p.Metadata.Name)
		}
	}
	return names
}

// decode reads JSON.
func decode[T any](t *testing.T, raw string) (v T) {
	t.Helper()
	if err := json.Unmarshal([]byte(raw), &v); err != nil {
		t.Fatalf("%v\n%s", err, raw)
	}
	return v
}
