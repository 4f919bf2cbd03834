package dashboard

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
)

const tenSeconds = Window(10 * time.Second)

func edgesOf(c *Collector, window Window) []Edge {
	return c.snapshot(window, nil).tables().edgeRows()
}

func theEdge(t *testing.T, c *Collector, window Window) Edge {
	t.Helper()
	edges := edgesOf(c, window)
	if len(edges) != 1 {
		t.Fatalf("got %d edges, want 1: %+v", len(edges), edges)
	}
	return edges[0]
}

func TestPercentilesMatchRawSamples(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCollector(t, nil)
		rng := rand.New(rand.NewPCG(1, 2))
		var proxies []*fakeProxy
		var traffics []*traffic
		for i := range 3 {
			proxies = append(proxies, dial(t, c, testID("web"), fmt.Sprint("10.84.0.", i+2)).hello(fmt.Sprint("web-", i+1), time.Now()))
			traffics = append(traffics, outbound("catalog", "catalog-1"))
		}
		for range 40 { // seconds
			time.Sleep(time.Second)
			for i, p := range proxies {
				for range 50 * (i + 1) { // unequal shares: averaging percentiles would go wrong
					traffics[i].add(randomLatency(rng) * time.Duration(i*3+1))
				}
				p.report(traffics[i].message())
			}
		}
		synctest.Wait()
		for _, window := range []Window{0, tenSeconds} {
			var raw []time.Duration
			for i, tr := range traffics {
				samples := tr.samples
				if window != 0 {
					samples = samples[len(samples)-50*(i+1)*10:]
				}
				raw = append(raw, samples...)
			}
			slices.Sort(raw)
			e := theEdge(t, c, window)
			if e.Requests != uint64(len(raw)) || e.TotalRequests != 40*300 {
				t.Errorf("%v: %d requests (%d in total), want %d (12000)", window, e.Requests, e.TotalRequests, len(raw))
			}
			if math.Abs(e.RPS-300) > 0.5 {
				t.Errorf("%v: %.2f requests per second, want 300", window, e.RPS)
			}
			for q, got := range map[float64]float64{0.5: *e.P50, 0.95: *e.P95, 0.99: *e.P99} {
				want := raw[int(q*float64(len(raw)))].Seconds()
				if off := math.Abs(got-want) / want; off > 0.03 {
					t.Errorf("%v: p%g is %g s, raw samples say %g: %.1f %% off", window, q*100, got, want, off*100)
				}
			}
		}
		for _, p := range proxies {
			if err := p.end(); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestRestartBeginsAnewWithoutNegativeDeltas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCollector(t, nil)
		tr := outbound("web", "web-1")
		tr.edge.Open = 3
		p := dial(t, c, testID("client"), "10.84.0.2").hello("client-1", time.Now())
		time.Sleep(time.Second)
		p.report(tr.add(make([]time.Duration, 100)...).message())
		p.end()
		synctest.Wait()
		if e := theEdge(t, c, 0); e.Open != 0 || e.TotalRequests != 100 {
			t.Fatalf("after the proxy is gone: %d open, %d in total; want 0 and 100", e.Open, e.TotalRequests)
		}

		// The same start: the stream broke, the counters went on.
		p = dial(t, c, testID("client"), "10.84.0.2").hello("client-1", time.Now().Add(-time.Second))
		p.report(tr.add(make([]time.Duration, 10)...).message())
		synctest.Wait()
		if e := theEdge(t, c, 0); e.TotalRequests != 110 || e.Open != 3 {
			t.Fatalf("after a new stream: %d in total, %d open; want 110 and 3", e.TotalRequests, e.Open)
		}
		p.end()

		// Another start: the counters began anew, below the old ones.
		time.Sleep(time.Second)
		p = dial(t, c, testID("client"), "10.84.0.2").hello("client-1", time.Now())
		p.report(outbound("web", "web-1").add(make([]time.Duration, 40)...).addFailures(2).message())
		synctest.Wait()
		e := theEdge(t, c, tenSeconds)
		if e.TotalRequests != 152 || e.Requests != 152 || e.TotalFailures != 2 || e.Statuses[200] != 150 || e.Outcomes["reset"] != 2 {
			t.Errorf("after a restart: %+v; want 152 requests, 2 failures", e)
		}

		// A counter that goes down with the same start adds nothing.
		p.report(outbound("web", "web-1").add(make([]time.Duration, 5)...).message())
		synctest.Wait()
		if e := theEdge(t, c, 0); e.TotalRequests != 152 {
			t.Errorf("after counters went down: %d, want 152", e.TotalRequests)
		}
		p.end()
	})
}

func TestWindowForgetsTotalsDoNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCollector(t, nil)
		tr := outbound("web", "web-1")
		p := dial(t, c, testID("client"), "10.84.0.2").hello("client-1", time.Now())
		for range 5 {
			time.Sleep(time.Second)
			p.report(tr.add(make([]time.Duration, 20)...).message())
		}
		synctest.Wait()
		if e := theEdge(t, c, tenSeconds); math.Abs(e.RPS-20) > 0.01 {
			t.Errorf("rate %.2f after 5 s, want 20", e.RPS)
		}
		for range 15 {
			time.Sleep(time.Second)
			p.report()
		}
		synctest.Wait()
		if e := theEdge(t, c, tenSeconds); e.RPS != 0 || e.Requests != 0 || e.Success != nil || e.P50 != nil || e.TotalRequests != 100 {
			t.Errorf("after 15 s of silence: %+v", e.Figures)
		}
		if e := theEdge(t, c, Window(time.Minute)); e.Requests != 100 {
			t.Errorf("in a minute: %d requests, want 100", e.Requests)
		}
		p.end()
		time.Sleep(keepGone + 2*time.Second)
		if s := c.snapshot(0, nil); len(s.proxyRows()) != 0 || len(c.records) != 0 {
			t.Errorf("a proxy that is long gone is still there: %+v", s.proxyRows())
		}
		if e := theEdge(t, c, 0); e.TotalRequests != 100 || e.Requests != 100 || e.P50 == nil {
			t.Errorf("totals of a proxy long gone: %+v", e.Figures)
		}
	})
}

func TestIdentityIsProvedNotTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCollector(t, nil)
		p := dial(t, c, "not an identity", "10.84.0.2")
		if err := <-p.result; status.Code(err) != codes.Unauthenticated {
			t.Errorf("got %v, want Unauthenticated", err)
		}
		// Two identities with one workload name are two records.
		a := dial(t, c, testID("web"), "10.84.0.2").hello("web-1", time.Now())
		b := dial(t, c, testID("evil"), "10.84.0.3").hello("web-1", time.Now())
		b.report(outbound("bank", "bank-1").add(1).message())
		synctest.Wait()
		if e := theEdge(t, c, 0); e.Source != "evil" {
			t.Errorf("the edge's source is %q, want evil", e.Source)
		}
		a.end()
		b.end()
	})
}

func TestBadMessagesEndTheStream(t *testing.T) {
	for name, change := range map[string]func(e *tullev1.Edge){
		"bucket beyond the last": func(e *tullev1.Edge) { e.Latency = &tullev1.Histogram{Bucket: []uint32{1 << 20}, Count: []uint64{1}} },
		"bucket twice":           func(e *tullev1.Edge) { e.Latency = &tullev1.Histogram{Bucket: []uint32{1, 1}, Count: []uint64{1, 1}} },
		"counts missing":         func(e *tullev1.Edge) { e.Latency = &tullev1.Histogram{Bucket: []uint32{1}} },
		"long service":           func(e *tullev1.Edge) { e.Service = strings.Repeat("a", 300) },
		"unknown security":       func(e *tullev1.Edge) { e.Security = "quantum" },
		"bad identity":           func(e *tullev1.Edge) { e.PeerIdentity = "spiffe://x" },
		"huge counter":           func(e *tullev1.Edge) { e.Requests = 1 << 60 },
		"silly status":           func(e *tullev1.Edge) { e.Statuses = map[uint32]uint64{7000: 1} },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newTestCollector(t, nil)
				e := outbound("web", "web-1").message()
				change(e)
				p := dial(t, c, testID("client"), "10.84.0.2").hello("client-1", time.Now())
				p.report(e)
				if err := <-p.result; status.Code(err) != codes.InvalidArgument {
					t.Errorf("got %v, want InvalidArgument", err)
				}
				if got := edgesOf(c, 0); len(got) != 0 {
					t.Errorf("a refused report was counted: %+v", got)
				}
			})
		})
	}
}

func TestNewerStreamReplacesOlder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCollector(t, nil)
		start := time.Now()
		old := dial(t, c, testID("client"), "10.84.0.2").hello("client-1", start)
		old.report(outbound("web", "web-1").add(1).message())
		fresh := dial(t, c, testID("client"), "10.84.0.2").hello("client-1", start)
		fresh.report(outbound("web", "web-1").add(1, 2).message())
		old.report(outbound("web", "web-1").add(1, 2, 3).message())
		if err := <-old.result; !errors.Is(err, errReplaced) {
			t.Errorf("the old stream ended with %v", err)
		}
		synctest.Wait()
		if e := theEdge(t, c, 0); e.TotalRequests != 2 {
			t.Errorf("%d requests, want 2", e.TotalRequests)
		}
		if rows := c.snapshot(0, nil).proxyRows(); len(rows) != 1 || rows[0].State != "connected" {
			t.Errorf("proxies: %+v", rows)
		}
		fresh.end()
	})
}

func TestProxyThatEndsIsNotLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCollector(t, nil)
		ends := dial(t, c, testID("a"), "10.84.0.2").hello("a-1", time.Now())
		breaks := dial(t, c, testID("b"), "10.84.0.3").hello("b-1", time.Now())
		dial(t, c, testID("c"), "10.84.0.4").hello("c-1", time.Now())
		ends.end()
		breaks.cancel()
		synctest.Wait()
		time.Sleep(comeBack) // or it might just be late
		rows := c.snapshot(tenSeconds, nil).proxyRows()
		if got := rows[0].State + " " + rows[1].State + " " + rows[2].State; got != "ended lost connected" {
			t.Errorf("states: %s", got)
		}
	})
}

func TestProxyThatReportsTooOftenWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCollector(t, nil)
		p := dial(t, c, testID("a"), "10.84.0.2").hello("a-1", time.Now())
		began := time.Now()
		for range 100 {
			p.report()
		}
		if err := p.end(); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took < 17*time.Second || took > 19*time.Second {
			t.Errorf("100 reports at once were taken in %v, want about 18 s", took)
		}
		p = dial(t, c, testID("a"), "10.84.0.2").hello("a-1", time.Now())
		began = time.Now()
		p.report()
		p.report() // a last one, right after a regular one
		if p.end(); time.Since(began) != 0 {
			t.Errorf("a proxy that ends was held back by %v", time.Since(began))
		}
	})
}

func TestBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCollector(t, func(config *Config) { config.MaxEdges, config.MaxProxies = 4, 2 })
		p := dial(t, c, testID("scanner"), "10.84.0.2").hello("scanner-1", time.Now())
		send := func(n uint64) {
			var edges []*tullev1.Edge
			for i := range 100 {
				edges = append(edges, &tullev1.Edge{PeerAddress: fmt.Sprintf("192.0.2.%d:80", i), Security: "plaintext", Protocol: "tcp", Requests: n})
			}
			p.report(edges...)
		}
		send(1)
		send(3)
		synctest.Wait()
		edges := edgesOf(c, 0)
		total := uint64(0)
		for _, e := range edges {
			total += e.TotalRequests
			if e.Destination == other && e.TotalRequests != 3*16 {
				t.Errorf("other has %d requests, want 48", e.TotalRequests)
			}
		}
		if len(edges) != 5 || total != 3*20 {
			t.Errorf("%d edges with %d requests; want 5 with 60", len(edges), total)
		}
		if rows := c.snapshot(0, nil).proxyRows(); rows[0].DroppedEdges != 160 {
			t.Errorf("%d dropped, want 160", rows[0].DroppedEdges)
		}

		second := dial(t, c, testID("b"), "10.84.0.3").hello("b-1", time.Now())
		synctest.Wait()
		third := dial(t, c, testID("c"), "10.84.0.4").hello("c-1", time.Now())
		if err := <-third.result; status.Code(err) != codes.ResourceExhausted {
			t.Errorf("one proxy too many: %v", err)
		}
		p.end()
		synctest.Wait()
		third = dial(t, c, testID("c"), "10.84.0.4").hello("c-1", time.Now()) // takes the place of the one that is gone
		synctest.Wait()
		total = 0
		for _, e := range edgesOf(c, 0) {
			total += e.TotalRequests
		}
		if len(c.records) != 2 || total != 60 {
			t.Errorf("%d records, %d requests; want 2 and 60", len(c.records), total)
		}
		second.end()
		third.end()
	})
}

func TestTotalsAreExactWhileOthersLook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCollector(t, nil)
		var proxies sync.WaitGroup
		for i := range 8 {
			proxies.Go(func() {
				tr := outbound("web", "web-1")
				p := dial(t, c, testID("client"), "10.84.0.2").hello(fmt.Sprint("client-", i), time.Now())
				for range 100 {
					p.report(tr.add(time.Millisecond, 2*time.Millisecond).message())
				}
				if err := p.end(); err != nil {
					t.Error(err)
				}
			})
		}
		for range 50 {
			edgesOf(c, tenSeconds)
		}
		proxies.Wait()
		if e := theEdge(t, c, Window(time.Minute)); e.TotalRequests != 1600 || e.Requests != 1600 || e.Statuses[200] != 1600 {
			t.Errorf("%+v; want 1600 requests", e)
		}
	})
}

func TestManyStatusesAreNoReasonToRefuse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCollector(t, nil)
		p := dial(t, c, testID("client"), "10.84.0.2").hello("client-1", time.Now())
		for n := range uint64(3) {
			e := outbound("web", "web-1").message()
			for status := range uint32(500) {
				e.Statuses[100+status] = n + 1
			}
			e.Requests = 500 * (n + 1)
			p.report(e)
		}
		synctest.Wait()
		e := theEdge(t, c, 0)
		if e.TotalRequests != 1500 || len(e.Statuses) != maxStatuses {
			t.Errorf("%d requests, %d statuses; want 1500 and %d", e.TotalRequests, len(e.Statuses), maxStatuses)
		}
		for status, n := range e.Statuses {
			if n != 3 {
				t.Errorf("status %d was counted %d times, want 3", status, n)
			}
		}
		p.end()
	})
}
