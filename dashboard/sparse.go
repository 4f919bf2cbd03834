package dashboard

import (
	"math/bits"

	"github.com/tulle-mesh/tulle/mesh"
)

// cell counts the durations of one bucket of mesh.Histogram.
type cell struct {
	bucket uint16
	count  uint64
}

// sparse is a histogram by its non-empty buckets, ascending. It is immutable:
// operations return a new one, so that snapshots may share it.
type sparse []cell

// plus returns the sum of two histograms; counts stop at the highest value
// rather than wrap.
func (s sparse) plus(other sparse) sparse {
	if len(s) == 0 {
		return other
	}
	if len(other) == 0 {
		return s
	}
	sum := make(sparse, 0, max(len(s), len(other))+8)
	for len(s) > 0 && len(other) > 0 {
		switch a, b := s[0], other[0]; {
		case a.bucket < b.bucket:
			sum, s = append(sum, a), s[1:]
		case a.bucket > b.bucket:
			sum, other = append(sum, b), other[1:]
		default:
			sum = append(sum, cell{a.bucket, add(a.count, b.count)})
			s, other = s[1:], other[1:]
		}
	}
	return append(append(sum, s...), other...)
}

// since returns what s counts beyond an earlier state of the same histogram.
// A bucket that went down counts as unchanged.
func (s sparse) since(earlier sparse) sparse {
	if len(earlier) == 0 {
		return s
	}
	var diff sparse
	for _, c := range s {
		for len(earlier) > 0 && earlier[0].bucket < c.bucket {
			earlier = earlier[1:]
		}
		if len(earlier) > 0 && earlier[0].bucket == c.bucket {
			c.count = sub(c.count, earlier[0].count)
		}
		if c.count > 0 {
			diff = append(diff, c)
		}
	}
	return diff
}

// addTo adds the histogram to a dense one, in which percentiles are found.
func (s sparse) addTo(dense *[mesh.Buckets]uint64) {
	for _, c := range s {
		dense[c.bucket] = add(dense[c.bucket], c.count)
	}
}

// merge sums many histograms at once.
func merge(parts []sparse) sparse {
	if len(parts) == 0 {
		return nil
	}
	if len(parts) == 1 {
		return parts[0]
	}
	var dense [mesh.Buckets]uint64
	for _, p := range parts {
		p.addTo(&dense)
	}
	sum := make(sparse, 0, 2*len(parts[0]))
	for i, n := range dense {
		if n > 0 {
			sum = append(sum, cell{uint16(i), n})
		}
	}
	return sum
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
