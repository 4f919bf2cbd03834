package dashboard

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
	"github.com/tulle-mesh/tulle/mesh"
)

// Window is how far back figures reach; 0 is since the beginning.
type Window time.Duration

// DefaultWindow is what is shown unless something else is asked for.
const DefaultWindow = Window(10 * time.Second)

// historySeconds is the length of a sparkline.
const historySeconds = 60

// ParseWindow reads "start", or a duration like "10s" up to the 120 s kept.
// Empty is DefaultWindow.
func ParseWindow(s string) (Window, error) {
	switch s {
	case "":
		return DefaultWindow, nil
	case "start":
		return 0, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < time.Second || d > keep {
		return 0, fmt.Errorf("since=%s: must be start or between 1s and 120s, for instance 10s", cut(s, maxWord))
	}
	return Window(d), nil
}

// String returns what ParseWindow reads.
func (w Window) String() string {
	if w == 0 {
		return "start"
	}
	return fmt.Sprintf("%ds", int(time.Duration(w).Seconds()))
}

// snapshot is the state of a Collector at one moment, cut to one window. It
// shares nothing that changes; the views are functions of it.
type snapshot struct {
	now     time.Time
	window  Window
	hosts   []netip.Addr
	proxies []proxyState
	// inventory is what the control plane knows of workloads and services.
	inventory *tullev1.ListResponse
}

// proxyState is one record: a proxy attached, lately gone, or, without a
// workload, the totals of those of one identity that were let go.
type proxyState struct {
	id                          mesh.ID
	workload, version, redirect string
	address                     string
	start                       int64
	connected, ended            bool
	heard, gone                 time.Time
	cert                        certificate
	stats                       stats
	endpoints                   []endpoint
	dropped                     uint64
	rows                        []rowState
}

// rowState is a row with its part in the window.
type rowState struct {
	*row
	counts  counts
	parts   []sparse // what latency is the sum of
	latency sparse
	rps     float64
	history *[historySeconds]float64 // requests per second, oldest first; nil: none
}

// snapshot reads the Collector. The inventory may be nil.
func (c *Collector) snapshot(window Window, inventory *tullev1.ListResponse) *snapshot {
	if inventory == nil {
		inventory = &tullev1.ListResponse{}
	}
	s := c.copyState(window, inventory)
	for i := range s.proxies {
		for j := range s.proxies[i].rows {
			row := &s.proxies[i].rows[j]
			row.latency = merge(row.parts)
		}
	}
	slices.SortFunc(s.proxies, func(a, b proxyState) int {
		return cmpStrings(a.id.String(), b.id.String(), a.workload, b.workload)
	})
	return s
}

// copyState is the part of snapshot that holds the lock. Histograms are not
// copied: they never change.
func (c *Collector) copyState(window Window, inventory *tullev1.ListResponse) *snapshot {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	c.sweepLocked(now)
	s := &snapshot{now: now, window: window, hosts: c.config.HostAddresses, inventory: inventory}
	for _, r := range c.records {
		s.proxies = append(s.proxies, r.state(now, window))
	}
	for _, r := range c.retired {
		s.proxies = append(s.proxies, r.state(now, window))
	}
	return s
}

func (r *record) state(now time.Time, window Window) proxyState {
	p := proxyState{
		id: r.id, workload: r.workload, version: r.version, redirect: r.redirect, address: r.address, start: r.start,
		connected: r.session != 0, heard: r.heard, gone: r.gone, ended: r.ended, cert: r.cert, stats: r.stats,
		endpoints: r.endpoints, dropped: r.dropped,
	}
	parts := make(map[*row]*rowState, len(r.rows))
	for _, row := range r.rows {
		parts[row] = &rowState{row: row.clone()}
	}
	r.addHistory(parts, now)
	if window == 0 {
		r.addTotals(parts, now)
	} else {
		r.addWindow(parts, now, time.Duration(window))
	}
	for _, part := range parts {
		p.rows = append(p.rows, *part)
	}
	return p
}

func (r *record) addTotals(parts map[*row]*rowState, now time.Time) {
	span := max(now.Sub(r.created), time.Second).Seconds()
	for _, part := range parts {
		part.counts, part.parts = part.total, []sparse{part.row.latency}
		part.rps = float64(part.total.requests) / span
	}
}

// freshness is how old a proxy's last report may be for rates to be taken over
// the time that its reports cover, rather than up to now.
const freshness = 2500 * time.Millisecond

func (r *record) addWindow(parts map[*row]*rowState, now time.Time, window time.Duration) {
	var first, last time.Time
	for i := range r.window {
		s := &r.window[i]
		if now.Sub(s.end) >= window {
			continue
		}
		if first.IsZero() {
			first = s.start
		}
		last = s.end
		for row, d := range s.deltas {
			part := parts[row]
			part.counts = part.counts.plus(d.counts)
			if len(d.latency) > 0 {
				part.parts = append(part.parts, d.latency)
			}
		}
	}
	if first.IsZero() {
		return
	}
	if now.Sub(last) > freshness {
		last = now
	}
	// A first report after a long silence covers more than the window.
	span := min(max(last.Sub(first), time.Second), window+freshness).Seconds()
	if r.session == 0 {
		span = window.Seconds() // it will not go on like that
	}
	for _, part := range parts {
		part.rps = float64(part.counts.requests) / span
	}
}

// addHistory spreads each second's requests over the time that its reports
// cover, so that their jitter does not show. The newest point is the last
// whole second before the one that is now being reported.
func (r *record) addHistory(parts map[*row]*rowState, now time.Time) {
	begin := now.Truncate(time.Second).Add(-(historySeconds + 1) * time.Second)
	for i := range r.window {
		s := &r.window[i]
		from, to := s.start.Sub(begin).Seconds(), s.end.Sub(begin).Seconds()
		if to <= 0 {
			continue
		}
		for row, d := range s.deltas {
			part := parts[row]
			if part.history == nil {
				part.history = new([historySeconds]float64)
			}
			spread(part.history, from, to, float64(d.counts.requests))
		}
	}
}

// spread adds n evenly over [from, to) to bins of width 1; what lies outside
// of the bins is lost.
func spread(bins *[historySeconds]float64, from, to, n float64) {
	to = max(to, from+0.001)
	density := n / (to - from)
	for i := max(int(from), 0); i < len(bins) && float64(i) < to; i++ {
		overlap := min(to, float64(i+1)) - max(from, float64(i))
		if overlap > 0 {
			bins[i] += density * overlap
		}
	}
}

// cmpStrings compares pairs of strings in order of importance.
func cmpStrings(pairs ...string) int {
	for i := 0; i+1 < len(pairs); i += 2 {
		if c := strings.Compare(pairs[i], pairs[i+1]); c != 0 {
			return c
		}
	}
	return 0
}
