package mesh

import (
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"
)

func TestBucketsCoverWithoutGaps(t *testing.T) {
	if low, _ := BucketBounds(0); low != 0 {
		t.Errorf("the first bucket begins at %v", low)
	}
	for i := range Buckets - 1 {
		low, high := BucketBounds(i)
		next, _ := BucketBounds(i + 1)
		if high != next || low >= high {
			t.Fatalf("bucket %d is [%v, %v), the next begins at %v", i, low, high, next)
		}
		if got := BucketOf(low); got != i {
			t.Fatalf("BucketOf(%v) = %d, want %d", low, got, i)
		}
		if got := BucketOf(high - 1); got != i {
			t.Fatalf("BucketOf(%v) = %d, want %d", high-1, got, i)
		}
		if width := high - low; width > time.Microsecond && width*32 > low {
			t.Fatalf("bucket %d, [%v, %v), is wider than 1/32 of its lower bound", i, low, high)
		}
	}
}

func TestBucketOfExtremes(t *testing.T) {
	last, _ := BucketBounds(Buckets - 1)
	for d, want := range map[time.Duration]int{
		0:                     0,
		-1:                    0,
		math.MinInt64:         0,
		time.Nanosecond:       0,
		time.Microsecond:      1,
		31 * time.Microsecond: 31,
		32 * time.Microsecond: 32,
		last - 1:              Buckets - 2,
		last:                  Buckets - 1,
		time.Hour:             Buckets - 1,
		math.MaxInt64:         Buckets - 1,
	} {
		if got := BucketOf(d); got != want {
			t.Errorf("BucketOf(%v) = %d, want %d", d, got, want)
		}
	}
}

func FuzzBucketOf(f *testing.F) {
	for _, d := range []int64{0, -1, 1, 31999, 32000, 63999, 64000, 134217728000, math.MaxInt64} {
		f.Add(d)
	}
	f.Fuzz(func(t *testing.T, n int64) {
		d := time.Duration(n)
		i := BucketOf(d)
		if i < 0 || i >= Buckets {
			t.Fatalf("BucketOf(%v) = %d", d, i)
		}
		low, high := BucketBounds(i)
		if at := max(d, 0); at < low || (at >= high && i < Buckets-1) {
			t.Errorf("%v fell into [%v, %v)", d, low, high)
		}
	})
}

func TestQuantile(t *testing.T) {
	var empty [Buckets]uint64
	if got := Quantile(&empty, 0.5); got != 0 {
		t.Errorf("of nothing: %v", got)
	}
	var h Histogram
	var values []time.Duration
	random := rand.New(rand.NewPCG(1, 2))
	for range 10000 {
		d := time.Duration(random.ExpFloat64() * float64(20*time.Millisecond))
		values = append(values, d)
		h.Record(d)
	}
	slices.Sort(values)
	var counts [Buckets]uint64
	h.Snapshot(&counts)
	for _, q := range []float64{0, 0.01, 0.5, 0.95, 0.99, 0.999, 1} {
		rank := max(int(q*float64(len(values))+0.5), 1)
		want := values[rank-1]
		got := Quantile(&counts, q)
		// Half a bucket is at most 1/64 of the value, or half a microsecond.
		if diff := (got - want).Abs(); diff > want/60+time.Microsecond {
			t.Errorf("q%v = %v, want %v", q, got, want)
		}
	}
}

func TestHistogramConcurrentSums(t *testing.T) {
	var h Histogram
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 1000 {
				h.Record(3 * time.Microsecond)
			}
		})
	}
	wg.Wait()
	h.Record(-time.Second) // counts as zero, takes nothing from the sum
	var counts [Buckets]uint64
	if got, want := h.Snapshot(&counts), 12*time.Millisecond; got != want {
		t.Errorf("sum = %v, want %v", got, want)
	}
	if counts[3] != 4000 || counts[0] != 1 {
		t.Errorf("counts = %d and %d, want 4000 and 1", counts[3], counts[0])
	}
}

// Every bucket is its own, whichever was first, and what a Snapshot is copied
// over does not shine through.
func TestHistogramCountsEachBucket(t *testing.T) {
	var h Histogram
	counts := [Buckets]uint64{1, 2, 3}
	if h.Snapshot(&counts); counts != [Buckets]uint64{} {
		t.Error("an empty one is not empty")
	}
	for i := Buckets - 1; i >= 0; i-- {
		low, _ := BucketBounds(i)
		for range i + 1 {
			h.Record(low)
		}
	}
	h.Snapshot(&counts)
	for i, n := range counts {
		if n != uint64(i)+1 {
			t.Errorf("bucket %d counts %d, want %d", i, n, i+1)
		}
	}
}

func TestHistogramRecordDoesNotAllocate(t *testing.T) {
	var h Histogram
	h.Record(time.Millisecond) // the first of its power of two does
	if n := testing.AllocsPerRun(100, func() { h.Record(time.Millisecond) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestEachChanged(t *testing.T) {
	var h Histogram
	collect := func(all bool) map[int]uint64 {
		seen := map[int]uint64{}
		h.EachChanged(all, func(bucket int, count uint64) { seen[bucket] = count })
		return seen
	}
	fast, slow := BucketOf(time.Millisecond), BucketOf(time.Second)
	h.Record(time.Millisecond)
	h.Record(time.Second)
	if got := collect(false); !maps.Equal(got, map[int]uint64{fast: 1, slow: 1}) {
		t.Errorf("at first %v", got)
	}
	if got := collect(false); len(got) > 0 {
		t.Errorf("again, though nothing was counted: %v", got)
	}
	h.Record(time.Millisecond)
	if got := collect(false); !maps.Equal(got, map[int]uint64{fast: 2}) {
		t.Errorf("after one more %v", got)
	}
	if got := collect(true); !maps.Equal(got, map[int]uint64{fast: 2, slow: 1}) {
		t.Errorf("all %v", got)
	}
}

// What is counted while somebody looks is in this look or in the next.
func TestEachChangedMissesNothing(t *testing.T) {
	var h Histogram
	var writers sync.WaitGroup
	for i := range 4 {
		writers.Go(func() {
			random := rand.New(rand.NewPCG(uint64(i), 3))
			for range 20_000 {
				h.Record(time.Duration(random.IntN(200)) * time.Microsecond)
			}
		})
	}
	var seen [Buckets]uint64
	look := func() { h.EachChanged(false, func(bucket int, count uint64) { seen[bucket] = count }) }
	done := make(chan struct{})
	go func() { writers.Wait(); close(done) }()
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
			look()
		}
	}
	look()
	var want [Buckets]uint64
	if h.Snapshot(&want); seen != want {
		t.Error("the last look does not have what was counted")
	}
}
