package balance

import (
	"sync"
	"testing"
	"time"
)

// Readiness is what the last Update said, also while others look at it.
func TestReady(t *testing.T) {
	s := New(Config[string, int]{})
	s.Update(0, []Spec[string]{{Key: "a", Ready: true}, {Key: "b"}})
	a, b := s.Endpoints()[0], s.Endpoints()[1]
	if !a.Ready() || b.Ready() {
		t.Errorf("a %v, b %v", a.Ready(), b.Ready())
	}
	var group sync.WaitGroup
	group.Go(func() {
		for i := range 1000 {
			s.Update(time.Duration(i), []Spec[string]{{Key: "a", Ready: i%2 == 0}, {Key: "b", Ready: i%2 == 1}})
		}
	})
	for range 1000 {
		_, _ = a.Ready(), b.Ready()
	}
	group.Wait()
	if a.Ready() || !b.Ready() || s.Endpoints()[0] != a {
		t.Errorf("afterwards: a %v, b %v", a.Ready(), b.Ready())
	}
}
