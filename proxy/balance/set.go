package balance

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// SlowStart is the time over which a new endpoint gets its full share, so that
// cold caches and pools warm up. Newness is relative: nobody is held back for
// longer than the oldest endpoint has been there.
const SlowStart = 10 * time.Second

// Spec is an endpoint as discovery describes it.
type Spec[K comparable] struct {
	Key   K    // two specs with the same key are one endpoint
	Ready bool // others are used only while none is ready
}

// Config says what endpoints carry and where randomness comes from.
type Config[K comparable, V any] struct {
	// New makes the value of an endpoint that was not in the set; nil leaves it
	// zero. It is called with the set locked and must not call the set.
	New func(K) V
	// Release gets the value of an endpoint once it is gone and nothing is in
	// flight any more; exactly once, from Update or from the last Leave or End.
	// nil does nothing. It must not call the set.
	Release func(V)
	// Rand returns 64 random bits and may be called by many goroutines at once;
	// nil means math/rand/v2.
	Rand func() uint64
}

// Set is the endpoints of one service at one port.
type Set[K comparable, V any] struct {
	config  Config[K, V]
	current atomic.Pointer[snapshot[K, V]]

	mu  sync.Mutex // serialises Update
	all map[K]*Endpoint[K, V]
}

// snapshot is what Pick chooses from; it does not change.
type snapshot[K comparable, V any] struct {
	all        []*Endpoint[K, V]
	candidates []*Endpoint[K, V] // the ready ones; all, if none is ready
	oldest     time.Duration     // the first readySince of the candidates
	newest     time.Duration     // the last one
}

// New returns an empty set.
func New[K comparable, V any](c Config[K, V]) *Set[K, V] {
	if c.New == nil {
		c.New = func(K) (zero V) { return zero }
	}
	if c.Release == nil {
		c.Release = func(V) {}
	}
	if c.Rand == nil {
		c.Rand = rand.Uint64
	}
	s := &Set[K, V]{config: c, all: map[K]*Endpoint[K, V]{}}
	s.current.Store(&snapshot[K, V]{})
	return s
}

// Update makes specs the endpoints of the set. Endpoints that stay keep what is
// known of them; those that are not in specs are retired.
func (s *Set[K, V]) Update(now time.Duration, specs []Spec[K]) {
	s.mu.Lock()
	defer s.mu.Unlock()
	kept := make(map[K]*Endpoint[K, V], len(specs))
	next := &snapshot[K, V]{all: make([]*Endpoint[K, V], 0, len(specs))}
	for _, spec := range specs {
		if kept[spec.Key] != nil {
			continue
		}
		e := s.endpointLocked(now, spec)
		kept[spec.Key] = e
		next.all = append(next.all, e)
	}
	next.choose()
	s.current.Store(next)
	// Only now: a Pick that meets a retired endpoint finds the new snapshot.
	for key, e := range s.all {
		if kept[key] == nil {
			e.retire()
		}
	}
	s.all = kept
}

// endpointLocked returns the endpoint of spec, a new one if need be.
func (s *Set[K, V]) endpointLocked(now time.Duration, spec Spec[K]) *Endpoint[K, V] {
	e := s.all[spec.Key]
	switch {
	case e == nil:
		e = &Endpoint[K, V]{Key: spec.Key, Value: s.config.New(spec.Key), release: s.config.Release}
		e.readySince.Store(int64(now))
	case spec.Ready && !e.ready.Load():
		// It has been restarted, or has only now come up: cold again, and
		// failures from before its readiness count no more.
		e.readySince.Store(int64(now))
		e.latency.Store(0)
	}
	e.ready.Store(spec.Ready)
	return e
}

// choose fills candidates and their ages from all.
func (p *snapshot[K, V]) choose() {
	for _, e := range p.all {
		if e.ready.Load() {
			p.candidates = append(p.candidates, e)
		}
	}
	if len(p.candidates) == 0 {
		p.candidates = p.all
	}
	for i, e := range p.candidates {
		since := time.Duration(e.readySince.Load())
		if i == 0 {
			p.oldest, p.newest = since, since
		}
		p.oldest, p.newest = min(p.oldest, since), max(p.newest, since)
	}
}

