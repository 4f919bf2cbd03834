// Package figures keeps what benches measure in rounds. The samples of one round were
// taken close together, so that what ailed the machine meanwhile ailed all peers alike:
// two peers are compared round by round, and only then over all rounds.
package figures

import (
	"os"
	"slices"
	"strings"
)

// Row is one figure of one peer.
type Row struct {
	Peer    string    `json:"peer"`
	Figure  string    `json:"figure"`
	Median  float64   `json:"median"`
	Low     float64   `json:"low"`
	High    float64   `json:"high"`
	Samples []float64 `json:"samples"` // in the order of the rounds
}

// Conclude fills in what the samples come to. There has to be one.
func (x *Row) Conclude() {
	x.Median, x.Low, x.High = Median(x.Samples), slices.Min(x.Samples), slices.Max(x.Samples)
}

// Ratios are x's samples over those of the same rounds of other. What is not more
// than nothing, as a difference may be by chance, has none; where that is so in half
// of the rounds, or the rounds are not the same, there are none at all.
func (x *Row) Ratios(other *Row) []float64 {
	if len(other.Samples) != len(x.Samples) {
		return nil
	}
	var ratios []float64
	for i, value := range x.Samples {
		if other.Samples[i] > 0 {
			ratios = append(ratios, value/other.Samples[i])
		}
	}
	if 2*len(ratios) <= len(x.Samples) {
		return nil
	}
	return ratios
}

// Median of at least one value.
func Median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}

// Machine names the processor and the kernel; "" is what cannot be found out.
func Machine() (processor, kernel string) {
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(info)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				processor = strings.TrimSpace(value)
				break
			}
		}
	}
	if release, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		kernel = strings.TrimSpace(string(release))
	}
	return processor, kernel
}
