package dashboard

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tulle-mesh/tulle/mesh"
)

func packedOf(durations ...time.Duration) packed {
	var dense [mesh.Buckets]uint64
	for _, d := range durations {
		dense[mesh.BucketOf(d)]++
	}
	return sparseOf(&dense).pack()
}

func sparseOf(dense *[mesh.Buckets]uint64) (s sparse) {
	for i, n := range dense {
		if n > 0 {
			s = append(s, cell{uint16(i), n})
		}
	}
	return s
}

func randomSparse(r *rand.Rand) sparse {
	var dense [mesh.Buckets]uint64
	for range r.IntN(60) {
		dense[r.IntN(mesh.Buckets)] += 1 << r.IntN(40)
	}
	return sparseOf(&dense)
}

func unpack(p packed) (s sparse) {
	for c := p.cursor(); c.next(); {
		s = append(s, cell{uint16(c.bucket), c.count})
	}
	return s
}

func TestPackedIsExact(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		a, b := randomSparse(r), randomSparse(r)
		if got := unpack(a.pack()); !slices.Equal(got, a) || !a.pack().valid() {
			t.Fatalf("%v became %v", a, got)
		}
		var want [mesh.Buckets]uint64
		a.pack().addTo(&want)
		b.pack().addTo(&want)
		sum := a.pack().plus(b.pack())
		if got := unpack(sum); !slices.Equal(got, sparseOf(&want)) {
			t.Fatalf("%v plus %v is %v", a, b, got)
		}
		var s scratch
		state := a.pack()
		if got := s.advance(&state, unpack(sum)); !slices.Equal(got, b) || !bytes.Equal(state, sum) {
			t.Fatalf("from %v to %v: %v, want %v", a, sum, got, b)
		}
		share := r.Float64()
		first, rest := s.split(slices.Clone(a), share)
		if got := unpack(first.pack().plus(rest.pack())); !slices.Equal(got, a) {
			t.Fatalf("%v cut at %v is %v and %v", a, share, first, rest)
		}
		if n, all := float64(first.pack().total()), float64(a.pack().total()); math.Abs(n-all*share) > 1+all/1e12 {
			t.Fatalf("%v of %v: %v of %v", share, a, n, all)
		}
	}
}

func FuzzPacked(f *testing.F) {
	f.Add([]byte(packedOf(time.Millisecond, time.Second)))
	f.Add([]byte{0, 0xff, 0xff})
	f.Add([]byte{0xa0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		p := packed(b)
		if !p.valid() {
			return
		}
		if got := unpack(unpack(p).pack()); !slices.Equal(got, unpack(p)) {
			t.Fatalf("%x: %v is not %v", b, got, unpack(p))
		}
	})
}

func randomAmounts(r *rand.Rand, n int) map[uint32]amount {
	amounts := map[uint32]amount{}
	for range n {
		a := amount{counts{uint64(r.IntN(900)), 0, uint64(r.IntN(3) * 5000), 7}, randomSparse(r).pack()}
		if r.IntN(2) == 0 {
			a.counts = counts{requests: a.latency.total(), failures: 3}
		}
		amounts[uint32(r.IntN(3*n+1))] = a
	}
	return amounts
}

func equalAmounts(a, b amount) bool { return a.counts == b.counts && bytes.Equal(a.latency, b.latency) }

func TestColumnKeepsWhatItIsGiven(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for _, n := range []int{0, 1, 15, 16, 17, 200} {
		amounts := randomAmounts(r, n)
		c := newColumn(7, 1, amounts)
		seen := 0
		c.each(func(id uint32, a amount) {
			if seen++; !equalAmounts(a, amounts[id]) {
				t.Fatalf("series %d of %d: %v, want %v", id, n, a, amounts[id])
			}
		})
		if seen != len(amounts) {
			t.Errorf("%d of %d series", seen, len(amounts))
		}
		for id := range uint32(3*n + 3) {
			a, ok := c.find(id)
			if want, is := amounts[id]; ok != is || !equalAmounts(a, want) {
				t.Fatalf("find %d of %d: %v %v, want %v %v", id, n, a, ok, want, is)
			}
		}
	}
}

// Where memory is short, old slices become minutes, and nothing is lost of the
// hour but their resolution.
func TestHistoryStaysWithinItsBudget(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for name, tc := range map[string]struct {
		budget, series int
		whole          bool
	}{
		"enough":   {64 << 20, 20, true},
		"short":    {200 << 10, 20, true},
		"very few": {6 << 10, 20, false},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHistory(tc.budget, 1000)
			var want, got uint64
			for n := range 2 * keepSlices {
				amounts := map[uint32]amount{}
				for id := range tc.series {
					var durations []time.Duration
					for range 5 {
						durations = append(durations, randomLatency(r))
					}
					amounts[uint32(id)] = amount{counts{requests: 5}, packedOf(durations...)}
					if n >= keepSlices {
						want += 5
					}
				}
				h.push(newColumn(n, 1, amounts))
				if h.bytes > tc.budget {
					t.Fatalf("%d bytes, %d are allowed", h.bytes, tc.budget)
				}
			}
			size, end := 0, keepSlices
			for i, c := range h.columns {
				size += c.bytes()
				if i > 0 && c.first != end {
					t.Fatalf("column %d begins at %d, the one before ends at %d", i, c.first, end)
				}
				end = c.first + c.span
				c.each(func(_ uint32, a amount) { got += a.latency.total() })
			}
			if size != h.bytes || end != 2*keepSlices {
				t.Errorf("%d bytes are counted, there are %d; the end is %d", h.bytes, size, end)
			}
			oldest := h.columns[0].first
			if tc.whole && (oldest > keepSlices || got < want) || got > want+uint64(coarseSpan)*5*uint64(tc.series) {
				t.Errorf("%d requests since %d; want %d since %d", got, oldest, want, keepSlices)
			}
			if fine := h.columns[len(h.columns)-1].span; fine != 1 || tc.whole && name != "enough" && h.coarseUntil().IsZero() {
				t.Errorf("the newest column has %d slices; coarse until %v", fine, h.coarseUntil())
			}
		})
	}
}

