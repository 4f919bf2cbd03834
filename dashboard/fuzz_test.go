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
		read := new(report)
		if err := read.read(b); err == nil {
			checkAgainst(t, b, read)
		}
		c := newTestCollector(t, func(c *Config) { c.MaxEdges = 8 })
		rec := newRecord(testID("web"), "web-1", time.Now())
		rec.session, rec.counted = 1, time.Now()
		c.records[recordKey{rec.id, rec.workload}] = rec
		for range 2 { // cumulative: the second adds nothing
			if c.report(session{number: 1, record: rec}, b) != nil {
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

// checkAgainst compares what was read in place with what protobuf reads.
func checkAgainst(t *testing.T, b []byte, read *report) {
	var want tullev1.Report
	if proto.Unmarshal(b, &want) != nil {
		return
	}
	if len(read.edges) != len(want.Edges) || len(read.endpoints) != len(want.Endpoints) || len(read.verdicts) != len(want.Verdicts) {
		t.Fatalf("%d edges, %d endpoints, %d verdicts of %v", len(read.edges), len(read.endpoints), len(read.verdicts), &want)
	}
	for i, e := range want.Edges {
		got := read.edges[i]
		key := edgeKey{e.Inbound, e.Service, e.PeerIdentity, e.PeerWorkload, e.PeerAddress, e.Security, e.Protocol}
		if got.key != key || got.counts != (counts{e.Requests, e.Failures, e.BytesSent, e.BytesReceived}) || got.open != e.Open || got.number != e.Number {
			t.Fatalf("%+v of %v", got, e)
		}
	}
	for i, e := range want.Endpoints {
		if want := (endpoint{e.Service, e.Workload, e.Address, e.EwmaMicros, e.InFlight, e.Ready}); read.endpoints[i] != want {
			t.Fatalf("%+v, want %+v", read.endpoints[i], want)
		}
	}
}
