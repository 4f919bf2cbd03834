package identity

import (
	"sync"
	"time"
)

// limiter is a token bucket for each key (RFC 2697 without the colours): burst
// events at once, afterwards rate per second.
type limiter[K comparable] struct {
	rate  float64 // per second
	burst float64
	keys  int // bound on the number of buckets

	mu      sync.Mutex
	buckets map[K]bucket
}

type bucket struct {
	level float64 // events allowed, as of last
	last  time.Time
}

func newLimiter[K comparable](rate, burst float64, keys int) *limiter[K] {
	return &limiter[K]{rate: rate, burst: burst, keys: keys, buckets: make(map[K]bucket)}
}

// allow counts one event of key and tells whether it may happen.
func (l *limiter[K]) allow(key K, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	b, ok := l.buckets[key]
	if !ok {
		if len(l.buckets) >= l.keys {
			l.sweepLocked(now)
		}
		if len(l.buckets) >= l.keys {
			return false // more keys at once than we can count are an attack
		}
		b = bucket{level: l.burst, last: now}
	}
	b = bucket{level: l.levelAt(b, now), last: now}
	allowed := b.level >= 1
	if allowed {
		b.level--
	}
	l.buckets[key] = b
	return allowed
}

// undo takes an event that allow counted back.
func (l *limiter[K]) undo(key K, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if b, ok := l.buckets[key]; ok {
		l.buckets[key] = bucket{level: min(l.levelAt(b, now)+1, l.burst), last: now}
	}
}

// levelAt refills a bucket. A clock that steps back refills nothing.
func (l *limiter[K]) levelAt(b bucket, now time.Time) float64 {
	elapsed := max(now.Sub(b.last), 0).Seconds()
	return min(b.level+elapsed*l.rate, l.burst)
}

// sweepLocked drops the full buckets: they are as good as new ones.
func (l *limiter[K]) sweepLocked(now time.Time) {
	for key, b := range l.buckets {
		if l.levelAt(b, now) >= l.burst {
			delete(l.buckets, key)
		}
	}
}
