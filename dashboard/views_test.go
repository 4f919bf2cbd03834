package dashboard

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
	"github.com/tulle-mesh/tulle/mesh"
)

func inbound(service string, change func(*tullev1.Edge)) *tullev1.Edge {
	e := &tullev1.Edge{Inbound: true, Service: service, Security: "plaintext", Protocol: "http/1", Requests: 7}
	change(e)
	return e
}

func TestEachExchangeIsCountedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCollector(t, nil)
		client := dial(t, c, testID("client"), "10.84.0.2").hello("client-1", time.Now())
		web := dial(t, c, testID("web"), "10.84.0.3").hello("web-1", time.Now())
		client.report(
			outbound("web", "web-1").add(1, 2, 3).message(),
			&tullev1.Edge{Service: "web", PeerAddress: "10.84.0.3:80", Security: "plaintext", Protocol: "tls", Requests: 5},
			&tullev1.Edge{PeerAddress: "192.0.2.9:443", Security: "plaintext", Protocol: "tls", Requests: 1},
		)
		web.report(
			inbound("web", func(e *tullev1.Edge) { e.PeerIdentity, e.Security = testID("client").String(), "mtls" }), // told by client
			inbound("web", func(e *tullev1.Edge) { e.PeerIdentity, e.Security = testID("brief").String(), "mtls" }),  // its proxy never told
			inbound("web", func(e *tullev1.Edge) { e.PeerAddress = "10.84.0.1" }),                                    // this machine
			inbound("web", func(e *tullev1.Edge) { e.PeerAddress = "192.0.2.1" }),                                    // a stranger
			inbound("web", func(e *tullev1.Edge) { e.PeerAddress, e.Protocol = "10.84.0.2", "tls" }),                 // client's, told by client
		)
		synctest.Wait()
		var got []string
		for _, e := range edgesOf(c, 0) {
			got = append(got, e.Source+" "+e.SourceKind+" "+e.Destination+" "+e.DestinationKind+" "+e.Security+" "+e.Protocol)
		}
		want := []string{
			"192.0.2.1 address web service plaintext http/1",
			"brief workload web service mtls http/1",
			"client workload 192.0.2.9:443 outside plaintext tls",
			"client workload web service mtls http/1",
			"client workload web service plaintext tls",
			"host host web service plaintext http/1",
		}
		if !slices.Equal(got, want) {
			t.Errorf("got edges\n%q\nwant\n%q", got, want)
		}
		s := c.snapshot(0, nil)
		services := s.tables().serviceRows()
		if len(services) != 1 || services[0].TotalRequests != 3+5+7+7+7 || *services[0].MTLS != 10.0/29 {
			t.Errorf("services: %+v", services)
		}
	})
}

// Most pods of a Kubernetes namespace have one account: what they belong to tells them apart.
func TestCallersAreNamedAfterWhatTheyBelongTo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCollector(t, nil)
		id := mesh.ID{TrustDomain: "cluster.local", Namespace: "shop", Account: "default"}
		for i, service := range []string{"web.shop", "cart.shop", "", "web.bank", "we b.shop", "default"} {
			name := fmt.Sprintf("pod-%d", i)
			address := fmt.Sprintf("10.244.0.%d", 2+i)
			p := dial(t, c, id, address)
			p.send(&tullev1.ProxyMessage{Message: &tullev1.ProxyMessage_Hello{Hello: &tullev1.Hello{Workload: name, Service: service, StartUnixMs: time.Now().UnixMilli()}}})
			p.report(outbound("catalog.shop", "catalog-1").add(2).message())
		}
		synctest.Wait()
		got := map[string]uint64{}
		for _, e := range edgesOf(c, 0) {
			got[e.Source] += e.TotalRequests
		}
		want := map[string]uint64{"web.shop": 1, "cart.shop": 1, "default": 4}
		if !maps.Equal(got, want) {
			t.Errorf("requests by source: %v, want %v", got, want)
		}
	})
}

