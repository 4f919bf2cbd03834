package figures

import (
	"slices"
	"testing"
)

func TestRow(t *testing.T) {
	x := Row{Samples: []float64{5, 30, 10, 4}}
	x.Conclude()
	if x.Median != 7.5 || x.Low != 4 || x.High != 30 {
		t.Errorf("median %v, low %v, high %v", x.Median, x.Low, x.High)
	}
	for _, c := range []struct {
		name        string
		other, want []float64
	}{
		{"round by round", []float64{10, 20, 40, 4}, []float64{0.5, 1.5, 0.25, 1}},
		{"a difference that is none, once", []float64{10, -1, 40, 4}, []float64{0.5, 0.25, 1}},
		{"in half of the rounds", []float64{10, -1, 0, 4}, nil},
		{"other rounds", []float64{10, 20, 40}, nil},
	} {
		if got := x.Ratios(&Row{Samples: c.other}); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestMachine(t *testing.T) {
	if _, kernel := Machine(); kernel == "" {
		t.Error("the kernel has no name")
	}
}
