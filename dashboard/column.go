package dashboard

import (
	"encoding/binary"
	"slices"
	"time"
)

// slice is the time that figures are kept apart by.
const slice = 5 * time.Second

// sliceAt returns the number of the slice that a time is in.
func sliceAt(t time.Time) int64 { return t.Unix() / int64(slice/time.Second) }

// sliceStart returns when a slice begins.
func sliceStart(n int64) time.Time { return time.Unix(n*int64(slice/time.Second), 0) }

// amount is what was counted in a time: of a row, or of a series.
type amount struct {
	counts  counts
	latency packed
}

func (a amount) empty() bool { return a.counts == (counts{}) && len(a.latency) == 0 }

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

// appendAmount encodes an amount.
func appendAmount(b []byte, a amount) []byte {
	var flags byte
	if a.counts.failures > 0 {
		flags |= hasFailures
	}
	if a.counts.sent > 0 || a.counts.received > 0 {
		flags |= hasBytes
	}
	if a.counts.requests != a.latency.total() {
		flags |= hasRequests
	}
	b = append(b, flags)
	if flags&hasFailures != 0 {
		b = binary.AppendUvarint(b, a.counts.failures)
	}
	if flags&hasBytes != 0 {
		b = binary.AppendUvarint(b, a.counts.sent)
		b = binary.AppendUvarint(b, a.counts.received)
	}
	if flags&hasRequests != 0 {
		b = binary.AppendUvarint(b, a.counts.requests)
	}
	return append(b, a.latency...)
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

// newColumn encodes amounts by series.
func newColumn(first, span int64, amounts map[uint32]amount) *column {
	ids := make([]uint32, 0, len(amounts))
	for id := range amounts {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	c := &column{first: first, span: span, marks: make([]mark, 0, (len(ids)+markEvery-1)/markEvery)}
	var data, one []byte
	last := uint32(0)
	for i, id := range ids {
		if i%markEvery == 0 {
			c.marks = append(c.marks, mark{id, uint32(len(data))})
			last = 0 // a search that begins here knows nothing of those before
		}
		one = appendAmount(one[:0], amounts[id])
		data = binary.AppendUvarint(data, uint64(id-last))
		data = binary.AppendUvarint(data, uint64(len(one)))
		data = append(data, one...)
		last = id
	}
	c.data = slices.Clone(data)
	return c
}

// each calls f for every series of the column, ascending, until f returns false.
func (c *column) each(f func(id uint32, a amount) bool) {
	c.eachFrom(0, f)
}

func (c *column) eachFrom(m int, f func(id uint32, a amount) bool) {
	if len(c.marks) == 0 {
		return
	}
	b, last := c.data[c.marks[m].offset:], uint32(0)
	for i := 0; len(b) > 0; i++ {
		if i%markEvery == 0 {
			last = 0
		}
		distance, n := binary.Uvarint(b)
		length, k := binary.Uvarint(b[n:])
		b = b[n+k:]
		last += uint32(distance)
		a, _ := readAmount(b[:length])
		if !f(last, a) {
			return
		}
		b = b[length:]
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
	c.eachFrom(m, func(at uint32, a amount) bool {
		found, ok = a, at == id
		return at < id
	})
	if !ok {
		found = amount{}
	}
	return found, ok
}

// merge makes one column of several that follow each other.
func merge(columns []*column) *column {
	amounts := map[uint32]amount{}
	for _, c := range columns {
		c.each(func(id uint32, a amount) bool {
			amounts[id] = amounts[id].plus(a)
			return true
		})
	}
	last := columns[len(columns)-1]
	return newColumn(columns[0].first, last.first+last.span-columns[0].first, amounts)
}
