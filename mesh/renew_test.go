package mesh

import (
	"math"
	"testing"
	"testing/synctest"
	"time"
)

func TestRenewAt(t *testing.T) {
	begin := time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
	day := begin.Add(24 * time.Hour)
	for _, tt := range []struct {
		name     string
		notAfter time.Time
		jitter   float64
		min, max time.Duration
	}{
		{"earliest", day, 0, 14*time.Hour + 48*time.Minute - time.Second, 14*time.Hour + 48*time.Minute + time.Second},
		{"middle", day, 0.5, 16*time.Hour - time.Second, 16*time.Hour + time.Second},
		{"latest", day, 1, 17*time.Hour + 12*time.Minute - time.Second, 17*time.Hour + 12*time.Minute + time.Second},
		{"jitter too small", day, -5, 14 * time.Hour, 15 * time.Hour},
		{"jitter too large", day, 5, 17 * time.Hour, 18 * time.Hour},
		{"jitter not a number", day, math.NaN(), 14 * time.Hour, 15 * time.Hour},
		{"minute", begin.Add(time.Minute), 0.5, 39 * time.Second, 41 * time.Second},
		{"no life", begin, 0.5, 0, 0},
		{"ends before it begins", begin.Add(-time.Hour), 0.5, 0, 0},
	} {
		got := RenewAt(begin, tt.notAfter, tt.jitter).Sub(begin)
		if got < tt.min || got > tt.max {
			t.Errorf("%s: after %v, want %v to %v", tt.name, got, tt.min, tt.max)
		}
	}
}

// A proxy that renews when RenewAt says so, and retries, has a valid
// certificate through any outage of the authority up to a quarter of a life.
func TestRenewAtOutlivesAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const life = 24 * time.Hour
		issue := func() (time.Time, time.Time) { return time.Now(), time.Now().Add(life) }
		notBefore, notAfter := issue()
		away := time.Now().Add(10 * time.Hour)
		back := away.Add(life/4 + 4*time.Hour)
		for range 10 {
			time.Sleep(time.Until(RenewAt(notBefore, notAfter, 1)))
			for !time.Now().Before(away) && time.Now().Before(back) {
				time.Sleep(time.Minute)
			}
			if !time.Now().Before(notAfter) {
				t.Fatalf("expired at %v", notAfter)
			}
			notBefore, notAfter = issue()
		}
	})
}
