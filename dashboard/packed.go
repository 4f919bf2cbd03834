package dashboard

import (
	"encoding/binary"
	"math/bits"

	"github.com/tulle-mesh/tulle/mesh"
)

// cell counts the durations of one bucket of mesh.Histogram.
type cell struct {
	bucket uint16
	count  uint64
}

// sparse is a histogram by its non-empty buckets, ascending.
type sparse []cell

// packed is a sparse histogram in few bytes. For each bucket it has a byte:
// above, how many buckets further than the last one it is (1 to 14), below, its
// count (1 to 15). What does not fit follows as a uvarint, and is marked by 15
// above and by 0 below. It is immutable, so that snapshots may share it.
type packed []byte

const (
	farther = 15 // the distance follows
	more    = 0  // the count follows
)

// appendCell adds a bucket that is distance further than the last one.
func appendCell(p packed, distance int, count uint64) packed {
	high, low := distance, count
	if distance >= farther {
		high = farther
	}
	if count > 15 {
		low = more
	}
	p = append(p, byte(high<<4)|byte(low))
	if high == farther {
		p = binary.AppendUvarint(p, uint64(distance))
	}
	if low == more {
		p = binary.AppendUvarint(p, count)
	}
	return p
}

// appendTo encodes the histogram.
func (s sparse) appendTo(p packed) packed {
	last := -1
	for _, c := range s {
		p = appendCell(p, int(c.bucket)-last, c.count)
		last = int(c.bucket)
	}
	return p
}

// pack returns the histogram in as little memory as it takes.
func (s sparse) pack() packed {
	if len(s) == 0 {
		return nil
	}
	var scratch [256]byte
	return append(packed(nil), s.appendTo(scratch[:0])...)
}

// cursor reads a packed histogram cell by cell.
type cursor struct {
	rest   packed
	bucket int // of the cell that next has found
	count  uint64
	bad    bool // the bytes are none that appendCell writes
}

func (p packed) cursor() cursor { return cursor{rest: p, bucket: -1} }

// next finds the next cell; false at the end.
func (c *cursor) next() bool {
	if len(c.rest) == 0 {
		return false
	}
	head := c.rest[0]
	c.rest = c.rest[1:]
	distance := uint64(head >> 4)
	if distance == farther {
		distance = c.uvarint()
	}
	c.count = uint64(head & 15)
	if c.count == more {
		c.count = c.uvarint()
	}
	if distance == 0 || distance > mesh.Buckets || c.count == 0 || c.bucket+int(distance) >= mesh.Buckets {
		c.bad, c.rest = true, nil
	}
	if c.bad {
		return false
	}
	c.bucket += int(distance)
	return true
}

func (c *cursor) uvarint() uint64 {
	v, n := binary.Uvarint(c.rest)
	if n <= 0 {
		c.bad, c.rest = true, nil
		return 0
	}
	c.rest = c.rest[n:]
	return v
}

// valid tells whether the bytes are a histogram; those from a file may not be.
func (p packed) valid() bool {
	c := p.cursor()
	for c.next() {
	}
	return !c.bad
}

// total returns how many durations were counted.
func (p packed) total() (n uint64) {
	for c := p.cursor(); c.next(); {
		n = add(n, c.count)
	}
	return n
}

// addTo adds the histogram to a dense one, in which percentiles are found.
func (p packed) addTo(dense *[mesh.Buckets]uint64) {
	for c := p.cursor(); c.next(); {
		dense[c.bucket] = add(dense[c.bucket], c.count)
	}
}

// plus returns the sum of two histograms; counts stop at the highest value
// rather than wrap.
func (p packed) plus(other packed) packed {
	if len(p) == 0 {
		return other
	}
	if len(other) == 0 {
		return p
	}
	var scratch [512]byte
	sum, last := packed(scratch[:0]), -1
	put := func(bucket int, count uint64) {
		sum = appendCell(sum, bucket-last, count)
		last = bucket
	}
	a, b := p.cursor(), other.cursor()
	moreA, moreB := a.next(), b.next()
	for moreA || moreB {
		switch {
		case !moreB || moreA && a.bucket < b.bucket:
			put(a.bucket, a.count)
			moreA = a.next()
		case !moreA || b.bucket < a.bucket:
			put(b.bucket, b.count)
			moreB = b.next()
		default:
			put(a.bucket, add(a.count, b.count))
			moreA, moreB = a.next(), b.next()
		}
	}
	return append(packed(nil), sum...)
}

// since returns what s counts beyond an earlier state of the same histogram. A
// bucket that went down counts as unchanged.
func (s sparse) since(earlier packed) sparse {
	if len(earlier) == 0 {
		return s
	}
	var diff sparse
	e := earlier.cursor()
	more := e.next()
	for _, c := range s {
		for more && e.bucket < int(c.bucket) {
			more = e.next()
		}
		if more && e.bucket == int(c.bucket) {
			c.count = sub(c.count, e.count)
		}
		if c.count > 0 {
			diff = append(diff, c)
		}
	}
	return diff
}

// split cuts the share (0 to 1) of the histogram off, so that both parts
// together are exactly the whole, and neither is further than one count from
// its share.
func (s sparse) split(share float64) (first, rest sparse) {
	due, given := 0.0, uint64(0)
	for _, c := range s {
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
	return first, rest
}

// add is a+b, or the highest value where that does not fit.
func add(a, b uint64) uint64 {
	sum, carry := bits.Add64(a, b, 0)
	if carry != 0 {
		return ^uint64(0)
	}
	return sum
}

// sub is a-b, or 0 where that is negative.
func sub(a, b uint64) uint64 {
	if a < b {
		return 0
	}
	return a - b
}