func TestSeriesOverflowIntoOther(t *testing.T) {
	h := newHistory(1<<20, 16)
	key := func(service, source string) seriesKey {
		return seriesKey{edge: edgeRow{source: source, service: service, serviceKind: kindService, security: "mtls"}}
	}
	ids := map[uint32]bool{}
	for i := range 1000 {
		ids[h.id(key(fmt.Sprint("s", i%40), fmt.Sprint("c", i)), 1)] = true
	}
	if len(h.ids) > 16+2+1 || len(ids) != len(h.ids) || h.missed != 1000-16 {
		t.Errorf("%d series, %d missed", len(h.ids), h.missed)
	}
	// Once the hour has passed, others get their places.
	h.push(newColumn(5, 1, nil))
	if id := h.id(key("new", "new"), 6); h.keys[id].edge.source != "new" {
		t.Errorf("a new edge counts as %v", h.keys[id].edge)
	}
}

// The bytes of an edge-hour are what memory is planned by.
func TestBytesOfAnEdgeHour(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	for rps, most := range map[int]int{1: 13 << 10, 10: 40 << 10, 100: 135 << 10, 1000: 270 << 10} {
		h := newHistory(64<<20, 1000)
		for n := range keepSlices {
			var durations []time.Duration
			for range rps * int(slice/time.Second) {
				durations = append(durations, randomLatency(r))
			}
			h.push(newColumn(n, 1, map[uint32]amount{3: {counts{requests: uint64(len(durations)), sent: 9000, received: 90000}, packedOf(durations...)}}))
		}
		size := h.bytes - int(keepSlices)*(columnOverhead+8)
		t.Logf("%d requests per second: %d bytes for an edge and hour, %.1f for a slice", rps, size, float64(size)/float64(keepSlices))
		if size > most {
			t.Errorf("%d requests per second: %d bytes for an edge and hour, at most %d are planned", rps, size, most)
		}
	}
}

func TestTimelineMatchesRawSamples(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCollector(t, nil)
		rng := rand.New(rand.NewPCG(9, 9))
		var raw [60][]time.Duration // by slice
		var proxies []*fakeProxy
		var traffics []*traffic
		for i := range 3 {
			proxies = append(proxies, dial(t, c, testID("web"), fmt.Sprint("10.84.0.", i+2)).hello(fmt.Sprint("web-", i), time.Now()))
			traffics = append(traffics, outbound("catalog", fmt.Sprint("catalog-", i)))
		}
		for second := range 300 {
			time.Sleep(time.Second)
			for i, p := range proxies {
				for range 10 * (i + 1) {
					d := randomLatency(rng) * time.Duration(1+3*i)
					traffics[i].add(d)
					raw[second/5] = append(raw[second/5], d)
				}
				traffics[i].samples = nil
				p.report(traffics[i].message())
			}
		}
		synctest.Wait()
		for name, of := range map[string]subject{"service": {service: "catalog"}, "edge": {source: "web", destination: "catalog"}} {
			line := c.timeline(of, 5*time.Minute, 1)
			s, heat := line.series(DefaultWindow), line.heatmap(DefaultWindow)
			if len(s.RPS) != 60 || s.Step != 5 || s.Times[0] != time.Now().Unix()-300 {
				t.Fatalf("%s: %d steps of %v s from %d", name, len(s.RPS), s.Step, s.Times[0])
			}
			for i := range raw {
				slices.Sort(raw[i])
				if math.Abs(s.RPS[i]-60) > 0.01 || s.Success[i] != 1 {
					t.Errorf("%s: step %d: %v requests per second, success %v", name, i, s.RPS[i], s.Success[i])
				}
				for q, got := range map[float64]float64{0.5: s.P50[i], 0.95: s.P95[i], 0.99: s.P99[i]} {
					want := raw[i][max(int(q*float64(len(raw[i]))+0.5)-1, 0)].Seconds()
					if math.Abs(got-want)/want > 0.03 {
						t.Errorf("%s: step %d: p%v is %v, raw samples say %v", name, i, 100*q, got, want)
					}
				}
				for row, n := range heat.Counts[i] {
					want := uint64(0)
					for _, d := range raw[i] {
						if seconds(d) >= heat.Bounds[row] && seconds(d) < heat.Bounds[row+1] {
							want++
						}
					}
					if n != want {
						t.Errorf("%s: step %d, %v to %v s: %d, raw samples say %d", name, i, heat.Bounds[row], heat.Bounds[row+1], n, want)
					}
				}
			}
		}
		if s := c.timeline(subject{service: "catalog", replica: "catalog-2"}, 5*time.Minute, 3).series(DefaultWindow); len(s.RPS) != 20 || math.Abs(s.RPS[7]-30) > 0.01 {
			t.Errorf("one replica: %v", s.RPS)
		}
		if s := c.timeline(subject{service: "nobody"}, 5*time.Minute, 1).series(DefaultWindow); s.RPS[7] != 0 || !math.IsNaN(s.P50[7]) {
			t.Errorf("nobody: %v %v", s.RPS[7], s.P50[7])
		}
		for _, p := range proxies {
			_ = p.end()
		}
	})
}
