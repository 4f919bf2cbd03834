package balance

import (
	"sync/atomic"
	"time"
)

// Endpoint is one place that requests can be sent to. Its methods may be called
// by many goroutines at once.
type Endpoint[K comparable, V any] struct {
	Key   K // both are constant
	Value V // the caller's, for instance a connection pool

	release func(V)
	state   atomic.Uint64 // in flight, plus goneBit
	latency atomic.Uint64 // an estimate

	// Written by Set.Update only, before the endpoint is published; changed for
	// published ones under the set's lock.
	readySince atomic.Int64 // when it was first seen, or last became ready
	ready      atomic.Bool
}

const goneBit = 1 << 63

// begin counts one more in flight, unless the endpoint is gone.
func (e *Endpoint[K, V]) begin() bool {
	for {
		s := e.state.Load()
		if s&goneBit != 0 {
			return false
		}
		if e.state.CompareAndSwap(s, s+1) {
			return true
		}
	}
}

// End reports how what Pick began has ended: Observe and Leave.
func (e *Endpoint[K, V]) End(now, latency time.Duration, ok bool) {
	e.Observe(now, latency, ok)
	e.Leave()
}

// Observe takes a latency into account: of a request, the time to the first
// byte of the answer; of a connection, the time to connect. ok is false if
// there was no answer, because of the endpoint: it refused or reset the
// connection or timed out.
func (e *Endpoint[K, V]) Observe(now, latency time.Duration, ok bool) {
	for {
		old := e.latency.Load()
		changed := uint64(estimate(old).observe(now, latency, ok))
		if changed == old || e.latency.CompareAndSwap(old, changed) {
			return
		}
	}
}

// Leave ends what Pick began. Nothing was learned about the endpoint by that
// (the caller went away, or has used Observe).
func (e *Endpoint[K, V]) Leave() {
	if e.state.Add(^uint64(0)) == goneBit {
		e.release(e.Value)
	}
}

// Gone tells whether the endpoint has left the set: what is in flight may
// finish, and nothing new comes.
func (e *Endpoint[K, V]) Gone() bool { return e.state.Load()&goneBit != 0 }

// Ready tells whether discovery says that the endpoint takes requests.
func (e *Endpoint[K, V]) Ready() bool { return e.ready.Load() }

// InFlight returns how many picks have not ended.
func (e *Endpoint[K, V]) InFlight() int { return int(e.state.Load() &^ goneBit) }

// Estimate returns the expected latency.
func (e *Endpoint[K, V]) Estimate(now time.Duration) time.Duration {
	return time.Duration(estimate(e.latency.Load()).latency(tickOf(now)))
}

// load is what Pick compares. An endpoint that nobody has tried yet comes first,
// once: its answer then replaces the first guess.
func (e *Endpoint[K, V]) load(tick uint32) float64 {
	known, inFlight := estimate(e.latency.Load()), e.state.Load()&^goneBit
	if known == 0 && inFlight == 0 {
		return 0
	}
	return known.latency(tick) * float64(inFlight+1)
}

// retire marks the endpoint as gone and releases its value if it is idle.
func (e *Endpoint[K, V]) retire() {
	if e.state.Or(goneBit) == 0 {
		e.release(e.Value)
	}
}
