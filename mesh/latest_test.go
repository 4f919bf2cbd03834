package mesh

import (
	"sync"
	"testing"
	"testing/synctest"
)

func TestLatestZero(t *testing.T) {
	var l Latest[int]
	if v := l.Load(); v != nil {
		t.Errorf("Load = %d before the first Store", *v)
	}
	v, changed := l.Watch()
	if v != nil {
		t.Errorf("Watch = %d before the first Store", *v)
	}
	if _, again := l.Watch(); again != changed {
		t.Error("two watches of the same snapshot got different channels")
	}
	one := 1
	l.Store(&one)
	select {
	case <-changed:
	default:
		t.Error("a watch from before the first Store was not woken")
	}
	if v, _ := l.Watch(); v != &one {
		t.Errorf("Watch = %v, want the snapshot stored", v)
	}
}

func TestLatestUpdate(t *testing.T) {
	var l Latest[int]
	one, two := 1, 2
	l.Update(func(old *int) *int {
		if old != nil {
			t.Errorf("old = %d, want nil", *old)
		}
		return &one
	})
	_, changed := l.Watch()
	l.Update(func(old *int) *int { return old })
	select {
	case <-changed:
		t.Error("an update to the same snapshot woke the watchers")
	default:
	}
	l.Update(func(*int) *int { return &two })
	<-changed
	if got := *l.Load(); got != 2 {
		t.Errorf("Load = %d, want 2", got)
	}
}

// However writers and watchers interleave: no update is lost, every watcher
// sees growing values and ends with the last one.
func TestLatestConcurrent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const writers, each = 4, 100
		var l Latest[int]
		var wg sync.WaitGroup
		for range writers {
			wg.Go(func() {
				for range each {
					l.Update(func(old *int) *int {
						n := 1
						if old != nil {
							n = *old + 1
						}
						return &n
					})
				}
			})
		}
		for range 4 {
			wg.Go(func() {
				for last := 0; last < writers*each; {
					v, changed := l.Watch()
					if v != nil {
						if *v < last {
							t.Errorf("saw %d after %d", *v, last)
							return
						}
						last = *v
					}
					if last < writers*each {
						<-changed
					}
				}
			})
		}
		wg.Wait()
	})
}
