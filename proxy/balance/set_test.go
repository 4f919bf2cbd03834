package balance

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func ready(keys ...string) (specs []Spec[string]) {
	for _, k := range keys {
		specs = append(specs, Spec[string]{k, true})
	}
	return specs
}

func newSet(seed uint64) *Set[string, int] {
	return New(Config[string, int]{Rand: rand.NewPCG(seed, seed).Uint64})
}

func TestPickAmongFew(t *testing.T) {
	s := newSet(1)
	if e := s.Pick(0, nil); e != nil {
		t.Fatalf("empty set: picked %v", e.Key)
	}
	s.Update(0, ready("a"))
	a := s.Pick(0, nil)
	if a.Key != "a" || a.InFlight() != 1 {
		t.Fatalf("picked %s with %d in flight", a.Key, a.InFlight())
	}
	if e := s.Pick(0, a); e != a {
		t.Error("the only endpoint must be picked even if it is to be avoided")
	}
	s.Update(0, ready("a", "b", "a"))
	if n := len(s.Endpoints()); n != 2 {
		t.Errorf("%d endpoints, want 2: keys are unique", n)
	}
	for range 100 {
		e := s.Pick(0, a)
		if e == a {
			t.Fatal("picked the endpoint to be avoided")
		}
		e.Leave()
	}
}

func TestAvoidAmongMany(t *testing.T) {
	s := newSet(1)
	s.Update(0, ready("a", "b", "c", "d"))
	avoid := s.Endpoints()[2]
	seen := map[string]int{}
	for range 1000 {
		e := s.Pick(time.Minute, avoid)
		seen[e.Key]++
		e.End(time.Minute, time.Millisecond, true)
	}
	if seen["c"] != 0 || seen["a"] < 200 || seen["b"] < 200 || seen["d"] < 200 {
		t.Errorf("picks: %v", seen)
	}
}

func TestInFlightSpreads(t *testing.T) {
	s := newSet(7)
	s.Update(0, ready("a", "b"))
	for range 100 {
		s.Pick(0, nil)
	}
	for _, e := range s.Endpoints() {
		if n := e.InFlight(); n != 50 {
			t.Errorf("%s has %d in flight, want 50", e.Key, n)
		}
	}
}

func TestUnreadyOnlyIfNoneReady(t *testing.T) {
	s := newSet(3)
	s.Update(0, []Spec[string]{{"up", true}, {"down", false}})
	for range 50 {
		e := s.Pick(time.Minute, nil)
		if e.Key != "up" {
			t.Fatalf("picked %s", e.Key)
		}
		e.End(time.Minute, time.Millisecond, true)
	}
	s.Update(0, []Spec[string]{{"up", false}, {"down", false}})
	seen := map[string]bool{}
	for range 50 {
		seen[s.Pick(time.Minute, nil).Key] = true
	}
	if !seen["up"] || !seen["down"] {
		t.Errorf("with none ready, picked only %v", seen)
	}
}

func TestUpdateKeepsStateAndReleases(t *testing.T) {
	var made, released []string
	s := New(Config[string, string]{
		New:     func(k string) string { made = append(made, k); return "pool of " + k },
		Release: func(v string) { released = append(released, v) },
	})
	s.Update(0, ready("a", "b"))
	a, b := s.Endpoints()[0], s.Endpoints()[1]
	a.Observe(0, 7*time.Millisecond, true)
	held := s.Pick(0, b)
	if held != a {
		t.Fatal("did not get a")
	}
	s.Update(0, ready("a", "c"))
	if s.Endpoints()[0] != a || a.Estimate(0).Round(time.Millisecond) != 7*time.Millisecond {
		t.Error("an endpoint that stays must keep its state")
	}
	if !b.Gone() || a.Gone() || !slices.Equal(released, []string{"pool of b"}) {
		t.Errorf("b must be gone and released at once; released %q", released)
	}
	s.Close()
	if !a.Gone() || !slices.Equal(released, []string{"pool of b", "pool of c"}) {
		t.Errorf("released %q; a is still in flight", released)
	}
	held.End(0, time.Millisecond, true)
	if !slices.Equal(released, []string{"pool of b", "pool of c", "pool of a"}) {
		t.Errorf("released %q", released)
	}
	if !slices.Equal(made, []string{"a", "b", "c"}) {
		t.Errorf("made %q", made)
	}
	if s.Pick(0, nil) != nil {
		t.Error("picked from a closed set")
	}
}

