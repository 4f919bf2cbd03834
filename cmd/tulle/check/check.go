package check

import (
	"context"
	"fmt"
	"io"
)

// Verdict of a check.
type Verdict string

// Verdicts. Only Failed makes the whole fail.
const (
	OK      Verdict = "ok"
	Warning Verdict = "warning"
	Failed  Verdict = "failed"
	Skipped Verdict = "skipped"
)

// Result is one line of the report.
type Result struct {
	Group   string  `json:"group"`
	Check   string  `json:"check"`
	Verdict Verdict `json:"verdict"`
	Detail  string  `json:"detail,omitempty"` // what was seen
	Fix     string  `json:"fix,omitempty"`    // what to do about it
}

// Config says what to look at.
type Config struct {
	RunDir   string
	StateDir string
}

// group is a list of checks on one subject; each may yield several results.
type group struct {
	name   string
	vital  bool // if something in it has failed, what comes after it is skipped
	checks []func(context.Context, *Config) []Result
}

// groups is everything that is checked, from the bottom up.
var groups = []group{
	{"host", true, []func(context.Context, *Config) []Result{root, backends, ipv6}},
	{"daemon", true, []func(context.Context, *Config) []Result{daemon}},
	{"network", false, []func(context.Context, *Config) []Result{firewall, forwarding, nameServer}},
	{"identity", false, []func(context.Context, *Config) []Result{authority}},
	{"workloads", false, []func(context.Context, *Config) []Result{workloads}},
}

// Run makes all checks, in order.
func Run(ctx context.Context, c *Config) []Result {
	var all []Result
	broken := ""
	for _, g := range groups {
		if broken != "" {
			all = append(all, Result{Group: g.name, Check: "not looked at", Verdict: Skipped, Detail: "mend the " + broken + " first"})
			continue
		}
		for _, check := range g.checks {
			for _, r := range check(ctx, c) {
				r.Group = g.name
				all = append(all, r)
				if r.Verdict == Failed && g.vital {
					broken = g.name
				}
			}
		}
	}
	return all
}

// Good tells whether nothing has failed.
func Good(results []Result) bool {
	for _, r := range results {
		if r.Verdict == Failed {
			return false
		}
	}
	return true
}

var marks = map[Verdict]string{OK: "✓", Warning: "!", Failed: "✗", Skipped: "-"}

// Print writes the results as a tree.
func Print(w io.Writer, results []Result) error {
	last := ""
	for _, r := range results {
		if r.Group != last {
			last = r.Group
			if _, err := fmt.Fprintln(w, r.Group); err != nil {
				return err
			}
		}
		line := fmt.Sprintf("  %s %s", marks[r.Verdict], r.Check)
		if r.Detail != "" {
			line += ": " + r.Detail
		}
		if r.Fix != "" {
			line += "\n      -> " + r.Fix
		}
		if _, err := fmt.Fprintln(w, line); err != nil {
			return err
		}
	}
	return nil
}
