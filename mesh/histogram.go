package mesh

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// The histogram's layout: log-linear in microseconds. Values below 2^subBits
// us have a bucket each; above, every power of two is cut into 2^subBits equal
// buckets, so a bucket is never wider than 1/32 of its lower bound and its
// midpoint is within 1.6 % of every value in it. The last bucket takes all
// from 2^27 us (134 s) on.
const (
	subBits   = 5
	subCount  = 1 << subBits
	maxExp    = 27
	Buckets   = (maxExp-subBits+1)*subCount + 1
	maxMicros = 1 << maxExp
)

// BucketOf returns the index of the bucket that d falls into. Negative
// durations (a clock stepped back) count as zero.
func BucketOf(d time.Duration) int {
	us := uint64(max(d, 0)) / 1000
	switch {
	case us < subCount:
		return int(us)
	case us >= maxMicros:
		return Buckets - 1
	}
	shift := bits.Len64(us) - 1 - subBits
	return shift*subCount + int(us>>shift)
}

// BucketBounds returns the half-open range [low, high) of bucket i.
func BucketBounds(i int) (low, high time.Duration) {
	lowMicros := func(i int) uint64 {
		if i < 2*subCount {
			return uint64(i)
		}
		shift := i/subCount - 1
		return uint64(i-shift*subCount) << shift
	}
	return time.Duration(lowMicros(i)) * time.Microsecond, time.Duration(lowMicros(i+1)) * time.Microsecond
}

// Histogram counts durations; many goroutines may Record and read at once.
// The zero value is empty. What is counted together lies in few powers of two,
// so memory is taken by these: 256 bytes each, where all would take 6 KB.
type Histogram struct {
	powers  [Buckets/subCount + 1]atomic.Pointer[[subCount]atomic.Uint64]
	changed [Buckets/subCount + 1]atomic.Uint32 // a bit for each bucket that EachChanged has not seen
	sum     atomic.Uint64                       // microseconds
}

// Record counts one duration. It allocates for the first one in a power of two.
func (h *Histogram) Record(d time.Duration) {
	i := BucketOf(d)
	power := &h.powers[i/subCount]
	counts := power.Load()
	if counts == nil {
		power.CompareAndSwap(nil, new([subCount]atomic.Uint64))
		counts = power.Load()
	}
	counts[i%subCount].Add(1)
	// Only now, so that who takes the bit sees the count; and only once, since
	// all that count here at once would wait for each other.
	if changed, bit := &h.changed[i/subCount], uint32(1)<<(i%subCount); changed.Load()&bit == 0 {
		changed.Or(bit)
	}
	h.sum.Add(uint64(max(d, 0)) / 1000)
}

// EachChanged calls f, in ascending order, for every bucket that has counted
// since the last EachChanged, or, if all, for every bucket that is not zero. The
// count is the whole one. Only one goroutine at a time may call it.
func (h *Histogram) EachChanged(all bool, f func(bucket int, count uint64)) {
	for p := range h.powers {
		changed := h.changed[p].Swap(0)
		counts := h.powers[p].Load()
		if counts == nil {
			continue
		}
		if all {
			changed = 1<<subCount - 1
		}
		for ; changed != 0; changed &= changed - 1 {
			i := bits.TrailingZeros32(changed)
			if n := counts[i].Load(); n > 0 {
				f(p*subCount+i, n)
			}
		}
	}
}

// Snapshot copies the counts into dst and returns the sum of all durations.
func (h *Histogram) Snapshot(dst *[Buckets]uint64) (sum time.Duration) {
	clear(dst[:])
	for p := range h.powers {
		counts := h.powers[p].Load()
		if counts == nil {
			continue
		}
		for i := range min(subCount, Buckets-p*subCount) {
			dst[p*subCount+i] = counts[i].Load()
		}
	}
	return time.Duration(h.sum.Load()) * time.Microsecond
}

// Quantile returns the value below which the share q (0..1) of the counted
// durations lies, as the midpoint of its bucket; 0 if nothing was counted.
func Quantile(counts *[Buckets]uint64, q float64) time.Duration {
	var total uint64
	for _, c := range counts {
		total += c
	}
	if total == 0 {
		return 0
	}
	rank := max(uint64(q*float64(total)+0.5), 1)
	var seen uint64
	for i, c := range counts {
		if seen += c; seen >= rank {
			low, high := BucketBounds(i)
			return (low + high) / 2
		}
	}
	low, _ := BucketBounds(Buckets - 1)
	return low
}
