package dashboard

import (
	"cmp"
	"slices"
	"time"

	"github.com/tulle-mesh/tulle/mesh"
)

const (
	// gone records are kept for this long, so that a proxy that comes back goes on.
	keepGone = 2 * time.Minute
	// overflowFactor says how many edges beyond Config.MaxEdges are still
	// counted, exactly, in the row "other". What is beyond those is dropped.
	overflowFactor = 4
	// other is the name that counts for all beyond a limit.
	other = "other"
)

// record is all that is known from one proxy: the pair of its proved identity
// and the workload name it gave. It survives the proxy's restarts. The
// Collector's mutex guards it.
type record struct {
	id       mesh.ID
	name     string // the id's
	workload string
	version  string
	redirect string
	address  string // where it connects from: its workload's address
	start    int64  // of the proxy, Unix milliseconds
	session  uint64 // the stream that feeds it; 0: gone
	created  time.Time
	attached time.Time
	heard    time.Time // of the last report, zero before the first of this session
	counted  time.Time // up to when its counters are known; zero: nobody knows
	gone     time.Time
	ended    bool // it is gone because it said so
	cert     certificate
	stats    stats
	verdicts []verdict // replaced whole, as are endpoints

	edges     map[edgeKey]*edge
	rows      map[edgeKey]*row
	endpoints []endpoint
	dropped   uint64 // readings beyond every limit
}

// stats is what a proxy last said about itself.
type stats struct {
	rss         uint64
	connections uint32
	watched     uint32
}

// edge is where a proxy's cumulative counters stood in its last report.
type edge struct {
	base     counts
	open     uint64
	outcomes tally[string]
	statuses tally[uint32]
	latency  packed
	row      *row
}

// row is what an edge has come to since the record began, over all restarts of
// its proxy. Edges beyond the limit share one row.
type row struct {
	key      edgeKey
	total    counts
	open     uint64
	outcomes tally[string]
	statuses tally[uint32]
	past     packed // latency of the proxy's earlier lives; that of the present one is in its edges
	pending  []part // of slices that are not closed, oldest first
}

// part is what was added to a row in one slice.
type part struct {
	slice int64
	amount
}

// tally counts by name, ascending.
type tally[K cmp.Ordered] []tallied[K]

type tallied[K cmp.Ordered] struct {
	key K
	n   uint64
}

func (t tally[K]) find(key K) (int, bool) {
	return slices.BinarySearchFunc(t, key, func(e tallied[K], key K) int { return cmp.Compare(e.key, key) })
}

func (t tally[K]) of(key K) uint64 {
	if i, ok := t.find(key); ok {
		return t[i].n
	}
	return 0
}

// plus adds to what may be counted under at most limit names; further names are lost.
func (t tally[K]) plus(key K, n uint64, limit int) tally[K] {
	i, ok := t.find(key)
	switch {
	case ok:
		t[i].n = add(t[i].n, n)
	case len(t) < limit:
		t = slices.Insert(t, i, tallied[K]{key, n})
	}
	return t
}

// advance adds to the total what now has beyond the base, which becomes now.
func (t tally[K]) advance(base *tally[K], now map[K]uint64, limit int) tally[K] {
	for key, n := range now {
		t = t.plus(key, sub(n, base.of(key)), limit)
	}
	*base = (*base)[:0]
	for _, e := range t { // the base of what is not counted is not needed
		if n, ok := now[e.key]; ok {
			*base = append(*base, tallied[K]{e.key, n})
		}
	}
	return t
}

func newRecord(id mesh.ID, workload string, now time.Time) *record {
	return &record{id: id, name: id.String(), workload: workload, created: now, edges: map[edgeKey]*edge{}, rows: map[edgeKey]*row{}}
}

// rebase forgets where the counters stood: the proxy began anew.
func (r *record) rebase() {
	for _, e := range r.edges {
		e.row.past = e.row.past.plus(e.latency)
		e.row.open = 0
	}
	clear(r.edges)
}

// interval is the time that a report covers.
type interval struct {
	from, to time.Time
	oldest   int64 // slice that may still be added to
	unplaced bool  // nobody knows when that was: it counts for totals only
}

// take adds a report. The limit is Config.MaxEdges.
func (r *record) take(readings []reading, at interval, limit int) {
	for i := range readings {
		e := r.edges[readings[i].key]
		if e == nil {
			if e = r.addEdge(readings[i].key, limit); e == nil {
				r.dropped++
				continue
			}
		}
		e.advance(&readings[i], at)
	}
	r.heard = at.to
}

