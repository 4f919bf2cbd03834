package main

import (
	"fmt"
	"strings"
)

// A goal is what Tulle's figure, over that of the same rounds of another pair,
// shall be at most, or at least where more is better.
type goal struct {
	about        string
	works        []string
	figure       string
	haproxy      float64
	envoy        float64
	moreIsBetter bool
}

var goals = []goal{
	{about: "HTTP/1.1 256 B, CPU us per request", works: []string{"http1-256B-c16", "http1-256B-c128"}, figure: "CPU us/request", haproxy: 0.75, envoy: 0.40},
	{about: "HTTP/1.1 256 B, p50 us added over direct", works: []string{"http1-256B-c1"}, figure: "p50 us over direct", haproxy: 0.75, envoy: 0.50},
	{about: "2,000 requests/s open loop, p99 us added over direct", works: []string{"paced-2000"}, figure: "p99 us over direct", haproxy: 1.0, envoy: 0.75},
	{about: "gRPC unary, CPU us per call", works: []string{"grpc-s16", "grpc-s128"}, figure: "CPU us/call", haproxy: 1.0, envoy: 0.50},
	{about: "TCP bulk, MB per CPU second", works: []string{"bulk-1", "bulk-8"}, figure: "MB per CPU second", haproxy: 1.0, envoy: 1.2, moreIsBetter: true},
	{about: "short TCP connections, CPU us per connection", works: []string{"short"}, figure: "CPU us/connection", haproxy: 0.40, envoy: 0.40},
	{about: "resident MB of a new pair", works: []string{"memory"}, figure: "RSS MB, both", haproxy: 0.6, envoy: 0.25},
	{about: "resident MB under load", works: []string{"http1-256B-c128"}, figure: "RSS MB, both", haproxy: 0.8, envoy: 0.4},
}

// goals shows, in Markdown, what was reached of that for which there are results.
func (r *results) goals() string {
	var text strings.Builder
	for _, g := range goals {
		for _, work := range g.works {
			mine := r.find(work, ours, g.figure)
			if mine == nil {
				continue
			}
			fmt.Fprintf(&text, "| %s | `%s` | %s |", g.about, work, number(mine.Median))
			for _, against := range []struct {
				peer  string
				limit float64
			}{{haproxy.name, g.haproxy}, {envoy.name, g.envoy}, {nginx.name, 0}} {
				fmt.Fprintf(&text, " %s |", g.verdict(mine, r.find(work, against.peer, g.figure), against.limit))
			}
			text.WriteByte('\n')
		}
	}
	if text.Len() == 0 {
		return ""
	}
	return "| | work | Tulle | HAProxy, ratio | Envoy, ratio | nginx, ratio |\n|---|---|---|---|---|---|\n" + text.String()
}

// verdict is the other's figure, the ratio, and the goal where there is one and
// it is missed.
func (g goal) verdict(mine, other *row, limit float64) string {
	if other == nil {
		return ""
	}
	ratio, ok := mine.Ratios[other.Peer]
	if !ok {
		return number(other.Median) + ": no ratio"
	}
	text := fmt.Sprintf("%s: **%.2f**", number(other.Median), ratio)
	reached := ratio <= limit
	if g.moreIsBetter {
		reached = ratio >= limit
	}
	if limit == 0 || reached {
		return text
	}
	return text + fmt.Sprintf(", not yet %.2f", limit)
}
