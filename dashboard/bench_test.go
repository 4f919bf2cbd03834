package dashboard

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
)

// BenchmarkTable makes what one second of the page costs: 100 proxies with ten
// edges each, five minutes of traffic on all of them.
func BenchmarkTable(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 2))
	c := newTestCollector(b, nil)
	now := time.Now().Add(-5 * time.Minute)
	c.began, c.open.oldest = now, sliceAt(now)
	for i := range 100 {
		r := newRecord(testID(fmt.Sprint("s", i)), fmt.Sprintf("s%d-1", i), now)
		r.session, r.attached, r.counted = 1, now, now
		c.records[recordKey{r.id, r.workload}] = r
	}
	traffics := map[*record][]*traffic{}
	for _, r := range c.records {
		for e := range 10 {
			traffics[r] = append(traffics[r], outbound(fmt.Sprint("s", e*7), ""))
		}
	}
	for range 300 {
		now = now.Add(time.Second)
		for r, list := range traffics {
			message := &tullev1.Report{}
			for _, tr := range list {
				for range 20 {
					tr.add(randomLatency(rng))
				}
				tr.samples = nil
				message.Edges = append(message.Edges, tr.message())
			}
			if err := c.heard.read(reportMessage(message).GetReport()); err != nil {
				b.Fatal(err)
			}
			r.take(c.heard.edges, interval{from: r.counted, to: now}, &c.open, 512)
			r.counted = now
		}
		c.advanceLocked(now, true)
	}
	for _, window := range []Window{tenSeconds, DefaultWindow, 0} {
		b.Run(window.String(), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := json.Marshal(c.snapshot(window, nil).tables().table(About{}, nil)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
