package balance

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// simulation plays requests against a set on a clock of its own: open loop,
// one request every interval, each answered after its endpoint's latency.
type simulation struct {
	set      *Set[string, int]
	rng      *rand.Rand
	now      time.Duration
	interval time.Duration
	// latency of an endpoint; negative means that it refuses.
	latency func(key string, now time.Duration) time.Duration
	pending pendingHeap
}

type pending struct {
	at time.Duration
	do func()
}

type pendingHeap []pending

func (h pendingHeap) Len() int           { return len(h) }
func (h pendingHeap) Less(i, j int) bool { return h[i].at < h[j].at }
func (h pendingHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *pendingHeap) Push(x any)        { *h = append(*h, x.(pending)) }
func (h *pendingHeap) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}

func newSimulation(interval time.Duration, latency func(string, time.Duration) time.Duration) *simulation {
	return &simulation{set: newSet(11), rng: rand.New(rand.NewPCG(5, 5)), interval: interval, latency: latency}
}

// run plays for d and returns how many requests each endpoint got.
func (s *simulation) run(d time.Duration) map[string]int {
	counts := map[string]int{}
	for end := s.now + d; s.now < end; s.now += s.interval {
		for len(s.pending) > 0 && s.pending[0].at <= s.now {
			heap.Pop(&s.pending).(pending).do()
		}
		e := s.set.Pick(s.now, nil)
		counts[e.Key]++
		took, ok := s.latency(e.Key, s.now), true
		if took < 0 {
			took, ok = 50*time.Microsecond, false
		}
		took += time.Duration(s.rng.Int64N(int64(took)/2 + 1))
		at := s.now + took
		heap.Push(&s.pending, pending{at, func() { e.End(at, took, ok) }})
	}
	return counts
}

func share(counts map[string]int, key string) float64 {
	total := 0
	for _, n := range counts {
		total += n
	}
	return float64(counts[key]) / float64(total)
}

func wantShare(t *testing.T, when string, counts map[string]int, key string, low, high float64) {
	t.Helper()
	if got := share(counts, key); got < low || got > high {
		t.Errorf("%s: %s got %.1f %% of %v, want %.0f to %.0f %%", when, key, 100*got, counts, 100*low, 100*high)
	}
}

func constant(latencies map[string]time.Duration) func(string, time.Duration) time.Duration {
	return func(key string, _ time.Duration) time.Duration { return latencies[key] }
}

func TestSlowReplicaIsLeftAlone(t *testing.T) {
	for _, interval := range []time.Duration{200 * time.Millisecond, 10 * time.Millisecond, 500 * time.Microsecond} {
		t.Run(fmt.Sprint(interval), func(t *testing.T) {
			s := newSimulation(interval, constant(map[string]time.Duration{
				"a": time.Millisecond, "b": time.Millisecond, "slow": 50 * time.Millisecond}))
			s.set.Update(0, ready("a", "b", "slow"))
			counts := s.run(time.Minute)
			wantShare(t, "first minute", counts, "slow", 1e-6, 0.1) // it is tried again and again
			wantShare(t, "first minute", counts, "a", 0.4, 0.6)
		})
	}
}

func TestRecoveredReplicaComesBack(t *testing.T) {
	healthyFrom := time.Minute
	s := newSimulation(5*time.Millisecond, func(key string, now time.Duration) time.Duration {
		if key == "c" && now < healthyFrom {
			return 50 * time.Millisecond
		}
		return time.Millisecond
	})
	s.set.Update(0, ready("a", "b", "c"))
	wantShare(t, "while slow", s.run(healthyFrom), "c", 0, 0.1)
	s.run(time.Minute) // what is known of it fades
	wantShare(t, "recovered", s.run(time.Minute), "c", 0.25, 0.42)
}

func TestFailingReplicaIsPenalised(t *testing.T) {
	downFrom, downTo := 10*time.Second, 40*time.Second
	s := newSimulation(5*time.Millisecond, func(key string, now time.Duration) time.Duration {
		if key == "c" && now >= downFrom && now < downTo {
			return -1 // and that quickly, which must not look attractive
		}
		return time.Millisecond
	})
	s.set.Update(0, ready("a", "b", "c"))
	wantShare(t, "before", s.run(downFrom), "c", 0.25, 0.42)
	wantShare(t, "while down", s.run(downTo-downFrom), "c", 0, 0.001)
	s.run(90 * time.Second)
	wantShare(t, "back", s.run(time.Minute), "c", 0.25, 0.42)
}

func TestAllFailingAreStillTried(t *testing.T) {
	s := newSimulation(5*time.Millisecond, func(string, time.Duration) time.Duration { return -1 })
	s.set.Update(0, ready("a", "b", "c"))
	counts := s.run(10 * time.Second)
	for _, k := range []string{"a", "b", "c"} {
		wantShare(t, "all down", counts, k, 0.2, 0.5)
	}
}

func TestSlowStart(t *testing.T) {
	s := newSimulation(time.Millisecond, constant(map[string]time.Duration{
		"a": time.Millisecond, "b": time.Millisecond, "new": time.Millisecond}))
	s.set.Update(0, ready("a", "b"))
	wantShare(t, "all are new", s.run(time.Second), "a", 0.4, 0.6)
	s.run(30 * time.Second)
	s.set.Update(s.now, ready("a", "b", "new"))
	last := 0.0
	for second := range 10 {
		counts := s.run(time.Second)
		full := 1. / 3
		ramp := (float64(second) + 0.5) / 10
		wantShare(t, fmt.Sprintf("second %d", second), counts, "new", full*ramp*0.4, full*ramp*1.6+0.02)
		last = share(counts, "new")
	}
	if last < 0.2 {
		t.Errorf("share at the end of the slow start is %.2f", last)
	}
	wantShare(t, "warm", s.run(10*time.Second), "new", 0.25, 0.42)
}

// Replicas of a service come up one after another: the first one must not keep
// all the traffic for ten seconds.
func TestSlowStartIsRelative(t *testing.T) {
	s := newSimulation(time.Millisecond, constant(map[string]time.Duration{
		"a": time.Millisecond, "b": time.Millisecond}))
	s.set.Update(0, ready("a"))
	s.run(100 * time.Millisecond)
	s.set.Update(s.now, ready("a", "b"))
	wantShare(t, "the second after", s.run(time.Second), "b", 0.3, 0.6)
}

func TestOneOldAmongManyNew(t *testing.T) {
	latencies := map[string]time.Duration{"old": time.Millisecond}
	keys := []string{"old"}
	for i := range 20 {
		k := fmt.Sprint("new", i)
		latencies[k] = time.Millisecond
		keys = append(keys, k)
	}
	s := newSimulation(time.Millisecond, constant(latencies))
	s.set.Update(0, ready("old"))
	s.run(20 * time.Second)
	s.set.Update(s.now, ready(keys...))
	wantShare(t, "at first", s.run(time.Second), "old", 0.6, 1)
	s.run(10 * time.Second)
	wantShare(t, "later", s.run(10*time.Second), "old", 0.02, 0.1)
}