func TestReplicasShowTheBalancer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCollector(t, nil)
		p := dial(t, c, testID("web"), "10.84.0.2").hello("web-1", time.Now())
		time.Sleep(time.Second)
		p.reportAll(&tullev1.Report{
			Edges: []*tullev1.Edge{
				outbound("catalog", "catalog-1").add(make([]time.Duration, 90)...).message(),
				outbound("catalog", "catalog-2").add(make([]time.Duration, 10)...).message(),
				{Service: "db", PeerAddress: "192.0.2.1:5432", Security: "plaintext", Protocol: "tcp", Requests: 4},
			},
			Endpoints: []*tullev1.EndpointStats{
				{Service: "catalog", Workload: "catalog-1", Address: "10.84.0.3:8080", EwmaMicros: 900, InFlight: 2, Ready: true},
				{Service: "catalog", Workload: "catalog-2", Address: "10.84.0.4:8080", EwmaMicros: 50900, InFlight: 1, Ready: true},
			},
		})
		synctest.Wait()
		s := c.snapshot(DefaultWindow, &tullev1.ListResponse{
			Services: []*tullev1.Service{{Name: "catalog", Source: "run", Address4: "10.84.128.1", Ports: []uint32{8080}}, {Name: "web", Source: "run"}, {Name: "db", Source: "catalog", Endpoints: []string{"192.0.2.1"}}},
			Workloads: []*tullev1.Workload{
				{Replica: "catalog-1", Service: "catalog", State: "ready", Address4: "10.84.0.3/16"},
				{Replica: "catalog-2", Service: "catalog", State: "ready", Address4: "10.84.0.4/16"},
				{Replica: "catalog-3", Service: "catalog", State: "starting", Address4: "10.84.0.5/16"},
				{Replica: "web-1", Service: "web", State: "running", Address4: "10.84.0.2/16"},
			},
		})
		rows := s.tables().replicaRows()
		if len(rows) != 4 || !rows[3].Ready || rows[3].Workload != "192.0.2.1" || rows[3].Requests != 4 {
			t.Fatalf("got %d replicas, want 4: %+v", len(rows), rows)
		}
		if *rows[0].Share != 0.9 || *rows[1].Share != 0.1 || *rows[2].Share != 0 || rows[0].Fair != 0.5 || rows[2].Ready {
			t.Errorf("shares: %+v", rows)
		}
		if *rows[1].EWMA != 0.0509 || rows[1].InFlight != 1 || rows[1].Clients[0].Workload != "web-1" || rows[2].EWMA != nil {
			t.Errorf("estimates: %+v", rows)
		}
		services := s.tables().serviceRows()
		if len(services) != 3 || services[0].Ready != 2 || services[0].Replicas != 3 || services[1].Ready != 1 {
			t.Errorf("services: %+v", services)
		}
	})
}

func TestHistorySpreadsJitter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCollector(t, nil)
		tr := outbound("web", "web-1")
		p := dial(t, c, testID("client"), "10.84.0.2").hello("client-1", time.Now())
		gaps := []time.Duration{900 * time.Millisecond, 1100 * time.Millisecond, 700 * time.Millisecond, 1300 * time.Millisecond}
		for i := range 80 {
			gap := gaps[i%len(gaps)]
			time.Sleep(gap)
			p.report(tr.add(make([]time.Duration, gap/(10*time.Millisecond))...).message())
		}
		synctest.Wait()
		known := 0
		for i, n := range theEdge(t, c, DefaultWindow).History {
			if math.IsNaN(n) {
				continue
			}
			if known++; n < 99 || n > 101 {
				t.Errorf("slice %d: %.1f requests per second, want 100", i, n)
			}
		}
		if known != 16 {
			t.Errorf("%d slices are known after 80 s, want 16", known)
		}
	})
}

func TestParseWindow(t *testing.T) {
	for in, want := range map[string]string{"": "5m", "start": "start", "60s": "1m", "10s": "10s", "90s": "1m30s", "1h": "1h", "15m": "15m"} {
		if w, err := ParseWindow(in); err != nil || w.String() != want {
			t.Errorf("ParseWindow(%q) = %v, %v", in, w, err)
		}
	}
	for _, in := range []string{"0s", "-5s", "1s", "61m", "x", "999999999999h"} {
		if _, err := ParseWindow(in); err == nil {
			t.Errorf("ParseWindow(%q) was accepted", in)
		}
	}
}
