package dashboard

import (
	"fmt"
	"slices"
	"strings"
	"time"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
	"github.com/tulle-mesh/tulle/mesh"
)

// Window is how far back figures reach; 0 is since the beginning.
type Window time.Duration

const (
	// DefaultWindow is what is shown unless something else is asked for.
	DefaultWindow = Window(5 * time.Minute)
	longestWindow = Window(time.Hour)
	// historySlices is the length of a sparkline: five minutes.
	historySlices = 60
)

// ParseWindow reads "start", or a duration from 5s to 1h. Empty is DefaultWindow.
func ParseWindow(s string) (Window, error) {
	switch s {
	case "":
		return DefaultWindow, nil
	case "start":
		return 0, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < slice || d > time.Duration(longestWindow) {
		return 0, fmt.Errorf("range=%s: must be a duration from 5s to 1h, such as 10s, 5m, 15m or 1h, or start", cut(s, maxWord))
	}
	return Window(d), nil
}

// String returns what ParseWindow reads, in its shortest spelling.
func (w Window) String() string {
	if w == 0 {
		return "start"
	}
	s := time.Duration(w).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// snapshot is the state of a Collector at one moment, cut to one window. It
// shares nothing that changes; the views are functions of it.
type snapshot struct {
	now     time.Time
	began   time.Time
	window  Window
	span    time.Duration // that the window's figures cover
	columns []*column     // of the window
	newest  int64         // slice that is closed
	recent  []*column     // of the sparklines
	keys    []*seriesKey  // by a series' number
	flows   []flowState
	proxies []proxyState
	// inventory is what the control plane knows of workloads and services.
	inventory *tullev1.ListResponse
	coverage  Coverage
	changes   []Change
}

// flowState is a flow at the snapshot's moment. Its histograms are not copies:
// they never change.
type flowState struct {
	edge     edgeRow
	place    replicaPlace
	total    counts
	open     uint64
	outcomes tally[string]
	statuses tally[uint32]
	parts    []amount // not in a column yet; if the window is "start": all there is
}

// proxyState is one record: a proxy attached, lately gone, or, without a
// workload, the totals of those of one identity that were let go.
type proxyState struct {
	id                          mesh.ID
	service                     string
	workload, version, redirect string
	address                     string
	start                       int64
	connected, ended            bool
	heard, gone                 time.Time
	cert                        certificate
	stats                       stats
	endpoints                   []endpoint
	verdicts                    []verdict
	dropped                     uint64
	rows                        int
	spoken                      []edgeKey // inbound
}

// Coverage tells what the history has.
type Coverage struct {
	Since       string  `json:"since"`
	Step        float64 `json:"step_s"`
	CoarseUntil string  `json:"coarse_until"`
	Bytes       int     `json:"bytes"`
	Series      int     `json:"series"`
	Other       uint64  `json:"other"`
}

// snapshot reads the Collector. The inventory may be nil.
func (c *Collector) snapshot(window Window, inventory *tullev1.ListResponse) *snapshot {
	if inventory != nil {
		c.inventory.Store(inventory)
	}
	s := c.copyState(window)
	slices.SortFunc(s.proxies, func(a, b proxyState) int {
		return cmpStrings(a.id.String(), b.id.String(), a.workload, b.workload)
	})
	return s
}

// copyState is the part of snapshot that holds the lock.
func (c *Collector) copyState(window Window) *snapshot {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	c.advanceLocked(now, true)
	h := c.history
	s := &snapshot{
		now: now, began: c.began, window: window, inventory: c.inventory.Load(), keys: slices.Clone(h.keys), newest: c.open.oldest - 1,
		recent: h.since(sliceStart(c.open.oldest - historySlices)), changes: c.changes.newest(), coverage: c.coverageLocked(),
	}
	from := int64(0)
	if window == 0 {
		s.span = now.Sub(c.firstStartLocked())
	} else {
		from = sliceAt(now.Add(-time.Duration(window)))
		s.columns = h.since(sliceStart(from))
		s.span = c.spanLocked(s.columns, now)
	}
	s.span = max(s.span, time.Second)
	all := c.allLocked()
	t := newTeller(all, c.config.HostAddresses, s.inventory)
	for _, r := range all {
		s.proxies = append(s.proxies, r.state())
		s.flows = r.tell(t, s.flows, window == 0)
	}
	if window == 0 {
		return s
	}
	for _, p := range c.open.pending {
		for i, part := range p.parts {
			if flow := part.row.living().flow; p.slice >= from && flow >= 0 {
				s.flows[flow].parts = append(s.flows[flow].parts, p.amount(i))
			}
		}
	}
	return s
}

// coverageLocked says what the history has.
func (c *Collector) coverageLocked() Coverage {
	h := c.history
	v := Coverage{Since: stamp(c.began), Step: slice.Seconds(), CoarseUntil: stamp(h.coarseUntil()), Bytes: h.bytes, Series: len(h.ids), Other: h.missed}
	if len(h.columns) > 0 && h.columns[0].first != sliceAt(c.began) {
		v.Since = stamp(h.columns[0].start())
	}
	return v
}

// spanLocked returns the time that the columns and what is pending cover.
func (c *Collector) spanLocked(columns []*column, now time.Time) (d time.Duration) {
	since := func(from int64) time.Time {
		if start := sliceStart(from); c.began.Before(start) || from != sliceAt(c.began) {
			return start
		}
		return c.began
	}
	for _, column := range columns {
		d += column.end().Sub(since(column.first))
	}
	return d + max(c.coveredLocked(now).Sub(since(c.open.oldest)), 0)
}

// coveredLocked returns up to when reports have come in: the mean over all
// proxies, whose reports come at different times within a second.
func (c *Collector) coveredLocked(now time.Time) time.Time {
	var behind, n time.Duration
	for _, r := range c.records {
		if late := now.Sub(r.heard); r.session != 0 && !r.heard.IsZero() && late < 3*c.pace {
			behind += late
			n++
		}
	}
	if n == 0 {
		return now
	}
	return now.Add(-behind / n)
}

// firstStartLocked returns since when totals are counted.
func (c *Collector) firstStartLocked() time.Time {
	first := c.began
	for _, r := range c.records {
		if start := time.UnixMilli(r.start); r.start > 0 && start.Before(first) {
			first = start
		}
	}
	return first
}

func (r *record) state() proxyState {
	p := proxyState{
		id: r.id, service: r.service, workload: r.workload, version: r.version, redirect: r.redirect, address: r.address, start: r.start,
		connected: r.connected(), heard: r.heard, gone: r.gone, ended: r.ended, cert: r.cert, stats: r.stats,
		endpoints: slices.Clone(r.endpoints), verdicts: slices.Clone(r.verdicts), dropped: r.dropped, rows: len(r.rows),
	}
	for _, row := range r.rows {
		if key := row.key.Value(); key.inbound && len(p.spoken) < maxVerdicts {
			p.spoken = append(p.spoken, key)
		}
	}
	return p
}

// tell appends the record's flows, with all that was ever counted if that is
// wanted; else what is pending is still to come.
func (r *record) tell(t *teller, flows []flowState, whole bool) []flowState {
	var latencies map[*row][]packed
	if whole {
		latencies = r.latencies()
	}
	for _, row := range r.rows {
		row.flow = -1
		f, ok := t.tell(row)
		if !ok {
			continue
		}
		row.flow = len(flows)
		state := flowState{edge: f.edge, place: f.place, total: row.total, open: row.open,
			outcomes: slices.Clone(row.outcomes), statuses: slices.Clone(row.statuses)}
		if whole {
			state.parts = []amount{{counts: row.total}}
			for _, l := range latencies[row] {
				state.parts = append(state.parts, amount{latency: l})
			}
		}
		flows = append(flows, state)
	}
	return flows
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
