package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"testing"
)

func TestFilesAreUpToDate(t *testing.T) {
	for name, want := range files() {
		if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not what the code makes (%v); type: go run ./dashboard/prometheus dashboard/prometheus", name, err)
		}
	}
}

// promtool is Prometheus' own judge; ./just test installs it.
func promtool(t *testing.T, args ...string) {
	t.Helper()
	if _, err := exec.LookPath("promtool"); err != nil {
		t.Skip("promtool is not installed")
	}
	if out, err := exec.Command("promtool", args...).CombinedOutput(); err != nil {
		t.Errorf("promtool %v: %v\n%s", args, err, out)
	}
}

func TestPromtoolAcceptsTheRules(t *testing.T) {
	promtool(t, "check", "rules", "rules.yml")
	promtool(t, "check", "config", "prometheus.yml")
}

func TestRulesSayWhatTheyShould(t *testing.T) { promtool(t, "test", "rules", "rules_test.yml") }

// Every query of the dashboard must be one that Prometheus can read: promtool
// reads them as rules.
func TestPromtoolAcceptsTheGraphs(t *testing.T) {
	if !json.Valid(grafana()) {
		t.Error("grafana.json is not JSON")
	}
	var b bytes.Buffer
	b.WriteString("groups:\n- name: graphs\n  rules:\n")
	for i, p := range panels {
		for j, q := range p.queries {
			expr, _ := json.Marshal(q.expr)
			b.WriteString("  - record: graph:" + string(rune('a'+i)) + string(rune('a'+j)) + ":x\n    expr: " + string(expr) + "\n")
		}
	}
	file := t.TempDir() + "/graphs.yml"
	if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	promtool(t, "check", "rules", file)
}
