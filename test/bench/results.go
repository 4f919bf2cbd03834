package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/tulle-mesh/tulle/test/bench/figures"
)

// results is what was measured on one machine.
type results struct {
	Machine  string   `json:"machine"`
	CPUs     int      `json:"cpus"`
	Kernel   string   `json:"kernel"`
	Versions []string `json:"versions"`
	Sheets   []*sheet `json:"works"`

	config config
}

// sheet holds the figures of one work.
type sheet struct {
	Work    string            `json:"work"`
	When    time.Time         `json:"when"`
	Rounds  int               `json:"rounds"`
	Seconds float64           `json:"seconds"` // of one measurement
	Rows    []*row            `json:"rows"`
	Cannot  map[string]string `json:"cannot,omitempty"` // by peer: why there is no figure
}

// row is one figure of one peer.
type row struct {
	figures.Row
	// Of Tulle's figures, by peer: the median of the rounds' ratios.
	Ratios map[string]float64 `json:"ratios,omitempty"`
}

func newResults(c config) *results {
	r := &results{CPUs: runtime.NumCPU(), config: c}
	r.Machine, r.Kernel = figures.Machine()
	for _, program := range [][]string{{"haproxy", "-v"}, {"nginx", "-v"}, {c.envoy, "--version"}} {
		if out, err := exec.Command(program[0], program[1:]...).CombinedOutput(); err == nil {
			first, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
			r.Versions = append(r.Versions, strings.TrimPrefix(first, filepath.Dir(program[0])+"/"))
		}
	}
	r.Versions = append(r.Versions, runtime.Version())
	return r
}

// sheet begins the sheet of a work.
func (r *results) sheet(work string) *sheet {
	s := &sheet{Work: work, When: time.Now().UTC().Truncate(time.Second), Rounds: r.config.rounds, Seconds: r.config.long.Seconds()}
	r.Sheets = append(r.Sheets, s)
	return s
}

func (r *results) find(work, peer, figure string) *row {
	i := slices.IndexFunc(r.Sheets, func(s *sheet) bool { return s.Work == work })
	if i < 0 {
		return nil
	}
	return r.Sheets[i].find(peer, figure)
}

// add notes one sample. Samples of a figure come in the order of the rounds,
// for every peer alike.
func (s *sheet) add(peer, figure string, value float64) {
	found := s.find(peer, figure)
	if found == nil {
		found = &row{Row: figures.Row{Peer: peer, Figure: figure}}
		s.Rows = append(s.Rows, found)
	}
	found.Samples = append(found.Samples, value)
}

// cannot notes why a peer has no figures.
func (s *sheet) cannot(peer, reason string) {
	if s.Cannot == nil {
		s.Cannot = map[string]string{}
	}
	s.Cannot[peer] = reason
}

func (s *sheet) find(peer, figure string) *row {
	i := slices.IndexFunc(s.Rows, func(x *row) bool { return x.Peer == peer && x.Figure == figure })
	if i < 0 {
		return nil
	}
	return s.Rows[i]
}

// conclude fills in the medians, spreads and ratios.
func (s *sheet) conclude() {
	for _, x := range s.Rows {
		x.Conclude()
	}
	for _, x := range s.Rows {
		if x.Peer != ours {
			continue
		}
		x.Ratios = nil
		for _, name := range peerNames() {
			other := s.find(name, x.Figure)
			if other == nil || other == x {
				continue
			}
			if ratios := x.Row.Ratios(&other.Row); ratios != nil {
				if x.Ratios == nil {
					x.Ratios = map[string]float64{}
				}
				x.Ratios[name] = figures.Median(ratios)
			}
		}
	}
}

// adopt takes over the sheets of earlier results that were not made anew, and
// puts all in the order in which works are measured.
func (r *results) adopt(earlier *results) {
	for _, old := range earlier.Sheets {
		if !slices.ContainsFunc(r.Sheets, func(s *sheet) bool { return s.Work == old.Work }) {
			r.Sheets = append(r.Sheets, old)
		}
	}
	slices.SortStableFunc(r.Sheets, func(a, b *sheet) int {
		return slices.Index(workNames(), a.Work) - slices.Index(workNames(), b.Work)
	})
}

// save writes host.json and host.txt, and keeps what was there of other works.
func (r *results) save(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	file := filepath.Join(dir, "host.json")
	earlier, err := read(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	r.adopt(earlier)
	text := r.table()
	data, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	if err := os.WriteFile(file, append(data, '\n'), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "host.txt"), []byte(text), 0o644)
}

// read reads what save wrote. It returns results also with an error: then none.
func read(file string) (*results, error) {
	var r results
	text, err := os.ReadFile(file)
	if err != nil {
		return &r, err
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return &r, fmt.Errorf("%s: %w", file, err)
	}
	return &r, nil
}
