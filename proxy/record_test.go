package proxy

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tulle-mesh/tulle/mesh"
)

func TestEdgesAreCountedTogether(t *testing.T) {
	var r recorder
	key := edgeKey{direction: mesh.Outbound, protocol: mesh.HTTP1, service: "web", address: "10.84.0.2:80"}
	e := r.edge(key)
	if r.edge(key) != e || len(r.all()) != 1 {
		t.Error("one key, two edges")
	}
	r.record(e, &mesh.Exchange{Protocol: mesh.HTTP1, Status: 200, BytesSent: 1, BytesReceived: 2, Duration: time.Second, FirstByte: time.Millisecond})
	r.record(e, &mesh.Exchange{Protocol: mesh.HTTP1, Status: 599, Outcome: mesh.AppFailure, BytesSent: 10, BytesReceived: 20})
	r.record(e, &mesh.Exchange{Protocol: mesh.HTTP1, Status: 600, Outcome: mesh.BadMessage}) // no such status
	r.record(e, &mesh.Exchange{Protocol: mesh.HTTP1, Status: -1, Outcome: mesh.TimedOut})
	if e.requests.Load() != 4 || e.sent.Load() != 11 || e.received.Load() != 22 {
		t.Errorf("%d requests, %d and %d bytes", e.requests.Load(), e.sent.Load(), e.received.Load())
	}
	seen := map[int]uint64{}
	e.eachStatus(func(code int, n uint64) { seen[code] = n })
	if len(seen) != 2 || seen[200] != 1 || seen[599] != 1 {
		t.Errorf("statuses %v", seen)
	}
	var counts [mesh.Buckets]uint64
	if sum := e.latency.Snapshot(&counts); sum != time.Second {
		t.Errorf("durations of %v in all, want that of the whole request", sum)
	}
	tcp := r.edge(edgeKey{protocol: mesh.TCP})
	r.record(tcp, &mesh.Exchange{Protocol: mesh.TCP, FirstByte: time.Millisecond, Duration: time.Hour})
	if sum := tcp.latency.Snapshot(&counts); sum != time.Millisecond {
		t.Errorf("a connection counted as %v, want the time to connect", sum)
	}
	for class := range tcp.statuses {
		if tcp.statuses[class].Load() != nil {
			t.Error("a connection without HTTP pays for its statuses")
		}
	}
}

// However many parties there are, their figures take bounded room, and none is lost.
func TestEdgesAreBounded(t *testing.T) {
	var r recorder
	const many = 20_000
	for i := range many {
		for _, protocol := range []mesh.Protocol{mesh.HTTP1, mesh.TCP} {
			e := r.edge(edgeKey{
				direction: mesh.Direction(i % 2), protocol: protocol, security: mesh.Security(i % 3),
				service: fmt.Sprint("service-", i%1000), address: fmt.Sprint("10.0.0.1:", i),
			})
			r.record(e, &mesh.Exchange{Protocol: protocol})
		}
	}
	if n := len(r.all()); n > maxEdges+64+2*3*5 {
		t.Errorf("%d edges", n)
	}
	var total, others uint64
	for _, e := range r.all() {
		total += e.requests.Load()
		if e.key.address == "other" {
			others += e.requests.Load()
		}
	}
	if total != 2*many || others != 2*many-maxEdges {
		t.Errorf("%d exchanges counted, %d of them as others", total, others)
	}
}

func TestRecorderConcurrently(t *testing.T) {
	var r recorder
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			for j := range 1000 {
				e := r.edge(edgeKey{protocol: mesh.HTTP1, address: fmt.Sprint(j % 50)})
				r.record(e, &mesh.Exchange{Protocol: mesh.HTTP1, Status: 200 + i})
				_ = r.all()
			}
		})
	}
	group.Wait()
	var total, statuses uint64
	for _, e := range r.all() {
		total += e.requests.Load()
		e.eachStatus(func(_ int, n uint64) { statuses += n })
	}
	if len(r.all()) != 50 || total != 8000 || statuses != 8000 {
		t.Errorf("%d edges, %d requests, %d statuses", len(r.all()), total, statuses)
	}
}

func TestRecordDoesNotAllocate(t *testing.T) {
	var r recorder
	e := r.edge(edgeKey{protocol: mesh.HTTP1})
	x := &mesh.Exchange{Protocol: mesh.HTTP1, Status: 200, Duration: time.Millisecond}
	if n := testing.AllocsPerRun(100, func() { r.record(e, x) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestTapIsLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r recorder
		tp := &tap{id: 1, max: 10, events: make(chan mesh.Exchange, 1000)}
		if r.tapped() {
			t.Error("tapped by nobody")
		}
		r.addTap(tp)
		if !r.tapped() {
			t.Error("not tapped")
		}
		e := r.edge(edgeKey{})
		for range 25 {
			r.record(e, &mesh.Exchange{})
		}
		if n, dropped := len(tp.events), tp.takeDropped(); n != 10 || dropped != 15 {
			t.Errorf("%d events passed, %d dropped", n, dropped)
		}
		if again := tp.takeDropped(); again != 0 {
			t.Errorf("%d dropped twice", again)
		}
		time.Sleep(time.Second)
		r.record(e, &mesh.Exchange{})
		if n := len(tp.events); n != 11 {
			t.Errorf("%d events a second later, want 11", n)
		}
		r.removeTap(2) // nobody's
		r.removeTap(1)
		r.record(e, &mesh.Exchange{})
		if len(tp.events) != 11 || r.tapped() {
			t.Error("still tapped")
		}
		r.removeTap(1)
	})
}

func TestFullTapNeverBlocks(t *testing.T) {
	tp := &tap{max: 1000, events: make(chan mesh.Exchange, 1)}
	for range 5 {
		tp.offer(mesh.Exchange{})
	}
	if dropped := tp.takeDropped(); dropped != 4 {
		t.Errorf("%d dropped, want 4", dropped)
	}
}
