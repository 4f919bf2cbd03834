package proxy

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

func TestReclaim(t *testing.T) {
	const quiet = int((burstSettled + sessionIdle) / time.Second)
	for _, tt := range []struct {
		name  string
		conns func(second int) int
		want  []int // seconds at which memory is due
	}{
		{"no burst", func(s int) int { return s % burst }, nil},
		{"burst stays", func(int) int { return 2 * burst }, nil},
		{"burst falls by less than half", func(s int) int { return 2*burst - min(s, burst-1) }, nil},
		{"one burst", func(s int) int {
			if s < 5 {
				return burst
			}
			return 0
		}, []int{5 + quiet}},
		{"comes back before it has settled", func(s int) int {
			if s < 5 || s == 20 {
				return burst
			}
			return 0
		}, []int{21 + quiet}},
		{"two bursts", func(s int) int {
			if s < 5 || s >= 50 && s < 55 {
				return burst
			}
			return 0
		}, []int{5 + quiet, 55 + quiet}},
	} {
		var r reclaim
		var got []int
		for s := range 150 {
			if r.due(tt.conns(s), time.Duration(s)*time.Second) {
				got = append(got, s)
			}
		}
		if len(got) != len(tt.want) {
			t.Errorf("%s: due at %v, want %v", tt.name, got, tt.want)
			continue
		}
		for i := range got {
			if got[i] != tt.want[i] {
				t.Errorf("%s: due at %v, want %v", tt.name, got, tt.want)
			}
		}
	}
}

// The sweep advances the trackers' clock and drops unused watches.
func TestSweep(t *testing.T) {
	directoryTest(t, func(t *testing.T, r *directory, fake *fakeDiscovery) {
		d := found(t, r, fake, webAt("10.84.0.2:80"))
		d.done(r.now())
		p := newQuietProxy()
		p.directory = r
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan struct{})
		go func() { defer close(ended); p.sweep(ctx) }()
		time.Sleep(destinationIdle + 5*time.Second)
		synctest.Wait()
		if n := len(r.all()); n != 0 {
			t.Errorf("%d watches nobody needs", n)
		}
		if now := p.conns.clock.Load(); now < int64(destinationIdle/time.Second) {
			t.Errorf("the clock of the connections says %d s", now)
		}
		cancel()
		<-ended
	})
}
