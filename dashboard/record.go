package dashboard

import (
	"cmp"
	"slices"
	"strings"
	"time"
	"unique"

	"github.com/tulle-mesh/tulle/mesh"
)

const (
	// gone records are kept for this long, so that a proxy that comes back goes on.
	keepGone = 2 * time.Minute
	// comeBack is how long a proxy whose stream has ended without a word is not
	// missed. All streams end so: their connections by age, once an hour, and those
	// that another replica of the control plane took when that one goes. Proxies
	// attach again within some 2 s.
	comeBack = 5 * time.Second
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
	service  string // what its workload belongs to
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
	missed   bool // it is gone, did not say so, and has not come back
	cert     certificate
	stats    stats
	verdicts []verdict

	edges     map[label]*edge
	numbered  []*edge // as this session numbers them; nil: dropped
	rows      map[label]*row
	endpoints []endpoint
	dropped   uint64 // readings beyond every limit
}

// label is an edgeKey that all proxies with the same kind of traffic share.
type label = unique.Handle[edgeKey]

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
	latency  packed // written over with each report
	row      *row
}

// row is what an edge has come to since the record began, over all restarts of
// its proxy. Edges beyond the limit share one row.
type row struct {
	record   *record
	key      label
	total    counts
	open     uint64
	outcomes tally[string]
	statuses tally[uint32]
	past     packed // latency of the proxy's earlier lives; that of the present one is in its edges
	heir     *row   // that counts for it since its record was let go
	flow     int    // its place in the snapshot that is being made, -1: none
	told     closing
}

// closing is for which series a row counts in the slice that is being closed.
type closing struct {
	slice   int64
	ids     [2]uint32
	n       int
	service string // that counts it besides, for what is noticed; "": none
}

// living is the row that counts for r now.
func (r *row) living() *row {
	for r.heir != nil {
		r = r.heir
	}
	return r
}

// tally counts by name, ascending.
type tally[K cmp.Ordered] []tallied[K]

type tallied[K cmp.Ordered] struct {
	key K
	n   uint64
}

func (t tallied[K]) compare(o tallied[K]) int { return cmp.Compare(t.key, o.key) }

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
func (t tally[K]) advance(base *tally[K], now tally[K], limit int) tally[K] {
	for _, e := range now {
		t = t.plus(e.key, sub(e.n, base.of(e.key)), limit)
	}
	*base = (*base)[:0]
	for _, e := range now {
		if _, counted := t.find(e.key); counted { // the base of what is not is not needed
			*base = append(*base, e)
		}
	}
	return t
}

func newRecord(id mesh.ID, workload string, now time.Time) *record {
	return &record{id: id, name: id.String(), service: id.Account, workload: workload, created: now, edges: map[label]*edge{}, rows: map[label]*row{}}
}

// belongsTo returns the name under which people know a proxy's workload: what it says
// itself, if that is in its own namespace, else its account. Accounts say too little in
// Kubernetes, where most pods have the one named "default".
func belongsTo(id mesh.ID, service string) string {
	if mesh.CheckDottedName(service) != nil || !strings.HasSuffix(service, "."+id.Namespace) {
		return id.Account
	}
	return service
}

// rebase forgets where the counters stood: the proxy began anew.
func (r *record) rebase() {
	for _, e := range r.edges {
		e.row.past = e.row.past.plus(e.latency)
		e.row.open = 0
	}
	clear(r.edges)
	r.numbered = nil
}

// interval is the time that a report covers.
type interval struct {
	from, to time.Time
	unplaced bool // nobody knows when that was: it counts for totals only
}

// take adds a report. The limit is Config.MaxEdges.
func (r *record) take(readings []reading, at interval, open *openSlices, limit int) {
	for i := range readings {
		e := r.edgeOf(&readings[i], limit)
		if e == nil {
			r.dropped++
			continue
		}
		e.advance(&readings[i], at, open)
	}
	r.heard = at.to
}

// edgeOf finds the edge of a reading, or begins one; nil if there are too many.
func (r *record) edgeOf(reading *reading, limit int) *edge {
	number := int(reading.number)
	if !reading.hasKey() {
		if number > len(r.numbered) {
			return nil
		}
		return r.numbered[number-1]
	}
	key := unique.Make(reading.key)
	e := r.edges[key]
	if e == nil && len(r.edges) < limit*(1+overflowFactor) {
		e = &edge{row: r.rowFor(key, limit)}
		r.edges[key] = e
	}
	if number > len(r.numbered) {
		r.numbered = append(r.numbered, make([]*edge, number-len(r.numbered))...)
	}
	if number > 0 {
		r.numbered[number-1] = e
	}
	return e
}

func (r *record) rowFor(key label, limit int) *row {
	if r.rows[key] == nil && len(r.rows) >= limit {
		k := key.Value()
		key = unique.Make(edgeKey{inbound: k.inbound, service: other, security: k.security})
	}
	if r.rows[key] == nil {
		r.rows[key] = &row{record: r, key: key}
	}
	return r.rows[key]
}

// advance adds what the reading has beyond the edge's base to its row.
func (e *edge) advance(reading *reading, at interval, open *openSlices) {
	row, added := e.row, reading.counts.since(e.base)
	row.total = row.total.plus(added)
	row.open = add(sub(row.open, e.open), reading.open)
	row.outcomes = row.outcomes.advance(&e.outcomes, reading.outcomes, maxOutcomes)
	row.statuses = row.statuses.advance(&e.statuses, reading.statuses, maxStatuses)
	e.base, e.open = reading.counts, reading.open
	durations := open.scratch.advance(&e.latency, reading.latency)
	if !at.unplaced {
		open.place(row, added, durations, at)
	}
}

// connected tells whether the proxy is attached, or was a moment ago and did not
// say that it would go.
func (r *record) connected() bool {
	return r.session != 0 || !r.gone.IsZero() && !r.ended && !r.missed
}

// end closes the record's session.
func (r *record) end(now time.Time, said bool) {
	r.session, r.gone, r.ended = 0, now, said
	r.endpoints, r.numbered = nil, nil
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
		from.heir = to
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

// latencies returns the parts of each row's whole latency. They are copies where
// they change.
func (r *record) latencies() map[*row][]packed {
	parts := make(map[*row][]packed, len(r.rows))
	for _, row := range r.rows {
		if len(row.past) > 0 {
			parts[row] = append(parts[row], row.past)
		}
	}
	for _, e := range r.edges {
		if len(e.latency) > 0 {
			parts[e.row] = append(parts[e.row], slices.Clone(e.latency))
		}
	}
	return parts
}
