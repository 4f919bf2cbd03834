package dashboard

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// BenchmarkTable makes what one second of the page costs: 100 proxies with ten
// edges each, a minute of traffic on all of them.
func BenchmarkTable(b *testing.B) {
	c := newTestCollector(b, nil)
	rng := rand.New(rand.NewPCG(1, 2))
	now := time.Now().Add(-time.Minute)
	for i := range 100 {
		r := newRecord(testID(fmt.Sprint("s", i)), fmt.Sprintf("s%d-1", i), now)
		r.session, r.attached = 1, now
		c.records[recordKey{r.id, r.workload}] = r
		traffics := make([]*traffic, 10)
		for e := range traffics {
			traffics[e] = outbound(fmt.Sprint("s", (i+e)%100), "")
		}
		for second := range 60 {
			var readings []reading
			for _, tr := range traffics {
				for range 100 {
					tr.add(randomLatency(rng))
				}
				tr.samples = nil
				reading, err := readEdge(tr.message())
				if err != nil {
					b.Fatal(err)
				}
				readings = append(readings, reading)
			}
			r.take(readings, now.Add(time.Duration(second+1)*time.Second), 512)
		}
	}
	for _, window := range []Window{DefaultWindow, Window(time.Minute), 0} {
		b.Run(window.String(), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				s := c.snapshot(window, nil)
				flows := s.flows()
				table := Table{Services: s.services(flows), Edges: s.edges(flows), Replicas: s.replicas(flows), Proxies: s.proxyRows()}
				if _, err := json.Marshal(table); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
