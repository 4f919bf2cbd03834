package dashboard

import (
	"encoding/binary"
	"maps"
	"slices"
	"time"

	"github.com/tulle-mesh/tulle/mesh"
)

// slice is the time that figures are kept apart by.
const slice = 5 * time.Second

// sliceAt returns the number of the slice that a time is in.
func sliceAt(t time.Time) int64 { return t.Unix() / int64(slice/time.Second) }

// sliceStart returns when a slice begins.
func sliceStart(n int64) time.Time { return time.Unix(n*int64(slice/time.Second), 0) }

// coveredSeconds is how much of a slice was counted, of the one in which the
// Collector began only a part.
func coveredSeconds(n int64, began time.Time) float64 {
	if n != sliceAt(began) {
		return slice.Seconds()
	}
	return max(sliceStart(n+1).Sub(began).Seconds(), 1)
}

// amount is what was counted in a time: of a row, or of a series.
type amount struct {
	counts  counts
	latency packed
}

func (a amount) plus(b amount) amount {
	return amount{a.counts.plus(b.counts), a.latency.plus(b.latency)}
}

// column holds what one span of time added to every series, as bytes: for each
// series that has anything, ascending, the distance of its number from the last
// one's, the length of its amount, and the amount. It is immutable. One
// allocation for a slice of all series, whose oldest is let go whole, is what
// makes an hour of thousands of series fit.
type column struct {
	first int64 // slice
	span  int64 // slices
	data  []byte
	marks []mark
}

// mark is where the search for a series may begin.
type mark struct{ id, offset uint32 }

const (
	markEvery      = 16
	columnOverhead = 80 // bytes of a column without its data
)

func (c *column) bytes() int       { return len(c.data) + 8*len(c.marks) + columnOverhead }
func (c *column) start() time.Time { return sliceStart(c.first) }
func (c *column) end() time.Time   { return sliceStart(c.first + c.span) }

// Flags of an amount.
const (
	hasFailures = 1 << iota
	hasBytes
	hasRequests // else there are as many as the histogram counts
)

// appendHead encodes all of an amount but its histogram, which counts so many.
func appendHead(b []byte, c counts, counted uint64) []byte {
	var flags byte
	if c.failures > 0 {
		flags |= hasFailures
	}
	if c.sent > 0 || c.received > 0 {
		flags |= hasBytes
	}
	if c.requests != counted {
		flags |= hasRequests
	}
	b = append(b, flags)
	if flags&hasFailures != 0 {
		b = binary.AppendUvarint(b, c.failures)
	}
	if flags&hasBytes != 0 {
		b = binary.AppendUvarint(b, c.sent)
		b = binary.AppendUvarint(b, c.received)
	}
	if flags&hasRequests != 0 {
		b = binary.AppendUvarint(b, c.requests)
	}
	return b
}

// appendAmount encodes an amount.
func appendAmount(b []byte, a amount) []byte {
	return append(appendHead(b, a.counts, a.latency.total()), a.latency...)
}

// appendCounted encodes an amount.
func appendCounted(b []byte, c counts, latency sparse) []byte {
	return latency.appendTo(appendHead(b, c, latency.total()))
}

// readAmount decodes an amount, which shares the bytes.
func readAmount(b []byte) (a amount, ok bool) {
	if len(b) == 0 || b[0] >= hasRequests<<1 {
		return amount{}, false
	}
	flags, b := b[0], b[1:]
	ok = true
	number := func(flag byte) uint64 {
		if flags&flag == 0 {
			return 0
		}
		v, n := binary.Uvarint(b)
		if n <= 0 {
			ok = false
			return 0
		}
		b = b[n:]
		return v
	}
	a.counts.failures = number(hasFailures)
	a.counts.sent = number(hasBytes)
	a.counts.received = number(hasBytes)
	a.counts.requests = number(hasRequests)
	a.latency = packed(b)
	if flags&hasRequests == 0 {
		a.counts.requests = a.latency.total()
	}
	return a, ok
}

// columnWriter makes columns. Its memory is used again for the next one.
type columnWriter struct {
	sum   adder
	data  []byte
	one   []byte
	marks []mark
	n     int
	last  uint32
}

