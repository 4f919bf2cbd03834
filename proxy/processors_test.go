package proxy

import (
	"testing"
	"time"
)

func TestProcessors(t *testing.T) {
	for _, c := range []struct {
		name string
		most int
		used []float64 // in each second
		want int
	}{
		{"idle", 4, []float64{0, 0.1, 0}, 1},
		{"one is enough", 4, []float64{0.7, 0.79, 0.7}, 1},
		{"one is not", 4, []float64{0.95}, 2},
		{"two are not", 4, []float64{0.95, 1.9}, 3},
		{"no more than there are", 2, []float64{0.95, 1.9, 1.95}, 2},
		{"back after a while", 4, []float64{0.95, 0.1, 0.1, 0.1, 0.1, 0.1}, 1},
		{"not before", 4, []float64{0.95, 0.1, 0.1, 0.1, 0.1}, 2},
		{"nor between bursts", 4, []float64{0.95, 0.1, 0.1, 0.1, 1.2, 0.1, 0.1, 0.1, 0.1}, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := &processors{most: c.most, n: 1}
			cpu, now := time.Duration(0), time.Duration(0)
			for _, used := range c.used {
				cpu += time.Duration(used * float64(time.Second))
				now += time.Second
				p.decide(cpu, now)
			}
			if p.n != c.want {
				t.Errorf("%d processors, want %d", p.n, c.want)
			}
		})
	}
}
