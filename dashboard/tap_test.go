package dashboard

import (
	"testing"
	"testing/synctest"
	"time"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
)

// next returns what the proxy is told, nil if nothing.
func (f *fakeProxy) next() *tullev1.ControlMessage {
	synctest.Wait()
	select {
	case m := <-f.control:
		return m
	default:
		return nil
	}
}

func TestProxiesTapOnlyWhileSomebodyReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCollector(t, nil)
		p := dial(t, c, testID("client"), "10.84.0.2").hello("client-1", time.Now())
		if m := p.next(); m != nil {
			t.Fatalf("told %v before anybody reads", m)
		}
		first, _ := c.taps.open(Filter{MaxRate: 10})
		start := p.next().GetTapStart()
		if start == nil || start.MaxPerSecond != 100 {
			t.Fatalf("told %v, want a start with 100 per second", start)
		}
		second, _ := c.taps.open(Filter{MaxRate: 5})
		if m := p.next(); m != nil {
			t.Errorf("a second reader that needs no more made the proxy be told %v", m)
		}
		third, _ := c.taps.open(Filter{MaxRate: 50})
		more, stop := p.next().GetTapStart(), p.next().GetTapStop()
		if more.GetMaxPerSecond() != 500 || stop.GetId() != start.Id {
			t.Errorf("a greedier reader: %v, %v; want a start with 500, then a stop of %d", more, stop, start.Id)
		}
		late := dial(t, c, testID("web"), "10.84.0.3").hello("web-1", time.Now())
		if m := late.next().GetTapStart(); m.GetMaxPerSecond() != 500 {
			t.Errorf("a proxy that comes later is told %v", m)
		}
		c.taps.close(third)
		c.taps.close(first)
		for p.next() != nil { // down to the second one's rate
		}
		c.taps.close(second)
		if m := p.next(); m.GetTapStop() == nil || p.next() != nil {
			t.Errorf("after the last reader: %v, want one stop", m)
		}
		p.end()
		late.end()
	})
}

func TestTapFilters(t *testing.T) {
	get := &tullev1.TapEvent{
		Protocol: "http/1", Security: "mtls", Outcome: "success", Service: "web", ClientAddress: "10.84.0.2:5000",
		ServerWorkload: "web-1", Status: 200, Method: "GET", Path: "/api/items", DurationMicros: 4000,
	}
	for name, tc := range map[string]struct {
		filter Filter
		want   bool
	}{
		"all":               {Filter{}, true},
		"service":           {Filter{Service: "web"}, true},
		"calling service":   {Filter{Service: "client"}, true},
		"other service":     {Filter{Service: "db"}, false},
		"other namespace":   {Filter{Service: "*.shop"}, false},
		"client":            {Filter{Client: "client"}, true},
		"client's identity": {Filter{Client: testID("client").String()}, true},
		"other client":      {Filter{Client: "web"}, false},
		"method":            {Filter{Method: "get"}, true},
		"other method":      {Filter{Method: "POST"}, false},
		"path":              {Filter{PathPrefix: "/api"}, true},
		"other path":        {Filter{PathPrefix: "/admin"}, false},
		"status":            {Filter{Status: "200"}, true},
		"class":             {Filter{Status: "2xx"}, true},
		"other class":       {Filter{Status: "5xx"}, false},
		"failed":            {Filter{Status: "failed"}, false},
		"slow":              {Filter{SlowerThan: 4 * time.Millisecond}, true},
		"slower":            {Filter{SlowerThan: 5 * time.Millisecond}, false},
	} {
		t.Run(name, func(t *testing.T) {
			taps := newTaps()
			reader, _ := taps.open(tc.filter)
			taps.publish(tapClient{testID("client"), "client", "client-1"}, get, nil)
			if got := len(reader.events) == 1; got != tc.want {
				t.Errorf("shown: %v, want %v", got, tc.want)
			}
		})
	}
}

func TestTapShowsOnceAndBoundsRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		taps := newTaps()
		reader, _ := taps.open(Filter{MaxRate: 3})
		client, server := tapClient{testID("client"), "client", "client-1"}, tapClient{testID("web"), "web", "web-1"}
		id := testID("client").String()
		for range 10 {
			taps.publish(client, &tullev1.TapEvent{Service: "web", Outcome: "success"}, nil)
			taps.publish(server, &tullev1.TapEvent{Service: "web", Inbound: true, ClientIdentity: id}, nil)
		}
		if n := len(reader.events); n != 3 {
			t.Fatalf("%d events in one second, want 3", n)
		}
		time.Sleep(time.Second)
		taps.publish(server, &tullev1.TapEvent{Service: "web", Inbound: true, ClientAddress: "192.0.2.1:99", Dropped: 2}, nil)
		for range 3 {
			<-reader.events
		}
		e := <-reader.events
		if e.Dropped != 9 || e.Source != "192.0.2.1" || e.Workload != "web-1" {
			t.Errorf("got %+v; want one from 192.0.2.1 to web-1 after 9 dropped", e)
		}
		for range maxTaps - 1 {
			if _, ok := taps.open(Filter{}); !ok {
				t.Fatal("refused too early")
			}
		}
		if _, ok := taps.open(Filter{}); ok {
			t.Error("too many readers were let in")
		}
	})
}
