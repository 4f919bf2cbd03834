package main

import (
	"fmt"
	"strconv"
	"strings"
)

// level is what rules are recorded for.
type level struct{ name, by string }

// An edge is told by its client's proxy. What a service is called by clients
// without a proxy its own proxies tell.
var (
	edgeLevel    = level{"edge", "workload_service, service"}
	serviceLevel = level{"service", "service"}
)

const (
	clients   = `direction="outbound",service!=""`
	strangers = `direction="inbound",peer_identity=""`
)

// rate is what a counter of a level grows by in a second.
func (l level) rate(metric, more, by string) string {
	if more != "" {
		more = "," + more
	}
	if by != "" {
		by = ", " + by
	}
	parts := []string{fmt.Sprintf("rate(%s{%s%s}[1m])", metric, clients, more)}
	if l == serviceLevel {
		parts = append(parts, fmt.Sprintf("rate(%s{%s%s}[1m])", metric, strangers, more))
	}
	return fmt.Sprintf("sum by (%s%s) (%s)", l.by, by, strings.Join(parts, " or "))
}

// A rule is recorded under a name, or alerts under one.
type rule struct {
	record, alert     string
	expr              string
	forHow, severity  string
	summary, whatToDo string
}

func recorded(l level) []rule {
	requests := l.name + ":tulle_requests:rate1m"
	list := []rule{
		{record: requests, expr: l.rate("tulle_requests_total", "", "")},
		{record: l.name + ":tulle_success:ratio1m", expr: fmt.Sprintf("1 - (%s or 0 * %s) / (%s > 0)", l.rate("tulle_requests_total", `outcome!="success"`, ""), requests, requests)},
	}
	for _, q := range []struct{ name, value string }{{"p50", "0.5"}, {"p95", "0.95"}, {"p99", "0.99"}} {
		list = append(list, rule{
			record: fmt.Sprintf("%s:tulle_duration_seconds:%s_1m", l.name, q.name),
			expr:   fmt.Sprintf("histogram_quantile(%s, %s)", q.value, l.rate("tulle_duration_seconds_bucket", "", "le")),
		})
	}
	return list
}

var alerts = []rule{
	{
		alert: "TulleSuccessLow", forHow: "5m", severity: "warning",
		expr:     "service:tulle_success:ratio1m < 0.99 and service:tulle_requests:rate1m > 0.1",
		summary:  "{{ $labels.service }} answers {{ $value | humanizePercentage }} of its requests well",
		whatToDo: "See which caller and which outcome: tulle edges {{ $labels.service }} -o wide; see the requests: tulle tap {{ $labels.service }} --status failed",
	},
	{
		alert: "TulleLatencyHigh", forHow: "10m", severity: "warning",
		expr:     "edge:tulle_duration_seconds:p99_1m > 1 and edge:tulle_requests:rate1m > 0.1",
		summary:  "one in a hundred requests of {{ $labels.workload_service }} to {{ $labels.service }} takes longer than {{ $value | humanizeDuration }}",
		whatToDo: "See which replica is slow: tulle stat {{ $labels.service }} -o wide",
	},
	{
		alert: "TulleCertificateEnds", forHow: "5m", severity: "critical",
		expr:     "tulle_certificate_not_after_seconds - time() < 4 * 3600",
		summary:  "the certificate of {{ $labels.workload }} ends in {{ $value | humanizeDuration }}; it should have been renewed hours ago",
		whatToDo: "See what keeps it: tulle logs {{ $labels.workload }}; tulle check",
	},
	{
		alert: "TulleRootEnds", forHow: "1h", severity: "warning",
		expr:     "tulle_root_not_after_seconds - time() < 30 * 86400",
		summary:  "the mesh's root certificate ends in {{ $value | humanizeDuration }}",
		whatToDo: "Rotate the root before it does.",
	},
	{
		alert: "TulleProxyLost", forHow: "2m", severity: "warning",
		expr:     `tulle_control_proxies{state="lost"} > 0`,
		summary:  "{{ $value }} proxies are gone without a word",
		whatToDo: "See which: tulle proxies",
	},
	{
		alert: "TulleControlDown", forHow: "2m", severity: "critical",
		expr:     "absent(tulle_control_info)",
		summary:  "the control plane does not answer; workloads go on, but nothing new can start",
		whatToDo: "Start it: sudo tulle up",
	},
	{
		alert: "TullePlaintext", forHow: "15m", severity: "info",
		expr:     `sum by (workload_service, service) (rate(tulle_requests_total{direction="outbound",service!="",security="plaintext"}[5m])) > 0`,
		summary:  "{{ $labels.workload_service }} calls {{ $labels.service }} without mutual TLS",
		whatToDo: "See who is not in the mesh: tulle edges {{ $labels.service }}",
	},
}

// rules writes the rule file.
func rules() []byte {
	var b strings.Builder
	b.WriteString("# Recording rules and alerts for the mesh; made by go run ./dashboard/prometheus.\ngroups:\n")
	group := func(name string, list []rule) {
		fmt.Fprintf(&b, "  - name: %s\n    rules:\n", name)
		for _, r := range list {
			r.write(&b)
		}
	}
	group("tulle-edges", recorded(edgeLevel))
	group("tulle-services", recorded(serviceLevel))
	group("tulle-alerts", alerts)
	return []byte(b.String())
}

func (r rule) write(b *strings.Builder) {
	quote := strconv.Quote // what Go quotes, YAML reads the same
	if r.record != "" {
		fmt.Fprintf(b, "      - record: %s\n        expr: %s\n", r.record, quote(r.expr))
		return
	}
	fmt.Fprintf(b, "      - alert: %s\n        expr: %s\n        for: %s\n        labels:\n          severity: %s\n", r.alert, quote(r.expr), r.forHow, r.severity)
	fmt.Fprintf(b, "        annotations:\n          summary: %s\n          description: %s\n", quote(r.summary), quote(r.whatToDo))
}
