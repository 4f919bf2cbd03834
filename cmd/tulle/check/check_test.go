package check

import (
	"context"
	"strings"
	"testing"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
)

func TestPrint(t *testing.T) {
	out := &strings.Builder{}
	err := Print(out, []Result{
		{Group: "host", Check: "a", Verdict: OK, Detail: "fine"},
		{Group: "host", Check: "b", Verdict: Warning},
		{Group: "daemon", Check: "c", Verdict: Failed, Detail: "bad", Fix: "tulle up -d"},
		{Group: "network", Check: "d", Verdict: Skipped},
	})
	const want = "host\n  ✓ a: fine\n  ! b\ndaemon\n  ✗ c: bad\n      -> tulle up -d\nnetwork\n  - d\n"
	if err != nil || out.String() != want {
		t.Errorf("got %q, %v; want %q", out, err, want)
	}
}

func TestGood(t *testing.T) {
	for verdict, want := range map[Verdict]bool{OK: true, Warning: true, Skipped: true, Failed: false} {
		if got := Good([]Result{{Verdict: OK}, {Verdict: verdict}}); got != want {
			t.Errorf("%s: got %v", verdict, got)
		}
	}
}

// TestWithoutDaemon: one finding that says what to type, and no more that follow
// from it.
func TestWithoutDaemon(t *testing.T) {
	results := Run(context.Background(), &Config{RunDir: t.TempDir(), StateDir: t.TempDir()})
	failed := 0
	for _, r := range results {
		if r.Verdict == Failed {
			failed++
			if r.Fix == "" {
				t.Errorf("no fix: %+v", r)
			}
		}
	}
	if failed != 1 || Good(results) {
		t.Errorf("got %+v", results)
	}
}

func TestLostWorkload(t *testing.T) {
	r := checkWorkload(context.Background(), &tullev1.Workload{Replica: "web-1", State: "lost"})
	if r.Verdict != Failed || !strings.Contains(r.Fix, "web-1") {
		t.Errorf("got %+v", r)
	}
	r = checkWorkload(context.Background(), &tullev1.Workload{Replica: "web-1", State: "ready", Address4: "nowhere"})
	if r.Verdict != Failed || !strings.Contains(r.Fix, "tulle logs --proxy web-1") {
		t.Errorf("got %+v", r)
	}
}
