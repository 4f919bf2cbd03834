package main

import (
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/tulle-mesh/tulle/dashboard"
)

// edges are who calls whom in the shop.
var shopEdges = [][2]string{{"load", "web"}, {"web", "catalog"}, {"catalog", "redis"}}

const (
	slowReplica   = "catalog-3"
	slowShareMost = 1.0 / 6 // of the catalog's requests: half of its fair share
)

// verdict returns what did not go as it must, or nil.
func verdict(seen view, c counted) error {
	var errs []error
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }

	if c.Sent == 0 {
		wrong("the source of load sent nothing")
	}
	if c.Failed > 0 {
		wrong("%d of %d requests failed, the first with: %s", c.Failed, c.Sent, c.Reason)
	}
	if n := seen.requests("load", "web"); n != uint64(c.Sent) {
		wrong("the source of load counted %d requests, the mesh %d", c.Sent, n)
	}
	for _, e := range shopEdges {
		if seen.requests(e[0], e[1]) == 0 {
			wrong("the mesh saw nothing from %s to %s", e[0], e[1])
		}
	}
	for _, e := range seen.edges {
		if e.Security != "mtls" {
			wrong("%s to %s was %s, not mutual TLS", e.Source, e.Destination, e.Security)
		}
		if e.TotalFailures > 0 {
			wrong("%s to %s: %d of %d failed (%v)", e.Source, e.Destination, e.TotalFailures, e.TotalRequests, e.Outcomes)
		}
	}
	if share, ok := shareOf(seen.replicas, "catalog", slowReplica); !ok {
		wrong("the mesh knows no replica %s", slowReplica)
	} else if share >= slowShareMost {
		wrong("the slow replica %s got %.1f %% of the requests; well under its fair share is less than %.1f %%", slowReplica, 100*share, 100*slowShareMost)
	}
	return errors.Join(errs...)
}

// shareOf returns the part of a service's requests, 0 to 1, that went to a replica.
func shareOf(replicas []dashboard.Replica, service, workload string) (share float64, ok bool) {
	var part, whole uint64
	for _, r := range replicas {
		if r.Service != service {
			continue
		}
		whole += r.TotalRequests
		if r.Workload == workload {
			part, ok = r.TotalRequests, true
		}
	}
	return float64(part) / float64(max(whole, 1)), ok
}

// summary is what a demo ends with.
func summary(seen view, c counted) string {
	return fmt.Sprintf("\nSummary: %d requests sent, %d failed. The source of load measured p50 %.1f ms, p95 %.1f ms, p99 %.1f ms.\n\n%s\n%s\n",
		c.Sent, c.Failed, c.P50, c.P95, c.P99, edgeTable(seen.edges), replicaTable(seen.replicas))
}

// edgeTable shows who calls whom, and how well.
func edgeTable(edges []dashboard.Edge) string {
	return table(func(w *tabwriter.Writer) {
		fmt.Fprintln(w, "EDGE\tSECURITY\tPROTOCOL\tREQUESTS\tRPS\tSUCCESS\tP50\tP95\tP99")
		for _, e := range edges {
			fmt.Fprintf(w, "%s -> %s\t%s\t%s\t%d\t%.1f\t%s\t%s\t%s\t%s\n", e.Source, e.Destination, e.Security, e.Protocol,
				e.Requests, e.RPS, percent(e.Success), millis(e.P50), millis(e.P95), millis(e.P99))
		}
	})
}

// replicaTable shows how the balancers share requests out, where there is a choice.
func replicaTable(replicas []dashboard.Replica) string {
	return table(func(w *tabwriter.Writer) {
		fmt.Fprintln(w, "REPLICA\tREQUESTS\tSHARE\tFAIR\tP50\t")
		count := map[string]int{}
		for _, r := range replicas {
			count[r.Service]++
		}
		for _, r := range replicas {
			if count[r.Service] < 2 {
				continue
			}
			share := 0.0
			if r.Share != nil {
				share = *r.Share
			}
			fmt.Fprintf(w, "%s\t%d\t%.1f %%\t%.1f %%\t%s\t%s\n", r.Workload, r.Requests, 100*share, 100*r.Fair,
				millis(r.P50), strings.Repeat("#", int(share*40+0.5)))
		}
	})
}

func table(fill func(*tabwriter.Writer)) string {
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 3, ' ', 0)
	fill(w)
	_ = w.Flush() // a Builder takes everything
	return text.String()
}

func percent(share *float64) string {
	if share == nil {
		return "-"
	}
	return fmt.Sprintf("%.2f %%", 100**share)
}

func millis(seconds *float64) string {
	if seconds == nil {
		return "-"
	}
	return fmt.Sprintf("%.1f ms", *seconds*1000)
}
