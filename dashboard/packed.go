package dashboard

import (
	"encoding/binary"
	"math"
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

// packed is a sparse histogram in few bytes, one or two for most buckets. Each
// begins with a byte that tells how much further it is than the last one, its
// distance, and what it counts:
//
//	1dcc cccc   distance 1 or 2; count 1 to 32, or, from 32 on, 5 bits of the count, the rest follows
//	0ddd dccc   distance 1 to 15, or 0: it follows; count 1 to 7, or 0: it follows
//
// What follows is a uvarint. It is immutable, so that snapshots may share it.
type packed []byte

const (
	isNear    = 0x80
	nearCount = 0x3f // of these bits
	larger    = 32
)

// appendCell adds a bucket that is distance further than the last one.
func appendCell(p packed, distance int, count uint64) packed {
	if distance <= 2 {
		head := isNear | byte(distance-1)<<6
		if count <= larger {
			return append(p, head|byte(count-1))
		}
		rest := count - larger - 1
		return binary.AppendUvarint(append(p, head|larger|byte(rest%larger)), rest/larger)
	}
	high, low := distance, count
	if distance > 15 {
		high = 0
	}
	if count > 7 {
		low = 0
	}
	p = append(p, byte(high<<3)|byte(low))
	if high == 0 {
		p = binary.AppendUvarint(p, uint64(distance))
	}
	if low == 0 {
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

// total returns how many durations were counted.
func (s sparse) total() (n uint64) {
	for _, c := range s {
		n = add(n, c.count)
	}
	return n
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
	var distance uint64
	if head&isNear != 0 {
		distance = uint64(head>>6&1) + 1
		c.count = uint64(head&nearCount) + 1
		if c.count > larger {
			rest := c.uvarint()
			c.count += rest * larger
			c.bad = c.bad || rest > math.MaxUint64/larger-2
		}
	} else {
		if distance = uint64(head >> 3); distance == 0 {
			distance = c.uvarint()
		}
		if c.count = uint64(head & 7); c.count == 0 {
			c.count = c.uvarint()
		}
	}
	if distance == 0 || distance > mesh.Buckets || c.count == 0 || c.bucket+int(distance) >= mesh.Buckets {
		c.bad = true
	}
	if c.bad {
		c.rest = nil
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