// Close retires all endpoints.
func (s *Set[K, V]) Close() { s.Update(0, nil) }

// Endpoints returns the present endpoints, which the caller must not change.
func (s *Set[K, V]) Endpoints() []*Endpoint[K, V] { return s.current.Load().all }

// Pick returns the endpoint to use now and counts it as in flight until End or
// Leave is called, once. avoid, if not nil, is picked only if there is no other:
// the one that has just failed. Pick returns nil if the set is empty.
func (s *Set[K, V]) Pick(now time.Duration, avoid *Endpoint[K, V]) *Endpoint[K, V] {
	for {
		p := s.current.Load()
		e := s.choice(p, now, avoid)
		if e == nil || e.begin() {
			return e
		}
	}
}

// choice picks from a snapshot.
func (s *Set[K, V]) choice(p *snapshot[K, V], now time.Duration, avoid *Endpoint[K, V]) *Endpoint[K, V] {
	switch len(p.candidates) {
	case 0:
		return nil
	case 1:
		return p.candidates[0]
	}
	if avoid != nil || now-p.newest < SlowStart && p.newest != p.oldest {
		return s.carefulChoice(p, now, avoid)
	}
	a, b := s.pair(p)
	return lighter(a, b, now)
}

// pair returns two different candidates.
func (s *Set[K, V]) pair(p *snapshot[K, V]) (a, b *Endpoint[K, V]) {
	n, random := uint64(len(p.candidates)), s.config.Rand()
	i, j := random>>32*n>>32, random&(1<<32-1)*(n-1)>>32
	if j >= i {
		j++
	}
	return p.candidates[i], p.candidates[j]
}

// carefulChoice is choice where some may not be used: avoid never, and warming
// ones only as often as their age allows.
func (s *Set[K, V]) carefulChoice(p *snapshot[K, V], now time.Duration, avoid *Endpoint[K, V]) *Endpoint[K, V] {
	a, b := s.pair(p)
	random := s.config.Rand()
	useA := a != avoid && p.admits(a, now, uint32(random))
	useB := b != avoid && p.admits(b, now, uint32(random>>32))
	switch {
	case useA && useB:
		return lighter(a, b, now)
	case useA:
		return a
	case useB:
		return b
	}
	return s.warmChoice(p, now, avoid)
}

// warmChoice returns a random candidate other than avoid that is not warming
// up, or any other one if all are.
func (s *Set[K, V]) warmChoice(p *snapshot[K, V], now time.Duration, avoid *Endpoint[K, V]) *Endpoint[K, V] {
	n := uint64(len(p.candidates))
	start := s.config.Rand() >> 32 * n >> 32
	var other *Endpoint[K, V]
	for k := range n {
		e := p.candidates[(start+k)%n]
		if e == avoid {
			continue
		}
		if other = e; p.age(e, now) >= p.fullAge(now) {
			return e
		}
	}
	return other
}

// admits tells whether e may be used now: always if it is old enough, else in
// the share of picks that it has grown to.
func (p *snapshot[K, V]) admits(e *Endpoint[K, V], now time.Duration, random uint32) bool {
	age, full := p.age(e, now), p.fullAge(now)
	return age >= full || float64(random)*float64(full) < float64(age)*(1<<32)
}

func (p *snapshot[K, V]) age(e *Endpoint[K, V], now time.Duration) time.Duration {
	return now - time.Duration(e.readySince.Load())
}

// fullAge is the age at which an endpoint has its full share.
func (p *snapshot[K, V]) fullAge(now time.Duration) time.Duration {
	return min(SlowStart, now-p.oldest)
}

func lighter[K comparable, V any](a, b *Endpoint[K, V], now time.Duration) *Endpoint[K, V] {
	tick := tickOf(now)
	if b.load(tick) < a.load(tick) {
		return b
	}
	return a
}