func (r *record) addEdge(key edgeKey, limit int) *edge {
	if len(r.edges) >= limit*(1+overflowFactor) {
		return nil
	}
	e := &edge{row: r.rowFor(key, limit)}
	r.edges[key] = e
	return e
}

func (r *record) rowFor(key edgeKey, limit int) *row {
	if r.rows[key] == nil && len(r.rows) >= limit {
		key = edgeKey{inbound: key.inbound, service: other, security: key.security}
	}
	if r.rows[key] == nil {
		r.rows[key] = &row{key: key}
	}
	return r.rows[key]
}

// advance adds what the reading has beyond the edge's base to its row. It takes
// the reading over.
func (e *edge) advance(reading *reading, at interval) {
	row, added := e.row, reading.counts.since(e.base)
	durations := reading.latency.since(e.latency)
	row.total = row.total.plus(added)
	row.open = add(sub(row.open, e.open), reading.open)
	row.outcomes = row.outcomes.advance(&e.outcomes, reading.outcomes, maxOutcomes)
	row.statuses = row.statuses.advance(&e.statuses, reading.statuses, maxStatuses)
	e.base, e.open = reading.counts, reading.open
	if len(durations) > 0 || len(reading.latency) == 0 {
		e.latency = reading.latency.pack()
	}
	if !at.unplaced {
		row.place(added, durations, at)
	}
}

// place adds to the slices that the interval covers, to each its share.
func (r *row) place(added counts, durations sparse, at interval) {
	last, from := max(sliceAt(at.to), at.oldest), at.from
	if lost := sliceStart(at.oldest).Sub(from); lost > longestGap { // when the stream was broken for long
		share := float64(lost) / float64(at.to.Sub(from))
		_, added = added.split(share)
		_, durations = durations.split(share)
	}
	for n := max(sliceAt(from), at.oldest); n < last; n++ {
		if start := sliceStart(n); from.Before(start) {
			from = start
		}
		share := float64(sliceStart(n+1).Sub(from)) / float64(at.to.Sub(from))
		var now counts
		now, added = added.split(share)
		var sooner sparse
		sooner, durations = durations.split(share)
		r.addPart(n, amount{now, sooner.pack()})
	}
	r.addPart(last, amount{added, durations.pack()})
}

func (r *row) addPart(n int64, a amount) {
	if a.empty() {
		return
	}
	i := len(r.pending)
	for i > 0 && r.pending[i-1].slice >= n {
		i--
	}
	if i == len(r.pending) || r.pending[i].slice != n {
		r.pending = slices.Insert(r.pending, i, part{slice: n})
	}
	r.pending[i].amount = r.pending[i].plus(a)
}

// takePart removes what is pending of slices up to n and returns it.
func (r *row) takePart(n int64) (a amount) {
	i := 0
	for ; i < len(r.pending) && r.pending[i].slice <= n; i++ {
		a = a.plus(r.pending[i].amount)
	}
	r.pending = slices.Delete(r.pending, 0, i)
	return a
}

// end closes the record's session.
func (r *record) end(now time.Time, said bool) {
	r.session, r.gone, r.ended = 0, now, said
	r.endpoints = nil
	for _, e := range r.edges {
		e.open = 0
	}
	for _, row := range r.rows {
		row.open = 0
	}
}

// fold adds the totals of a record that is let go.
func (r *record) fold(gone *record, limit int) {
	if gone.created.Before(r.created) {
		r.created = gone.created
	}
	gone.rebase()
	for _, from := range gone.rows {
		to := r.rowFor(from.key, limit)
		for _, p := range from.pending {
			to.addPart(p.slice, p.amount)
		}
		to.total = to.total.plus(from.total)
		to.past = to.past.plus(from.past)
		for _, t := range from.outcomes {
			to.outcomes = to.outcomes.plus(t.key, t.n, maxOutcomes)
		}
		for _, t := range from.statuses {
			to.statuses = to.statuses.plus(t.key, t.n, maxStatuses)
		}
	}
}

// latencies returns the parts of each row's whole latency.
func (r *record) latencies() map[*row][]packed {
	parts := make(map[*row][]packed, len(r.rows))
	for _, row := range r.rows {
		if len(row.past) > 0 {
			parts[row] = append(parts[row], row.past)
		}
	}
	for _, e := range r.edges {
		if len(e.latency) > 0 {
			parts[e.row] = append(parts[e.row], e.latency)
		}
	}
	return parts
}
