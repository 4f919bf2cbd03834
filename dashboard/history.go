package dashboard

import (
	"slices"
	"time"
)

const (
	// keepSlices is how many slices are kept: an hour.
	keepSlices = int64(time.Hour / slice)
	// coarseSpan is what old slices are made into where memory is short.
	coarseSpan = int64(time.Minute / slice)
)

// savings are what is done where memory is short, one after the other until it
// is enough: slices older than some are merged into longer ones. Percentiles
// stay exact, only the time of what was counted becomes vaguer.
var savings = []struct{ olderThan, span int64 }{
	{int64(10 * time.Minute / slice), coarseSpan},
	{int64(2 * time.Minute / slice), coarseSpan},
	{int64(10 * time.Minute / slice), 10 * coarseSpan},
	{int64(2 * time.Minute / slice), 10 * coarseSpan},
}

// seriesKey names what is kept apart over time: an edge (a caller of a
// service) or a replica of a service. What services come to is the sum of
// their edges.
type seriesKey struct {
	edge    edgeRow
	replica replicaPlace // of an edge: zero
}

// replicaPlace is a replica as proxies tell of it.
type replicaPlace struct{ service, workload, address string }

func (k seriesKey) isEdge() bool { return k.replica == replicaPlace{} }

// overflow returns the series that counts for k where there is no room for it:
// all of the same service, then all.
func (k seriesKey) overflow(level int) seriesKey {
	service := k.edge.service
	if !k.isEdge() {
		service = k.replica.service
	}
	if level > 0 {
		service = other
	}
	if k.isEdge() {
		return seriesKey{edge: edgeRow{source: other, kind: kindAddress, service: service, serviceKind: k.edge.serviceKind, security: k.edge.security}}
	}
	return seriesKey{replica: replicaPlace{service: service, workload: other}}
}

// history keeps what each slice of the last hour added to each series, within
// a budget of bytes: where that is short, old slices are merged into longer
// ones, and after that let go. Collector.mu guards it.
type history struct {
	columns []*column // oldest first, without overlap
	bytes   int       // of columns
	budget  int

	ids    map[seriesKey]uint32
	keys   []*seriesKey // of each series, by its number; nil: free
	newest []int64      // slice that has something of it
	free   []uint32
	limit  int    // of series, those for what overflows not counted
	missed uint64 // amounts that counted for an overflow
	swept  int64  // slice
	writer columnWriter
}

func newHistory(budget, limit int) *history {
	return &history{budget: budget, limit: limit, ids: map[seriesKey]uint32{}}
}

// id returns the number of a series, a new one if need be.
func (h *history) id(wanted seriesKey, now int64) uint32 {
	rooms := [...]int{h.limit, h.limit + h.limit/8}
	for key, level := wanted, 0; ; level++ {
		if id, ok := h.ids[key]; ok {
			h.newest[id] = now
			return id
		}
		if level == 0 && len(h.ids) >= h.limit && h.swept != now {
			h.sweep(now)
			h.swept = now
		}
		if level == len(rooms) || len(h.ids) < rooms[level] {
			return h.addSeries(key, now)
		}
		if level == 0 {
			h.missed++
		}
		key = wanted.overflow(level)
	}
}

func (h *history) addSeries(key seriesKey, now int64) uint32 {
	var id uint32
	if n := len(h.free); n > 0 {
		id, h.free = h.free[n-1], h.free[:n-1]
	} else {
		id = uint32(len(h.keys))
		h.keys, h.newest = append(h.keys, nil), append(h.newest, 0)
	}
	h.keys[id], h.newest[id] = &key, now
	h.ids[key] = id
	return id
}

// sweep lets go of the series of which no column, nor the one that is being
// made, has anything any more.
func (h *history) sweep(oldest int64) {
	if len(h.columns) > 0 {
		oldest = h.columns[0].first
	}
	for id, key := range h.keys {
		if key != nil && h.newest[id] < oldest {
			delete(h.ids, *key)
			h.keys[id] = nil
			h.free = append(h.free, uint32(id))
		}
	}
}

// push appends the next column, and makes room for it.
func (h *history) push(c *column) {
	h.columns = append(h.columns, c)
	h.bytes += c.bytes()
	newest := c.first + c.span
	for h.columns[0].first+h.columns[0].span <= newest-keepSlices {
		h.drop(1)
	}
	for h.bytes > h.budget && len(h.columns) > 1 {
		if !h.save(newest) {
			h.drop(1)
		}
	}
}

// save does the first of the savings that there is something to be had from.
func (h *history) save(newest int64) bool {
	for _, s := range savings {
		if h.coarsen(newest-s.olderThan, s.span) {
			return true
		}
	}
	return false
}

// drop lets go of the oldest columns. Snapshots share the old array.
func (h *history) drop(n int) {
	for _, c := range h.columns[:n] {
		h.bytes -= c.bytes()
	}
	h.columns = slices.Clone(h.columns[n:])
}

// coarsen merges the oldest columns within one span of slices that ended before
// a slice, and returns false if there are none.
func (h *history) coarsen(before, span int64) bool {
	group := func(c *column) int64 { return c.first / span }
	for from := 0; from < len(h.columns); from++ {
		first := h.columns[from]
		if (group(first)+1)*span > before {
			return false
		}
		to := from + 1
		for to < len(h.columns) && group(h.columns[to]) == group(first) && h.columns[to].first == h.columns[to-1].first+h.columns[to-1].span {
			to++
		}
		if to == from+1 {
			continue
		}
		merged := h.writer.merge(h.columns[from:to])
		for _, c := range h.columns[from:to] {
			h.bytes -= c.bytes()
		}
		h.bytes += merged.bytes()
		h.columns = slices.Concat(h.columns[:from], []*column{merged}, h.columns[to:])
		return true
	}
	return false
}

// since returns the columns that reach beyond a time, which the caller may
// keep: they never change.
func (h *history) since(t time.Time) []*column {
	for i, c := range h.columns {
		if c.end().After(t) {
			return h.columns[i:len(h.columns):len(h.columns)]
		}
	}
	return nil
}

// coarseUntil returns the end of the newest column that was merged.
func (h *history) coarseUntil() (t time.Time) {
	for _, c := range h.columns {
		if c.span > 1 {
			t = c.end()
		}
	}
	return t
}
