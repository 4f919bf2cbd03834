package dashboard

import (
	"maps"
	"time"

	"github.com/tulle-mesh/tulle/mesh"
)

const (
	// keep is how far back the window of a record reaches.
	keep = 120 * time.Second
	// maxCells bounds the histogram cells in one record's window: 2 MiB. A
	// proxy that would need more (none does) sees a shorter window.
	maxCells = 128 << 10
	// overflowFactor says how many edges beyond Config.MaxEdges are still
	// counted, exactly, in the row "other". What is beyond those is dropped.
	overflowFactor = 4
	// other is the service that edges beyond the limit count for.
	other = "other"
)

// record is all that is known from one proxy: the pair of its proved identity
// and the workload name it gave. It survives the proxy's restarts. The
// Collector's mutex guards it.
type record struct {
	id       mesh.ID
	workload string
	version  string
	redirect string
	address  string // where it connects from: its workload's address
	start    int64  // of the proxy, Unix milliseconds
	session  uint64 // the stream that feeds it; 0: gone
	created  time.Time
	attached time.Time
	heard    time.Time // of the last report, zero before the first of this session
	gone     time.Time
	ended    bool // it is gone because it said so
	cert     certificate
	stats    stats

	edges     map[edgeKey]*edge
	rows      map[edgeKey]*row
	endpoints []endpoint // replaced whole, never changed
	window    []second   // oldest first
	cells     int        // in window
	dropped   uint64     // readings beyond every limit
}

// stats is what a proxy last said about itself.
type stats struct {
	rss         uint64
	connections uint32
	watched     uint32
}

// edge is where a proxy's cumulative counters stood in its last report.
type edge struct {
	base reading
	row  *row
}

// row is what an edge has come to since the record began, over all restarts of
// its proxy. Edges beyond the limit share one row.
type row struct {
	key      edgeKey
	total    counts
	latency  sparse
	open     uint64
	outcomes map[string]uint64
	statuses map[uint32]uint64
}

// second is what one second's reports added. They cover the time from start to
// end, which a late report stretches.
type second struct {
	unix       int64
	start, end time.Time
	deltas     map[*row]delta
}

type delta struct {
	counts  counts
	latency sparse
}

func newRecord(id mesh.ID, workload string, now time.Time) *record {
	return &record{id: id, workload: workload, created: now, edges: map[edgeKey]*edge{}, rows: map[edgeKey]*row{}}
}

// rebase forgets where the counters stood: the proxy began anew.
func (r *record) rebase() {
	clear(r.edges)
	for _, row := range r.rows {
		row.open = 0
	}
}

// take adds a report received at now. The limit is Config.MaxEdges.
func (r *record) take(readings []reading, now time.Time, limit int) {
	s := r.secondAt(now)
	for i := range readings {
		reading := &readings[i]
		e := r.edges[reading.key]
		if e == nil {
			if e = r.addEdge(reading.key, limit); e == nil {
				r.dropped++
				continue
			}
		}
		r.advance(e, reading, s)
	}
	r.heard = now
	r.trim(now)
}

func (r *record) addEdge(key edgeKey, limit int) *edge {
	if len(r.edges) >= limit*(1+overflowFactor) {
		return nil
	}
	e := &edge{base: reading{key: key}, row: r.rowFor(key, limit)}
	r.edges[key] = e
	return e
}

func (r *record) rowFor(key edgeKey, limit int) *row {
	if r.rows[key] == nil && len(r.rows) >= limit {
		key = edgeKey{inbound: key.inbound, service: other, security: key.security}
	}
	if r.rows[key] == nil {
		r.rows[key] = &row{key: key, outcomes: map[string]uint64{}, statuses: map[uint32]uint64{}}
	}
	return r.rows[key]
}

// advance adds what the reading has beyond the edge's base to its row and to
// the second's deltas. It takes the reading over.
func (r *record) advance(e *edge, reading *reading, s *second) {
	d := delta{reading.counts.since(e.base.counts), reading.latency.since(e.base.latency)}
	row := e.row
	row.total = row.total.plus(d.counts)
	row.latency = row.latency.plus(d.latency)
	row.open = add(sub(row.open, e.base.open), reading.open)
	grow(row.outcomes, e.base.outcomes, reading.outcomes, maxOutcomes)
	grow(row.statuses, e.base.statuses, reading.statuses, maxStatuses)
	maps.DeleteFunc(reading.statuses, func(status uint32, _ uint64) bool { _, kept := row.statuses[status]; return !kept })
	e.base = *reading
	if d.counts == (counts{}) && len(d.latency) == 0 {
		return
	}
	before := s.deltas[row]
	after := delta{before.counts.plus(d.counts), before.latency.plus(d.latency)}
	s.deltas[row] = after
	r.cells += len(after.latency) - len(before.latency)
}

// grow adds to total what now has beyond base, for at most limit keys.
func grow[K comparable](total, base, now map[K]uint64, limit int) {
	for k, n := range now {
		if _, known := total[k]; known || len(total) < limit {
			total[k] = add(total[k], sub(n, base[k]))
		}
	}
}

func (r *record) secondAt(now time.Time) *second {
	start := r.heard
	if start.IsZero() || start.Before(r.attached) {
		start = r.attached
	}
	if n := len(r.window); n > 0 && r.window[n-1].unix >= now.Unix() { // a clock that stepped back stays in the newest
		r.window[n-1].end = now
		return &r.window[n-1]
	}
	r.window = append(r.window, second{unix: now.Unix(), start: start, end: now, deltas: map[*row]delta{}})
	return &r.window[len(r.window)-1]
}

// trim lets go of what is older than the window, and of the oldest seconds
// while there are too many cells.
func (r *record) trim(now time.Time) {
	drop := 0
	for drop < len(r.window) && (now.Sub(r.window[drop].end) > keep || (r.cells > maxCells && drop < len(r.window)-1)) {
		for _, d := range r.window[drop].deltas {
			r.cells -= len(d.latency)
		}
		r.window[drop] = second{}
		drop++
	}
	if drop == 0 {
		return
	}
	n := copy(r.window, r.window[drop:])
	clear(r.window[n:])
	r.window = r.window[:n]
}

// end closes the record's session.
func (r *record) end(now time.Time, said bool) {
	r.session, r.gone, r.ended = 0, now, said
	r.endpoints = nil
	for _, row := range r.rows {
		row.open = 0
	}
}

// fold adds the totals of a record that is let go.
func (r *record) fold(gone *record, limit int) {
	if gone.created.Before(r.created) {
		r.created = gone.created
	}
	for _, from := range gone.rows {
		to := r.rowFor(from.key, limit)
		to.total = to.total.plus(from.total)
		to.latency = to.latency.plus(from.latency)
		grow(to.outcomes, nil, from.outcomes, maxOutcomes)
		grow(to.statuses, nil, from.statuses, maxStatuses)
	}
}

func (r *row) clone() *row {
	c := *r
	c.outcomes, c.statuses = maps.Clone(r.outcomes), maps.Clone(r.statuses)
	return &c
}
