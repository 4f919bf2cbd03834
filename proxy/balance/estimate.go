package balance

import (
	"math"
	"time"
)

const (
	// Tau is the time in which what is known of an endpoint fades to 1/e.
	Tau = 10 * time.Second
	// FirstGuess stands for the latency of an endpoint that has not answered yet.
	FirstGuess = 30 * time.Millisecond
	// Penalty is what the estimate is raised to after a failure. It decays like
	// any other: among endpoints that answer in 10 ms a failed one is tried
	// again after 46 s, or sooner if the others are busy.
	Penalty = time.Second
	// Floor is the least estimate: differences below it are noise.
	Floor = 100 * time.Microsecond
)

// estimate is an immutable peak-EWMA that fits an atomic word: the latency in
// nanoseconds as a float32 above the time of its last change in ticks. Zero
// means that there was no sample yet.
type estimate uint64

// tickShift makes ticks of 2^20 ns, about 1 ms. They wrap after 52 days: an
// endpoint idle for so long may seem to have been used lately, which costs one
// wrong pick.
const tickShift = 20

func tickOf(now time.Duration) uint32 { return uint32(now >> tickShift) }

func pack(ns float64, tick uint32) estimate {
	return estimate(math.Float32bits(float32(ns)))<<32 | estimate(tick)
}

// at returns the latency in nanoseconds as time now sees it, and how much of
// what was known at the last change still counts.
func (e estimate) at(tick uint32) (ns, weight float64) {
	ns = float64(math.Float32frombits(uint32(e >> 32)))
	dt := tick - uint32(e)
	if dt == 0 || dt > math.MaxInt32 { // a reader with an older clock
		return ns, 1
	}
	weight = math.Exp(-float64(dt) * (1 << tickShift) / float64(Tau))
	return ns * weight, weight
}

// observe returns the estimate after a sample. The first sample replaces the
// first guess, which was no observation.
func (e estimate) observe(now, sample time.Duration, ok bool) estimate {
	tick := tickOf(now)
	if !ok {
		sample = max(sample, Penalty)
	}
	s := max(float64(sample), float64(Floor))
	if e == 0 {
		return pack(s, tick)
	}
	decayed, weight := e.at(tick)
	if s >= decayed {
		return pack(s, tick)
	}
	if weight == 1 {
		return e // the same tick: nothing has faded
	}
	return pack(decayed+s*(1-weight), tick)
}

// latency returns the estimate for time now in nanoseconds.
func (e estimate) latency(tick uint32) float64 {
	if e == 0 {
		return float64(FirstGuess)
	}
	ns, _ := e.at(tick)
	return max(ns, float64(Floor))
}
