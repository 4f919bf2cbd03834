package dashboard

import (
	"encoding/json"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
)

// FuzzReport feeds what a hostile proxy could send through every view.
func FuzzReport(f *testing.F) {
	seed := func(r *tullev1.Report) {
		b, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	seed(&tullev1.Report{})
	seed(&tullev1.Report{
		Edges:     []*tullev1.Edge{outbound("web", "web-1").add(time.Millisecond, time.Second).message(), {Inbound: true, Security: "local"}},
		Proxy:     &tullev1.ProxyStats{CertNotAfterUnix: 1 << 62, RssBytes: 1 << 63},
		Endpoints: []*tullev1.EndpointStats{{Service: "web", EwmaMicros: 1e300}},
	})
	f.Fuzz(func(t *testing.T, b []byte) {
		var r tullev1.Report
		if proto.Unmarshal(b, &r) != nil {
			return
		}
		c := newTestCollector(t, func(c *Config) { c.MaxEdges = 8 })
		rec := newRecord(testID("web"), "web-1", time.Now())
		rec.session, rec.counted = 1, time.Now()
		c.records[recordKey{rec.id, rec.workload}] = rec
		for range 2 { // cumulative: the second adds nothing
			if c.report(session{number: 1, record: rec}, &r) != nil {
				return
			}
		}
		for _, window := range []Window{0, DefaultWindow} {
			if _, err := json.Marshal(c.snapshot(window, nil).tables().table(About{}, nil)); err != nil {
				t.Fatal(err)
			}
		}
		if len(rec.rows) > 8+6 || len(rec.edges) > 8*(1+overflowFactor) { // "other" is kept apart by direction and security
			t.Fatalf("%d rows and %d edges are kept", len(rec.rows), len(rec.edges))
		}
	})
}