// add appends what the sum has come to for a series, and begins the sum anew.
// Series come in ascending order.
func (w *columnWriter) add(id uint32) {
	c, latency := w.sum.take()
	if w.n%markEvery == 0 {
		w.marks = append(w.marks, mark{id, uint32(len(w.data))})
		w.last = 0 // a search that begins here knows nothing of those before
	}
	w.one = appendCounted(w.one[:0], c, latency)
	w.data = binary.AppendUvarint(w.data, uint64(id-w.last))
	w.data = binary.AppendUvarint(w.data, uint64(len(w.one)))
	w.data = append(w.data, w.one...)
	w.last, w.n = id, w.n+1
}

// column returns what was added, and begins the next.
func (w *columnWriter) column(first, span int64) *column {
	c := &column{first: first, span: span, data: slices.Clone(w.data), marks: slices.Clone(w.marks)}
	w.data, w.marks, w.n, w.last = w.data[:0], w.marks[:0], 0, 0
	return c
}

// adder adds amounts up.
type adder struct {
	counts    counts
	latency   [mesh.Buckets]uint64
	low, high int // of the buckets that may count something
	cells     sparse
}

func (a *adder) add(b amount) {
	a.counts = a.counts.plus(b.counts)
	for c := b.latency.cursor(); c.next(); {
		if a.high == 0 || c.bucket < a.low {
			a.low = c.bucket
		}
		a.high = max(a.high, c.bucket+1)
		a.latency[c.bucket] = add(a.latency[c.bucket], c.count)
	}
}

// take returns the sum, until the next take, and begins anew.
func (a *adder) take() (c counts, latency sparse) {
	a.cells = a.cells[:0]
	for i := a.low; i < a.high; i++ {
		if n := a.latency[i]; n > 0 {
			a.cells = append(a.cells, cell{uint16(i), n})
			a.latency[i] = 0
		}
	}
	c = a.counts
	a.counts, a.low, a.high = counts{}, 0, 0
	return c, a.cells
}

// newColumn makes a column of amounts by series.
func newColumn(first, span int64, amounts map[uint32]amount) *column {
	var w columnWriter
	for _, id := range slices.Sorted(maps.Keys(amounts)) {
		w.sum.add(amounts[id])
		w.add(id)
	}
	return w.column(first, span)
}

// columnReader goes over a column.
type columnReader struct {
	rest   []byte
	n      int
	id     uint32
	amount amount
}

// from begins at a mark.
func (c *column) from(m int) columnReader {
	if len(c.marks) == 0 {
		return columnReader{}
	}
	return columnReader{rest: c.data[c.marks[m].offset:]}
}

func (r *columnReader) next() bool {
	if len(r.rest) == 0 {
		return false
	}
	if r.n%markEvery == 0 {
		r.id = 0
	}
	distance, n := binary.Uvarint(r.rest)
	length, k := binary.Uvarint(r.rest[n:])
	body := r.rest[n+k:]
	r.id += uint32(distance)
	r.amount, _ = readAmount(body[:length])
	r.rest = body[length:]
	r.n++
	return true
}

// each calls f for every series of the column, ascending.
func (c *column) each(f func(id uint32, a amount)) {
	for r := c.from(0); r.next(); {
		f(r.id, r.amount)
	}
}

// find returns what the column has of one series.
func (c *column) find(id uint32) (found amount, ok bool) {
	m, exact := slices.BinarySearchFunc(c.marks, id, func(m mark, id uint32) int { return int(int64(m.id) - int64(id)) })
	if !exact {
		m--
	}
	if m < 0 {
		return amount{}, false
	}
	for r := c.from(m); r.next() && r.id <= id; {
		if r.id == id {
			return r.amount, true
		}
	}
	return amount{}, false
}

// merge makes one column of several that follow each other.
func (w *columnWriter) merge(columns []*column) *column {
	readers := make([]columnReader, 0, len(columns))
	for _, c := range columns {
		if r := c.from(0); r.next() {
			readers = append(readers, r)
		}
	}
	for len(readers) > 0 {
		id := readers[0].id
		for i := range readers {
			id = min(id, readers[i].id)
		}
		left := readers[:0]
		for _, r := range readers {
			if r.id == id {
				w.sum.add(r.amount)
				if !r.next() {
					continue
				}
			}
			left = append(left, r)
		}
		readers = left
		w.add(id)
	}
	last := columns[len(columns)-1]
	return w.column(columns[0].first, last.first+last.span-columns[0].first)
}
