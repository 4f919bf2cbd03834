package proxy

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestReclaim(t *testing.T) {
	at := func(seconds ...int) func(int) int {
		return func(s int) int {
			if slices.Contains(seconds, s) {
				return 1
			}
			return 0
		}
	}
	for _, tt := range []struct {
		name    string
		changes func(second int) int
		busy    func(second int) bool
		want    []int // seconds at which memory is due
	}{
		{"nothing happens", func(int) int { return 0 }, nil, []int{60}},
		{"never quiet", func(s int) int { return s % 4 }, nil, nil},
		{"one connection", at(40), nil, []int{45}},
		{"few, soon after the start", at(1), nil, []int{10, 70}},
		{"few, again and again", at(40, 42, 48, 60), nil, []int{47, 57, 67}},
		{"a burst", func(s int) int { return burst * at(1)(s) }, nil, []int{6, 66}},
		{"a burst, and then much to do", func(s int) int { return burst * at(1)(s) }, func(s int) bool { return s < 30 }, []int{30, 90}},
		{"bursts", func(s int) int { return burst * at(1, 10, 12)(s) }, nil, []int{6, 17, 77}},
	} {
		var r reclaim
		var got []int
		for s := range 100 {
			if r.due(tt.changes(s), time.Duration(s)*time.Second, tt.busy != nil && tt.busy(s)) {
				got = append(got, s)
			}
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: due at %v, want %v", tt.name, got, tt.want)
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
		p.hangups = &hangups{}
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
