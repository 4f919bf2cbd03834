package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// results collects figures and says what they come to.
type results struct {
	When     time.Time `json:"when"`
	Machine  string    `json:"machine"`
	CPUs     int       `json:"cpus"`
	Kernel   string    `json:"kernel"`
	Versions []string  `json:"versions"`
	Rounds   int       `json:"rounds"`
	Seconds  float64   `json:"seconds"` // of one measurement
	Rows     []*row    `json:"rows"`
}

// row is one figure of one peer at one work.
type row struct {
	Work    string    `json:"work"`
	Peer    string    `json:"peer"`
	Figure  string    `json:"figure"`
	Median  float64   `json:"median"`
	Low     float64   `json:"low"`
	High    float64   `json:"high"`
	Samples []float64 `json:"samples"`
	// Medians of the rounds' ratios to the references.
	Ratios map[string]float64 `json:"ratios,omitempty"`
}

func newResults(c config) *results {
	r := &results{When: time.Now().UTC().Truncate(time.Second), CPUs: runtime.NumCPU(), Rounds: c.rounds, Seconds: c.long.Seconds()}
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
	if out, err := exec.Command("haproxy", "-v").Output(); err == nil {
		first, _, _ := strings.Cut(string(out), "\n")
		r.Versions = append(r.Versions, first)
	}
	r.Versions = append(r.Versions, runtime.Version())
	return r
}

// add notes one sample. Samples of a figure come in the order of the rounds,
// for every peer alike.
func (r *results) add(work, peer, figure string, value float64) {
	found := r.find(work, peer, figure)
	if found == nil {
		found = &row{Work: work, Peer: peer, Figure: figure}
		r.Rows = append(r.Rows, found)
	}
	found.Samples = append(found.Samples, value)
}

func (r *results) find(work, peer, figure string) *row {
	i := slices.IndexFunc(r.Rows, func(x *row) bool { return x.Work == work && x.Peer == peer && x.Figure == figure })
	if i < 0 {
		return nil
	}
	return r.Rows[i]
}

// conclude fills in the medians, spreads and ratios.
func (r *results) conclude() {
	for _, x := range r.Rows {
		x.Median, x.Low, x.High = median(x.Samples), slices.Min(x.Samples), slices.Max(x.Samples)
		for _, name := range references {
			if ratio, ok := r.ratio(x, r.find(x.Work, name, x.Figure)); ok {
				if x.Ratios == nil {
					x.Ratios = map[string]float64{}
				}
				x.Ratios[name] = ratio
			}
		}
	}
}

// ratio is the median of x's samples over those of the same rounds of other.
func (r *results) ratio(x, other *row) (float64, bool) {
	if other == nil || other == x || len(other.Samples) != len(x.Samples) || slices.Contains(other.Samples, 0) {
		return 0, false
	}
	ratios := make([]float64, len(x.Samples))
	for i, value := range x.Samples {
		ratios[i] = value / other.Samples[i]
	}
	return median(ratios), true
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}

// table shows all figures, one line each.
func (r *results) table() string {
	r.conclude()
	var text strings.Builder
	fmt.Fprintf(&text, "%s, %d CPUs, Linux %s; %s; %d rounds of %gs\n\n",
		r.Machine, r.CPUs, r.Kernel, strings.Join(r.Versions, "; "), r.Rounds, r.Seconds)
	w := tabwriter.NewWriter(&text, 0, 0, 3, ' ', 0)
	fmt.Fprint(w, "WORK\tFIGURE\tPEER\tMEDIAN\tLOW\tHIGH")
	for _, name := range references {
		fmt.Fprintf(w, "\t/ %s", name)
	}
	fmt.Fprintln(w)
	rows := slices.Clone(r.Rows)
	slices.SortStableFunc(rows, func(a, b *row) int { return r.order(a) - r.order(b) })
	for _, x := range rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s", x.Work, x.Figure, x.Peer, number(x.Median), number(x.Low), number(x.High))
		for _, name := range references {
			ratio := ""
			if value, ok := x.Ratios[name]; ok {
				ratio = number(value)
			}
			fmt.Fprintf(w, "\t%s", ratio)
		}
		fmt.Fprintln(w)
	}
	_ = w.Flush() // a Builder takes everything
	return text.String()
}

// order puts the peers of one figure side by side, in the order in which the
// figure first came up.
func (r *results) order(x *row) int {
	return slices.IndexFunc(r.Rows, func(y *row) bool { return y.Work == x.Work && y.Figure == x.Figure })
}

func number(x float64) string {
	switch {
	case x >= 1000:
		return fmt.Sprintf("%.0f", x)
	case x >= 100:
		return fmt.Sprintf("%.1f", x)
	}
	return fmt.Sprintf("%.2f", x)
}

// save writes host.json and host.txt.
func (r *results) save(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	text := r.table()
	data, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "host.json"), append(data, '\n'), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "host.txt"), []byte(text), 0o644)
}