func TestReadyAgainIsNew(t *testing.T) {
	s := newSet(1)
	s.Update(0, ready("a", "b"))
	a := s.Endpoints()[0]
	a.Observe(0, 0, false)
	s.Update(time.Second, []Spec[string]{{"a", false}, {"b", true}})
	if got := a.Estimate(time.Second); got < 800*time.Millisecond {
		t.Errorf("unready: estimate %v", got)
	}
	s.Update(2*time.Second, ready("a", "b"))
	if got := a.Estimate(2 * time.Second); got != FirstGuess {
		t.Errorf("ready again: estimate %v, want the first guess", got)
	}
}

func TestDeterministic(t *testing.T) {
	run := func() (picks string) {
		s := newSet(42)
		s.Update(0, ready("a", "b", "c", "d"))
		for i := range 200 {
			now := time.Duration(i) * time.Millisecond
			e := s.Pick(now, nil)
			picks += e.Key
			e.End(now, time.Duration(len(e.Key)+i%7)*time.Millisecond, i%50 != 0)
		}
		return picks
	}
	if a, b := run(), run(); a != b {
		t.Errorf("same seed, different picks:\n%s\n%s", a, b)
	}
}

// Many goroutines pick while endpoints come and go: every value is released
// once, after its last use, and no pick returns a released endpoint.
func TestConcurrentUpdates(t *testing.T) {
	type pool struct{ released atomic.Int32 }
	var made []*pool // under the set's lock
	s := New(Config[int, *pool]{
		New:     func(int) *pool { p := &pool{}; made = append(made, p); return p },
		Release: func(p *pool) { p.released.Add(1) },
	})
	s.Update(0, []Spec[int]{{0, true}})
	var clock atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 20000 {
				now := time.Duration(clock.Add(1)) * time.Millisecond
				e := s.Pick(now, nil)
				if e == nil {
					t.Error("the set is never empty")
					return
				}
				if e.Value.released.Load() != 0 {
					t.Error("picked a released endpoint")
				}
				e.End(now, time.Duration(i%100)*time.Millisecond, i%97 != 0)
			}
		})
	}
	for i := range 2000 {
		s.Update(time.Duration(clock.Load())*time.Millisecond,
			[]Spec[int]{{i % 5, true}, {i % 3, i%2 == 0}, {i % 11, true}})
	}
	wg.Wait()
	s.Close()
	for i, p := range made {
		if n := p.released.Load(); n != 1 {
			t.Fatalf("value %d of %d was released %d times", i, len(made), n)
		}
	}
}

func TestNoAllocations(t *testing.T) {
	s := newSet(1)
	s.Update(0, ready("a", "b", "c"))
	now := time.Duration(0)
	if n := testing.AllocsPerRun(100, func() {
		now += time.Millisecond
		s.Pick(now, nil).End(now, time.Millisecond, true)
	}); n != 0 {
		t.Errorf("%v allocations per pick", n)
	}
}

func BenchmarkPickEnd(b *testing.B) {
	for _, n := range []int{1, 2, 3, 100} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := New(Config[int, int]{})
			var specs []Spec[int]
			for i := range n {
				specs = append(specs, Spec[int]{i, true})
			}
			s.Update(0, specs)
			var now time.Duration
			for b.Loop() {
				now += 50 * time.Microsecond
				s.Pick(now, nil).End(now, time.Millisecond, true)
			}
		})
	}
}

func BenchmarkPickParallel(b *testing.B) {
	s := New(Config[string, int]{})
	s.Update(0, ready("a", "b", "c"))
	b.RunParallel(func(pb *testing.PB) {
		var now time.Duration
		for pb.Next() {
			now += 50 * time.Microsecond
			s.Pick(now, nil).End(now, time.Millisecond, true)
		}
	})
}
