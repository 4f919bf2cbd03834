package main

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
)

func TestConclude(t *testing.T) {
	r := newResults(config{rounds: 3})
	for i, ebpf := range []float64{9, 30, 8} {
		r.add("w", peerIPTables, figureConnect, float64(10*(i+1)))
		r.add("w", peerEBPF, figureConnect, ebpf)
		r.add("w", peerEBPF, figureEntries, 0)
		r.add("w", peerNone, figureEntries, 0)
	}
	r.conclude()
	x := r.Sheets[0].find(peerEBPF, figureConnect)
	got, ok := x.Ratios[peerIPTables] // of 0.9, 1.5 and 8/30
	if want := (ratio{Median: 0.9, Low: 8.0 / 30, High: 1.5, Better: 2}); !ok || got != want {
		t.Errorf("ratio %+v, want %+v", got, want)
	}
	for _, want := range []string{"| ebpf | 9.0 (8.0..30.0) | 0 |", "| ebpf / iptables | **0.90** (0.27..1.50), better in 2 of 3 |  |"} {
		if text := r.markdown(); !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if text := r.markdown(); strings.Contains(text, "ebpf / none") {
		t.Errorf("a ratio to nothing:\n%s", text)
	}
}

// What the README says is what the committed results say, and so is what the eBPF
// redirect has been promised to be: ahead of iptables, without connection tracking.
func TestCommittedResults(t *testing.T) {
	text, err := os.ReadFile("../results/redirect.json")
	if err != nil {
		t.Fatal(err)
	}
	var r results
	if err := json.Unmarshal(text, &r); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{"../../../README.md": r.brief(), "../results/redirect.md": r.markdown()} {
		if text, err := os.ReadFile(file); err != nil || !strings.Contains(string(text), want) {
			t.Errorf("%s, %v, lacks:\n%s", file, err, want)
		}
	}
	for _, s := range r.Sheets {
		if s.Work == workBystander {
			continue
		}
		for _, figure := range []string{figureConnect, figureCPU} {
			if x := s.find(peerEBPF, figure); x == nil || x.Ratios[peerIPTables].Median >= 1 {
				t.Errorf("%s, %s: not ahead of iptables: %+v", s.Work, figure, x)
			}
		}
		if x := s.find(peerEBPF, figureEntries); x == nil || x.High != 0 {
			t.Errorf("%s: connection tracking: %+v", s.Work, x)
		}
	}
}
