package balance

import (
	"math"
	"testing"
	"time"
)

func TestEstimate(t *testing.T) {
	type sample struct {
		at, latency time.Duration
		failed      bool
	}
	const ms = time.Millisecond
	for _, tc := range []struct {
		name    string
		samples []sample
		at      time.Duration
		want    time.Duration
	}{
		{"first guess", nil, time.Hour, 30 * ms},
		{"first sample replaces the guess", []sample{{0, 2 * ms, false}}, 0, 2 * ms},
		{"peak", []sample{{0, 2 * ms, false}, {0, 90 * ms, false}}, 0, 90 * ms},
		{"lower sample in the same moment", []sample{{0, 90 * ms, false}, {0, 2 * ms, false}}, 0, 90 * ms},
		{"lower sample after tau", []sample{{0, 90 * ms, false}, {Tau, 2 * ms, false}}, Tau, 34373 * time.Microsecond},
		{"reading decays", []sample{{0, 90 * ms, false}}, Tau, 33109 * time.Microsecond},
		{"sample above the decayed estimate", []sample{{0, 90 * ms, false}, {Tau, 40 * ms, false}}, Tau, 40 * ms},
		{"never below the floor", []sample{{0, 90 * ms, false}}, time.Hour, Floor},
		{"quick sample", []sample{{0, 3, false}}, 0, Floor},
		{"clock steps back", []sample{{time.Hour, 90 * ms, false}, {time.Minute, ms, false}}, time.Second, 90 * ms},
		{"failure", []sample{{0, 2 * ms, false}, {0, ms, true}}, 0, Penalty},
		{"failure of an unknown one", []sample{{0, 0, true}}, 0, Penalty},
		{"slow failure", []sample{{0, 5 * time.Second, true}}, 0, 5 * time.Second},
		{"failure fades", []sample{{0, 0, true}}, 3 * Tau, 49787 * time.Microsecond},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var e estimate
			for _, s := range tc.samples {
				e = e.observe(s.at, s.latency, !s.failed)
			}
			got := e.latency(tickOf(tc.at))
			if diff := math.Abs(got/float64(tc.want) - 1); diff > 0.001 {
				t.Errorf("estimate %v, want %v", time.Duration(got), tc.want)
			}
		})
	}
}
