package dashboard

import "slices"

// openSlices are those that reports may still add to: what is added lies one
// after the other in one piece of memory for each slice, and is added up when
// the slice is closed. Collector.mu guards them.
type openSlices struct {
	oldest  int64
	pending []*pending // ascending
	scratch scratch
	room    struct{ parts, data int } // that the last slice took
}

// pending is what came in for one slice.
type pending struct {
	slice int64
	parts []part
	data  []byte // only ever appended to, so that snapshots may share it
}

// part is an amount for a row, which begins in the data where the one before ends.
type part struct {
	row *row
	end uint32
}

// amount returns the i-th part's, which shares the data.
func (p *pending) amount(i int) amount {
	start := uint32(0)
	if i > 0 {
		start = p.parts[i-1].end
	}
	a, _ := readAmount(p.data[start:p.parts[i].end])
	return a
}

// at returns what is pending of a slice, which is not closed.
func (o *openSlices) at(n int64) *pending {
	i := len(o.pending)
	for i > 0 && o.pending[i-1].slice >= n {
		i--
	}
	if i == len(o.pending) || o.pending[i].slice != n {
		o.pending = slices.Insert(o.pending, i, &pending{
			slice: n, parts: make([]part, 0, o.room.parts), data: make([]byte, 0, o.room.data),
		})
	}
	return o.pending[i]
}

// maxPending is how much may be pending of one slice; what is beyond that counts
// for totals only. Proxies of a mesh that large report seldom.
const maxPending = 64 << 20

func (o *openSlices) add(n int64, row *row, c counts, latency sparse) {
	if c == (counts{}) && len(latency) == 0 {
		return
	}
	p := o.at(n)
	if len(p.data) > maxPending {
		return
	}
	p.data = appendCounted(p.data, c, latency)
	p.parts = append(p.parts, part{row, uint32(len(p.data))})
}

// take closes the oldest slice and returns what came in for it.
func (o *openSlices) take() *pending {
	n := o.oldest
	o.oldest++
	if len(o.pending) == 0 || o.pending[0].slice > n {
		return &pending{slice: n}
	}
	p := o.pending[0]
	o.pending = slices.Delete(o.pending, 0, 1)
	o.room.parts, o.room.data = len(p.parts)+len(p.parts)/16, len(p.data)+len(p.data)/16
	return p
}

// skip moves on to a slice; what is pending of those before counts for it.
func (o *openSlices) skip(n int64) {
	for len(o.pending) > 0 && o.pending[0].slice < n {
		old := o.pending[0]
		o.pending = slices.Delete(o.pending, 0, 1)
		p := o.at(n)
		shift := uint32(len(p.data))
		p.data = append(p.data, old.data...)
		for _, part := range old.parts {
			part.end += shift
			p.parts = append(p.parts, part)
		}
	}
	o.oldest = n
}

// place adds to the slices that the interval covers, to each its share.
func (o *openSlices) place(row *row, added counts, durations sparse, at interval) {
	last, from := max(sliceAt(at.to), o.oldest), at.from
	if lost := sliceStart(o.oldest).Sub(from); lost > longestGap { // when the stream was broken for long
		share := float64(lost) / float64(at.to.Sub(from))
		_, added = added.split(share)
		_, durations = o.scratch.split(durations, share)
	}
	for n := max(sliceAt(from), o.oldest); n < last; n++ {
		if start := sliceStart(n); from.Before(start) {
			from = start
		}
		share := float64(sliceStart(n+1).Sub(from)) / float64(at.to.Sub(from))
		var now counts
		now, added = added.split(share)
		var sooner sparse
		sooner, durations = o.scratch.split(durations, share)
		o.add(n, row, now, sooner)
	}
	o.add(last, row, added, durations)
}

// scratch is memory for what one edge of a report added.
type scratch struct {
	added, first sparse
	packed       packed
}

// advance sets the buckets of now in a histogram, and returns what they count
// beyond what it counted, until the next advance. A bucket that went down counts
// as unchanged.
func (s *scratch) advance(histogram *packed, now sparse) (added sparse) {
	s.added = s.added[:0]
	if len(now) == 0 {
		return nil
	}
	sum, last := s.packed[:0], -1
	put := func(bucket int, count uint64) {
		sum = appendCell(sum, bucket-last, count)
		last = bucket
	}
	old := histogram.cursor()
	more := old.next()
	for _, c := range now {
		for more && old.bucket < int(c.bucket) {
			put(old.bucket, old.count)
			more = old.next()
		}
		before := uint64(0)
		if more && old.bucket == int(c.bucket) {
			before = old.count
			more = old.next()
		}
		if c.count > 0 {
			put(int(c.bucket), c.count)
		}
		if c.count > before {
			s.added = append(s.added, cell{c.bucket, c.count - before})
		}
	}
	for more {
		put(old.bucket, old.count)
		more = old.next()
	}
	s.packed = sum
	if len(sum) > cap(*histogram) {
		*histogram = make(packed, 0, len(sum)+len(sum)/8) // it will grow
	}
	*histogram = append((*histogram)[:0], sum...)
	return s.added
}

// split cuts the share (0 to 1) of a histogram off, so that both parts together
// are exactly the whole, and neither is further than one count from its share.
// The first part is good until the next split; the rest takes the place of all.
func (s *scratch) split(all sparse, share float64) (first, rest sparse) {
	first, rest = s.first[:0], all[:0]
	due, given := 0.0, uint64(0)
	for _, c := range all {
		due += float64(c.count) * share
		n := min(c.count, sub(uint64(due+0.5), given))
		given += n
		if n > 0 {
			first = append(first, cell{c.bucket, n})
		}
		if n < c.count {
			rest = append(rest, cell{c.bucket, c.count - n})
		}
	}
	s.first = first
	return first, rest
}
