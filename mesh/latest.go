package mesh

import (
	"sync"
	"sync/atomic"
)

// Latest holds the newest of a series of immutable snapshots. Readers never
// lock; a slow watcher skips snapshots but never misses the newest one. The
// zero Latest holds nothing and is ready for use by many goroutines.
type Latest[T any] struct {
	state atomic.Pointer[latestState[T]]
	mu    sync.Mutex // serialises writers
}

type latestState[T any] struct {
	value   *T
	changed chan struct{} // closed when a newer state has been stored
}

// Load returns the newest snapshot, or nil before the first Store. The caller
// must not change what it points to.
func (l *Latest[T]) Load() *T {
	if s := l.state.Load(); s != nil {
		return s.value
	}
	return nil
}

// Store publishes v, which must not be changed afterwards, and wakes all watchers.
func (l *Latest[T]) Store(v *T) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.storeLocked(v)
}

// Update publishes what change returns for the newest snapshot (nil before the
// first Store), unless that is the same pointer. Updates are serialised.
func (l *Latest[T]) Update(change func(*T) *T) {
	l.mu.Lock()
	defer l.mu.Unlock()
	old := l.Load()
	if v := change(old); v != old {
		l.storeLocked(v)
	}
}

func (l *Latest[T]) storeLocked(v *T) {
	old := l.state.Swap(&latestState[T]{value: v, changed: make(chan struct{})})
	if old != nil {
		close(old.changed)
	}
}

// Watch returns the newest snapshot and a channel that is closed once there is
// a newer one.
func (l *Latest[T]) Watch() (*T, <-chan struct{}) {
	s := l.state.Load()
	if s == nil {
		l.mu.Lock()
		if s = l.state.Load(); s == nil {
			s = &latestState[T]{changed: make(chan struct{})}
			l.state.Store(s)
		}
		l.mu.Unlock()
	}
	return s.value, s.changed
}
