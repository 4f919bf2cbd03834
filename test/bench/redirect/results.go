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

	"github.com/tulle-mesh/tulle/test/bench/figures"
)

// results is what was measured on one machine, in the form of ../results.
type results struct {
	Machine string    `json:"machine"`
	CPUs    int       `json:"cpus"`
	Kernel  string    `json:"kernel"`
	Go      string    `json:"go"`
	When    time.Time `json:"when"`
	Rounds  int       `json:"rounds"`
	Each    int       `json:"connections"` // in each round
	Sheets  []*sheet  `json:"works"`
}

type sheet struct {
	Work string `json:"work"`
	Rows []*row `json:"rows"`
}

type row struct {
	figures.Row
	Ratios map[string]ratio `json:"ratios,omitempty"` // by the peer that it is compared with
}

// ratio is of a figure to that of another peer, over all rounds.
type ratio struct {
	Median float64 `json:"median"`
	Low    float64 `json:"low"`
	High   float64 `json:"high"`
	Better int     `json:"better"` // rounds in which it was better than the other's
}

func newResults(c config) *results {
	r := &results{CPUs: runtime.NumCPU(), Go: runtime.Version(), When: time.Now().UTC().Truncate(time.Second), Rounds: c.rounds, Each: c.connections}
	r.Machine, r.Kernel = figures.Machine()
	return r
}

func (r *results) add(work, peer, figure string, value float64) {
	i := slices.IndexFunc(r.Sheets, func(s *sheet) bool { return s.Work == work })
	if i < 0 {
		i, r.Sheets = len(r.Sheets), append(r.Sheets, &sheet{Work: work})
	}
	s := r.Sheets[i]
	x := s.find(peer, figure)
	if x == nil {
		x = &row{Row: figures.Row{Peer: peer, Figure: figure}}
		s.Rows = append(s.Rows, x)
	}
	x.Samples = append(x.Samples, value)
}

func (s *sheet) find(peer, figure string) *row {
	i := slices.IndexFunc(s.Rows, func(x *row) bool { return x.Peer == peer && x.Figure == figure })
	if i < 0 {
		return nil
	}
	return s.Rows[i]
}

// comparisons are the pairs whose ratio is of interest.
var comparisons = []struct{ peer, with string }{
	{peerEBPF, peerNone}, {peerEBPF, peerDirect}, {peerEBPF, peerNFTables}, {peerEBPF, peerIPTables},
	{peerLoaded, peerNothing}, {peerShared, peerNothing},
}

// conclude fills in what the samples come to.
func (r *results) conclude() {
	for _, s := range r.Sheets {
		for _, x := range s.Rows {
			x.Conclude()
		}
		for _, c := range comparisons {
			for _, x := range s.Rows {
				with := s.find(c.with, x.Figure)
				if x.Peer != c.peer || with == nil || x.Figure == figureEntries {
					continue
				}
				if x.Ratios == nil {
					x.Ratios = map[string]ratio{}
				}
				if all := x.Row.Ratios(&with.Row); all != nil {
					x.Ratios[c.with] = newRatio(all, x.Figure == figureRate)
				}
			}
		}
	}
}

func newRatio(all []float64, moreIsBetter bool) ratio {
	r := ratio{Median: figures.Median(all), Low: slices.Min(all), High: slices.Max(all)}
	for _, one := range all {
		if moreIsBetter && one > 1 || !moreIsBetter && one < 1 {
			r.Better++
		}
	}
	return r
}

// markdown is a table for each work: a line for each peer, medians and, in brackets,
// lowest and highest; and then the ratios.
func (r *results) markdown() string {
	var text strings.Builder
	fmt.Fprintf(&text, "%s, %d CPUs, Linux %s, %s; %d rounds of %d connections\n", r.Machine, r.CPUs, r.Kernel, r.Go, r.Rounds, r.Each)
	for _, s := range r.Sheets {
		names := s.figures()
		fmt.Fprintf(&text, "\n| %s | %s |\n|---|%s\n", s.Work, strings.Join(names, " | "), strings.Repeat("---|", len(names)))
		text.WriteString(s.lines(names, (*row).spread, func(x ratio) string {
			return fmt.Sprintf("**%.2f** (%.2f..%.2f), better in %d of %d", x.Median, x.Low, x.High, x.Better, r.Rounds)
		}))
	}
	return text.String()
}

// brief is a table of the medians that matter most: of the product, of the redirect
// itself, and of those who are not meshed.
func (r *results) brief() string {
	names := []string{figureConnect, figureRate, figureCPU, figurePing, figureEntries}
	var text strings.Builder
	fmt.Fprintf(&text, "| | %s |\n|---|%s\n", strings.Join(names, " | "), strings.Repeat("---|", len(names)))
	for _, s := range r.Sheets {
		if s.Work == workEndToEnd {
			continue
		}
		fmt.Fprintf(&text, "| **%s** |%s\n", s.Work, strings.Repeat(" |", len(names)))
		text.WriteString(s.lines(names, func(x *row) string { return number(x.Median) }, func(x ratio) string {
			return fmt.Sprintf("**%.2f**", x.Median)
		}))
	}
	return text.String()
}

// lines are those of all peers and comparisons that have a figure.
func (s *sheet) lines(names []string, cell func(*row) string, compared func(ratio) string) string {
	var text strings.Builder
	line := func(name, peer string, cell func(*row) string) {
		cells := make([]string, len(names))
		for i, figure := range names {
			if x := s.find(peer, figure); x != nil {
				cells[i] = cell(x)
			}
		}
		if strings.Join(cells, "") != "" {
			fmt.Fprintf(&text, "| %s | %s |\n", name, strings.Join(cells, " | "))
		}
	}
	for _, peer := range s.peers() {
		line(peer, peer, cell)
	}
	for _, c := range comparisons {
		line(c.peer+" / "+c.with, c.peer, func(x *row) string {
			if ratio, ok := x.Ratios[c.with]; ok {
				return compared(ratio)
			}
			return ""
		})
	}
	return text.String()
}

// figures are named in the order in which they came up.
func (s *sheet) figures() []string {
	var names []string
	for _, x := range s.Rows {
		if !slices.Contains(names, x.Figure) {
			names = append(names, x.Figure)
		}
	}
	return names
}

// peers of the work, in their order.
func (s *sheet) peers() []string {
	var names []string
	for _, x := range s.Rows {
		if !slices.Contains(names, x.Peer) {
			names = append(names, x.Peer)
		}
	}
	return names
}

func (x *row) spread() string {
	if x.Low == x.High {
		return number(x.Median)
	}
	return fmt.Sprintf("%s (%s..%s)", number(x.Median), number(x.Low), number(x.High))
}

func number(x float64) string {
	if x >= 100 || x == 0 {
		return fmt.Sprintf("%.0f", x)
	}
	return fmt.Sprintf("%.1f", x)
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
