package dashboard

import (
	"crypto/x509"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
)

func kindsOf(c *Collector) (kinds []string) {
	for _, change := range c.snapshot(tenSeconds, nil).changes {
		kinds = append(kinds, change.Kind+" "+change.Service+" "+change.Workload)
	}
	slices.Reverse(kinds)
	return kinds
}

func TestChangesAreNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCollector(t, nil)
		list := func(states ...string) *tullev1.ListResponse {
			r := &tullev1.ListResponse{}
			for i, state := range states {
				if state != "" {
					r.Workloads = append(r.Workloads, &tullev1.Workload{Service: "web", Replica: fmt.Sprint("web-", i+1), State: state})
				}
			}
			return r
		}
		old := certify(t, testID("root"), time.Now().Add(time.Hour)).Leaf
		fresh := certify(t, testID("root"), time.Now().Add(2*time.Hour)).Leaf
		c.Observe(list("ready"), []*x509.Certificate{old}) // what was there before is no change
		c.Observe(list("ready", "starting"), []*x509.Certificate{old, fresh})
		c.Observe(list("starting", "ready"), []*x509.Certificate{fresh})
		c.Observe(list("", "ready"), []*x509.Certificate{fresh})

		p := dial(t, c, testID("client"), "10.84.0.2").hello("client-1", time.Now())
		p.reportAll(&tullev1.Report{Proxy: &tullev1.ProxyStats{CertNotAfterUnix: time.Now().Unix() + 100}})
		p.reportAll(&tullev1.Report{Proxy: &tullev1.ProxyStats{CertNotAfterUnix: time.Now().Unix() + 200}})
		tr := outbound("web", "web-2")
		for second := range 180 {
			time.Sleep(time.Second)
			for range 50 {
				tr.add(time.Millisecond)
			}
			if second >= 60 && second < 90 {
				tr.addFailures(10)
			}
			p.report(tr.message())
		}
		p.cancel() // it breaks off
		<-p.result
		time.Sleep(comeBack)
		c.Observe(nil, nil)
		dial(t, c, testID("client"), "10.84.0.2").hello("client-1", time.Now().Add(-3*time.Minute))
		synctest.Wait()
		want := []string{
			controlStarted + "  ", workloadAppeared + " web web-2", rootAdded + "  ", replicaNotReady + " web web-1", replicaReady + " web web-2",
			rootRemoved + "  ", workloadLeft + " web web-1", certificateRenewal + " client client-1", successDropped + " web ", successRecovered + " web ",
			proxyLost + " client client-1", proxyBack + " client client-1",
		}
		if got := kindsOf(c); !slices.Equal(got, want) {
			t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		for i := range 3 * maxChanges {
			c.Observe(list("ready", []string{"ready", "starting"}[i%2]), nil)
		}
		if changes := c.snapshot(tenSeconds, nil).changes; len(changes) != maxChanges || changes[0].ID <= changes[1].ID {
			t.Errorf("%d changes are kept, the newest is number %d", len(changes), changes[0].ID)
		}
	})
}

// Each stream ends once an hour, without a word: by the age of its connection. A
// proxy that is back soon was never away; one that is not, or is another process,
// was lost.
func TestStreamsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, start := newTestCollector(t, nil), time.Now()
		attach := func() *fakeProxy { return dial(t, c, testID("client"), "10.84.0.2").hello("client-1", start) }
		breakOff := func(p *fakeProxy, away time.Duration) {
			p.cancel()
			<-p.result
			for end := time.Now().Add(away); time.Now().Before(end); time.Sleep(time.Second) {
				c.Observe(nil, nil)
			}
			c.Observe(nil, nil)
		}
		state := func() string { return c.snapshot(0, nil).proxyRows()[0].State }
		want := []string{controlStarted + "  "}
		check := func(when, is string, changes ...string) {
			t.Helper()
			synctest.Wait()
			for _, kind := range changes {
				want = append(want, kind+" client client-1")
			}
			if got := kindsOf(c); !slices.Equal(got, want) {
				t.Errorf("%s: got\n%s\nwant\n%s", when, strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			if got := state(); got != is {
				t.Errorf("%s: %s, want %s", when, got, is)
			}
		}
		p := attach()
		check("at first", "connected")
		breakOff(p, comeBack-time.Second)
		check("its stream has ended", "connected")
		p = attach()
		check("back", "connected")
		breakOff(p, comeBack)
		check("gone for long", "lost", proxyLost)
		p = attach()
		check("back after that", "connected", proxyBack)
		breakOff(p, time.Second)
		start = time.Now() // it has crashed
		p = attach()
		check("another process", "connected", proxyLost, proxyBack)
		p.end()
		time.Sleep(2 * comeBack)
		c.Observe(nil, nil)
		check("at the end", "ended")
	})
}

func TestRoutesAreSampledWhileSomebodyAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCollector(t, nil)
		h := newTestHandler(t, c, nil)
		p := dial(t, c, testID("client"), "10.84.0.2").hello("client-1", time.Now())
		ask := func() (routes Routes) {
			if err := json.Unmarshal(get(h, "/api/v1/routes?service=web").Body.Bytes(), &routes); err != nil {
				t.Fatal(err)
			}
			return routes
		}
		if first := ask(); len(first.Items) != 0 || first.Since == "" {
			t.Errorf("the first answer: %+v", first)
		}
		if m := <-p.control; m.GetTapStart() == nil {
			t.Errorf("the proxy is told %v", m)
		}
		for i := range 30 {
			p.tap(&tullev1.TapEvent{Service: "web", Protocol: "http/1", Outcome: "success", Method: "GET", Path: fmt.Sprintf("/items/%d?q=%d", 1000+i, i), DurationMicros: 2000})
		}
		p.tap(&tullev1.TapEvent{Service: "web", Protocol: "http/2", Outcome: "app-failure", Method: "POST", Path: "/shop.v1.Cart/Add", DurationMicros: 9000, Dropped: 4})
		p.tap(&tullev1.TapEvent{Service: "other", Protocol: "http/1", Outcome: "success", Method: "GET", Path: "/"})
		for i := range 2 * maxRoutes {
			p.tap(&tullev1.TapEvent{Service: "web", Protocol: "http/1", Outcome: "success", Method: "GET", Path: fmt.Sprintf("/page-%c%c", 'g'+i%16, 'g'+i/16)})
		}
		p.report(outbound("web", "web-1").add(make([]time.Duration, 462)...).message())
		synctest.Wait()
		routes := ask()
		if routes.Seen != 231 || routes.Missed != 4 || len(routes.Items) != usualRoutes {
			t.Fatalf("%d seen, %d missed, %d routes", routes.Seen, routes.Missed, len(routes.Items))
		}
		find := func(path string) (r Route) {
			for _, r := range routes.Items {
				if r.Path == path {
					return r
				}
			}
			return r
		}
		if r := find("/items/*"); r.Requests != 30 || *r.Success != 1 || *r.P50 < 0.00195 || *r.P50 > 0.00205 || r.RPS <= 0 {
			t.Errorf("items: %+v", r)
		}
		if r := find(otherRoutes); r.Requests != 2*maxRoutes-(maxRoutes-2) {
			t.Errorf("the rest: %+v", r)
		}
		everything := c.routes.of("web", time.Now()).answer(time.Now(), DefaultWindow, 0, maxRoutes+1).Items
		if i := slices.IndexFunc(everything, func(r Route) bool { return r.Kind == "grpc" }); i < 0 || everything[i].Method != "Add" || everything[i].Path != "shop.v1.Cart" || *everything[i].Success != 0 {
			t.Errorf("gRPC: %d", i)
		}
		time.Sleep(2 * sampleFor)
		c.Observe(nil, nil)
		if m := <-p.control; m.GetTapStop() == nil {
			t.Errorf("once nobody asks the proxy is told %v", m)
		}
		p.end()
	})
}

func TestRoutePath(t *testing.T) {
	for path, want := range map[string]string{
		"/": "/", "/v1/items": "/v1/items", "/items/12345": "/items/*", "/items/12": "/items/*", "/a/550e8400-e29b-41d4-a716-446655440000/b": "/a/*/b",
		"/deadbeef": "/deadbeef", "/deadbee1": "/*", "/cafe1": "/cafe1", "/img/logo2x.png": "/img/logo2x.png", "/o/ord_12345": "/o/*",
	} {
		if got := routePath(path); got != want {
			t.Errorf("routePath(%q) = %q, want %q", path, got, want)
		}
	}
}

func TestOverview(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCollector(t, nil)
		root := certify(t, testID("root"), time.Now().Add(time.Hour)).Leaf
		h := newTestHandler(t, c, func(config *HandlerConfig) {
			config.Roots = func() []*x509.Certificate { return []*x509.Certificate{root} }
		})
		p := dial(t, c, testID("client"), "10.84.0.2").hello("client-1", time.Now())
		time.Sleep(10 * time.Second)
		p.reportAll(&tullev1.Report{
			Edges: []*tullev1.Edge{outbound("web", "web-1").add(make([]time.Duration, 90)...).addFailures(10).message(), {PeerAddress: "192.0.2.1:443", Security: "plaintext", Protocol: "tls", Requests: 100}},
			Proxy: &tullev1.ProxyStats{CertNotAfterUnix: time.Now().Unix() + 100},
		})
		synctest.Wait()
		var o Overview
		if err := json.Unmarshal(get(h, "/api/v1/overview").Body.Bytes(), &o); err != nil {
			t.Fatal(err)
		}
		if o.Range != "5m" || o.Totals.Requests != 200 || o.Totals.RPS != 20 || *o.Totals.Success != 0.95 || *o.Totals.MTLS != 0.5 || o.Proxies != 1 || o.Services != 1 {
			t.Errorf("%+v", o)
		}
		if o.Certificates.Count != 1 || o.Certificates.SoonestWorkload != "client-1" || o.Certificates.Roots != 1 || o.Coverage.Since == "" || len(o.Changes) != 2 || o.Changes[0].Kind != successDropped {
			t.Errorf("%+v", o)
		}
		p.end()
	})
}
