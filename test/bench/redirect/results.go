package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// results is what was measured on one machine, in the form of ../results.
type results struct {
	Machine string    `json:"machine"`
	CPUs    int       `json:"cpus"`
	Kernel  string    `json:"kernel"`
	When    time.Time `json:"when"`
	Rounds  int       `json:"rounds"`
	Each    int       `json:"connections"` // in each round
	Sheets  []*sheet  `json:"works"`
}

type sheet struct {
	Work string `json:"work"`
	Rows []*row `json:"rows"`
}

// row is one figure of one peer.
type row struct {
	Peer    string    `json:"peer"`
	Figure  string    `json:"figure"`
	Median  float64   `json:"median"`
	Low     float64   `json:"low"`
	High    float64   `json:"high"`
	Samples []float64 `json:"samples"`
}

func newResults(c config) *results {
	r := &results{CPUs: runtime.NumCPU(), When: time.Now().UTC().Truncate(time.Second), Rounds: c.rounds, Each: c.connections}
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(info)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				r.Machine = strings.TrimSpace(value)
				break
			}
		}
	}
	if kernel, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		r.Kernel = strings.TrimSpace(string(kernel))
	}
	return r
}

func (r *results) add(work, peer, figure string, value float64) {
	i := slices.IndexFunc(r.Sheets, func(s *sheet) bool { return s.Work == work })
	if i < 0 {
		i, r.Sheets = len(r.Sheets), append(r.Sheets, &sheet{Work: work})
	}
	s := r.Sheets[i]
	j := slices.IndexFunc(s.Rows, func(x *row) bool { return x.Peer == peer && x.Figure == figure })
	if j < 0 {
		j, s.Rows = len(s.Rows), append(s.Rows, &row{Peer: peer, Figure: figure})
	}
	x := s.Rows[j]
	x.Samples = append(x.Samples, value)
	sorted := slices.Sorted(slices.Values(x.Samples))
	x.Median, x.Low, x.High = sorted[len(sorted)/2], sorted[0], sorted[len(sorted)-1]
}

// markdown is a table for each work: a line for each peer, medians and, in brackets,
// lowest and highest.
func (r *results) markdown() string {
	var text strings.Builder
	fmt.Fprintf(&text, "%s, %d CPUs, Linux %s; %d rounds of %d connections\n", r.Machine, r.CPUs, r.Kernel, r.Rounds, r.Each)
	for _, s := range r.Sheets {
		var figures, peers []string
		cells := map[[2]string]string{}
		for _, x := range s.Rows {
			if !slices.Contains(figures, x.Figure) {
				figures = append(figures, x.Figure)
			}
			if !slices.Contains(peers, x.Peer) {
				peers = append(peers, x.Peer)
			}
			cells[[2]string{x.Peer, x.Figure}] = x.spread()
		}
		fmt.Fprintf(&text, "\n| %s | %s |\n|---|%s\n", s.Work, strings.Join(figures, " | "), strings.Repeat("---|", len(figures)))
		for _, peer := range order(peers) {
			line := []string{peer}
			for _, figure := range figures {
				line = append(line, cells[[2]string{peer, figure}])
			}
			fmt.Fprintf(&text, "| %s |\n", strings.Join(line, " | "))
		}
	}
	return text.String()
}

// order puts peers as they were declared: the first round began with any.
func order(peers []string) []string {
	var names []string
	for _, w := range ways {
		names = append(names, w.name)
	}
	for _, p := range presences {
		names = append(names, p.name)
	}
	return slices.DeleteFunc(names, func(name string) bool { return !slices.Contains(peers, name) })
}

func (x *row) spread() string {
	if x.Low == x.High {
		return fmt.Sprintf("%.0f", x.Median)
	}
	digits := 1
	if x.Median >= 1000 {
		digits = 0
	}
	return fmt.Sprintf("%.*f (%.*f..%.*f)", digits, x.Median, digits, x.Low, digits, x.High)
}

func (r *results) save(folder string) error {
	text, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(folder, "redirect.json"), append(text, '\n'), 0o644),
		os.WriteFile(filepath.Join(folder, "redirect.md"), []byte(r.markdown()), 0o644))
}
