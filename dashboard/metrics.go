package dashboard

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime/metrics"
	"slices"
	"strconv"
	"strings"
)

// serveMetrics answers Prometheus, in its text format 0.0.4. What proxies count
// is not repeated here: each has its own /metrics, and /api/v1/targets lists them.
func (h *Site) serveMetrics(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	e := &exposition{w: w}
	h.writeMetrics(e)
}

func (h *Site) writeMetrics(e *exposition) {
	c := h.config.Collector
	c.mu.Lock()
	states := map[string]int{"connected": 0, "ended": 0, "lost": 0}
	for _, r := range c.records {
		state := r.state()
		states[state.state()]++
	}
	reports, coverage, missed := c.reports, c.coverageLocked(), c.history.missed
	c.mu.Unlock()

	e.family("tulle_control_info", "gauge", "What runs; the value is 1.")
	e.sample(1, "version", h.config.Version, "trust_domain", h.config.TrustDomain)
	e.family("tulle_control_proxies", "gauge", "Proxies by state.")
	for _, state := range []string{"connected", "ended", "lost"} {
		e.sample(float64(states[state]), "state", state)
	}
	e.family("tulle_control_reports_total", "counter", "Reports taken from proxies.")
	e.sample(float64(reports))
	e.family("tulle_control_history_bytes", "gauge", "Memory that the last hour takes.")
	e.sample(float64(coverage.Bytes))
	e.family("tulle_control_history_series", "gauge", "Edges and replicas that are kept apart.")
	e.sample(float64(coverage.Series))
	e.family("tulle_control_history_overflow_total", "counter", "Amounts counted as other since there were too many edges or replicas.")
	e.sample(float64(missed))
	e.family("tulle_control_streams", "gauge", "Readers of the dashboard's streams.")
	e.sample(float64(len(h.streams)))
	e.family("tulle_root_not_after_seconds", "gauge", "When a trusted root ends, in seconds since 1970.")
	for _, r := range h.roots() {
		e.sample(float64(r.NotAfter.Unix()), "sha256", digestOf(r), "subject", r.Subject.String())
	}
	writeProcess(e)
}

// writeProcess tells what any process tells, under the names that are usual.
func writeProcess(e *exposition) {
	samples := []metrics.Sample{{Name: "/sched/goroutines:goroutines"}, {Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(samples)
	e.family("go_goroutines", "gauge", "Goroutines that exist.")
	e.sample(float64(samples[0].Value.Uint64()))
	e.family("go_memstats_heap_alloc_bytes", "gauge", "Heap in use.")
	e.sample(float64(samples[1].Value.Uint64()))
	b, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return
	}
	// proc_pid_stat(5); the second field may have spaces, and ends with the last ")".
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	const utime, stime, rss = 11, 12, 21 // less the first two
	if len(fields) <= rss {
		return
	}
	number := func(i int) float64 {
		n, _ := strconv.ParseFloat(fields[i], 64)
		return n
	}
	const ticks = 100 // USER_HZ, the same on every Linux
	e.family("process_cpu_seconds_total", "counter", "Time spent on CPUs.")
	e.sample((number(utime) + number(stime)) / ticks)
	e.family("process_resident_memory_bytes", "gauge", "Memory resident.")
	e.sample(number(rss) * float64(os.Getpagesize()))
}

// exposition writes Prometheus' text format.
type exposition struct {
	w    io.Writer
	name string
}

// family begins a metric: its samples follow.
func (e *exposition) family(name, kind, help string) {
	e.name = name
	_, _ = fmt.Fprintf(e.w, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind) // the client is gone
}

var escapeLabel = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)

// sample writes a value with labels, given as names and values.
func (e *exposition) sample(value float64, labels ...string) {
	var b strings.Builder
	b.WriteString(e.name)
	for i := 0; i+1 < len(labels); i += 2 {
		b.WriteByte("{,"[min(i, 1)])
		fmt.Fprintf(&b, `%s="%s"`, labels[i], escapeLabel.Replace(strings.ToValidUTF8(labels[i+1], "\uFFFD")))
	}
	if len(labels) > 0 {
		b.WriteByte('}')
	}
	_, _ = fmt.Fprintf(e.w, "%s %s\n", b.String(), strconv.FormatFloat(value, 'g', -1, 64))
}

// Target is where Prometheus scrapes a proxy (its HTTP service discovery).
type Target struct {
	Targets []string          `json:"targets"`
	Labels  map[string]string `json:"labels"`
}

const proxyMetricsPort = "4191"

func (h *Site) serveTargets(w http.ResponseWriter, r *http.Request) {
	if _, err := ask(r); err != nil {
		badRequest(w, err)
		return
	}
	c := h.config.Collector
	targets := []Target{}
	c.mu.Lock()
	for _, p := range c.records {
		if p.connected() && p.address != "" {
			targets = append(targets, Target{
				Targets: []string{net.JoinHostPort(p.address, proxyMetricsPort)},
				Labels:  map[string]string{"namespace": p.id.Namespace},
			})
		}
	}
	c.mu.Unlock()
	slices.SortFunc(targets, func(a, b Target) int { return cmpStrings(a.Targets[0], b.Targets[0]) })
	writeJSON(w, http.StatusOK, targets)
}
