package main

import (
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
)

// table shows all works, each with a line for each peer and a column for each
// figure: median, and lowest to highest. Below stand Tulle's ratios.
func (r *results) table() string {
	var text strings.Builder
	fmt.Fprintf(&text, "%s, %d CPUs, Linux %s; %s\n", r.Machine, r.CPUs, r.Kernel, strings.Join(r.Versions, "; "))
	for _, s := range r.Sheets {
		s.conclude()
		fmt.Fprintf(&text, "\n%s\n%s", s.Work, s.table())
	}
	if goals := r.goals(); goals != "" {
		fmt.Fprintf(&text, "\ngoals\n%s", goals)
	}
	return text.String()
}

func (s *sheet) table() string {
	var text strings.Builder
	figures := s.figures()
	w := tabwriter.NewWriter(&text, 0, 0, 3, ' ', 0)
	if len(figures) > 0 {
		fmt.Fprintf(w, "  %d rounds of %gs\t%s\n", s.Rounds, s.Seconds, strings.Join(figures, "\t"))
	}
	for _, peer := range peerNames() {
		if reason, ok := s.Cannot[peer]; ok {
			fmt.Fprintf(w, "  %s cannot: %s\n", peer, reason)
			continue
		}
		s.line(w, figures, peer, func(figure string) string {
			if x := s.find(peer, figure); x != nil {
				return x.spread()
			}
			return ""
		})
	}
	for _, peer := range peerNames() {
		s.line(w, figures, ours+" / "+peer, func(figure string) string {
			if x := s.find(ours, figure); x != nil {
				if ratio, ok := x.Ratios[peer]; ok {
					return number(ratio)
				}
			}
			return ""
		})
	}
	_ = w.Flush() // a Builder takes everything
	return text.String()
}

// line leaves out what has no figure at all.
func (s *sheet) line(w *tabwriter.Writer, figures []string, name string, cell func(figure string) string) {
	cells := make([]string, len(figures))
	for i, figure := range figures {
		cells[i] = cell(figure)
	}
	if strings.Join(cells, "") != "" {
		fmt.Fprintf(w, "  %s\t%s\n", name, strings.Join(cells, "\t"))
	}
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

// spread is a figure's median, and its lowest and highest sample.
func (x *row) spread() string {
	if len(x.Samples) == 1 {
		return number(x.Median)
	}
	return fmt.Sprintf("%s (%s..%s)", number(x.Median), number(x.Low), number(x.High))
}

func number(x float64) string {
	switch size := max(x, -x); {
	case size >= 1000:
		return fmt.Sprintf("%.0f", x)
	case size >= 100:
		return fmt.Sprintf("%.1f", x)
	}
	return fmt.Sprintf("%.2f", x)
}
