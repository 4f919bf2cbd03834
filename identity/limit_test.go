package identity

import (
	"testing"
	"time"
)

func TestLimiter(t *testing.T) {
	now := time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
	l := newLimiter[string](2, 3, 2)
	count := func(key string) (n int) {
		for l.allow(key, now) {
			n++
		}
		return n
	}
	if got := count("a"); got != 3 {
		t.Errorf("burst of %d, want 3", got)
	}
	now = now.Add(time.Second)
	if got := count("a"); got != 2 {
		t.Errorf("after a second: %d, want 2", got)
	}
	l.undo("a", now)
	l.undo("nobody", now)
	if got := count("a"); got != 1 {
		t.Errorf("after an undo: %d, want 1", got)
	}
	if got := count("b"); got != 3 {
		t.Errorf("another key: %d, want 3", got)
	}
	if l.allow("c", now) {
		t.Error("more keys than allowed")
	}
	now = now.Add(-time.Hour) // the clock steps back
	if l.allow("a", now) {
		t.Error("a step back refilled the bucket")
	}
	now = now.Add(time.Second)
	if got := count("a"); got != 2 {
		t.Errorf("a second after the step back: %d, want 2", got)
	}
	now = now.Add(3 * time.Hour)
	if got := count("c"); got != 3 {
		t.Errorf("once the others are full again: %d, want 3", got)
	}
	if got := count("a"); got != 3 {
		t.Errorf("after a long time: %d, want 3", got)
	}
}
