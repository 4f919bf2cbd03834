package proxy

import (
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tulle-mesh/tulle/mesh"
)

// edgeKey says which traffic is counted together: one kind of exchange with
// one other party.
type edgeKey struct {
	direction mesh.Direction
	protocol  mesh.Protocol
	security  mesh.Security
	service   string  // outbound: the service asked for, or ""; inbound: the own one
	peer      mesh.ID // as proved
	workload  string  // outbound: the replica
	address   string  // outbound: the endpoint; inbound: the caller's IP where it proved no identity
}

const (
	maxForeign  = 128  // of them, outside the mesh
	maxEdges    = 1024 // beyond, traffic is counted under an address of "other"
	outcomes    = int(mesh.TimedOut) + 1
	firstStatus = 100
	lastStatus  = 599
)

// edge counts. All fields are written by many connections at once.
type edge struct {
	key      edgeKey
	requests atomic.Uint64 // grows with every exchange: a change of anything is a change of this
	open     atomic.Int64
	sent     atomic.Uint64
	received atomic.Uint64
	outcomes [outcomes]atomic.Uint64
	statuses [lastStatus/100 + 1]atomic.Pointer[statuses] // by hundreds, nil before the first one
	latency  mesh.Histogram
}

// statuses counts HTTP answers by the last two digits of their status.
type statuses [100]atomic.Uint64

// status returns the counter of an HTTP status.
func (e *edge) status(code int) *atomic.Uint64 {
	class := &e.statuses[code/100]
	s := class.Load()
	if s == nil {
		class.CompareAndSwap(nil, &statuses{})
		s = class.Load()
	}
	return &s[code%100]
}

// eachStatus calls f for every status that was counted.
func (e *edge) eachStatus(f func(code int, n uint64)) {
	for class := range e.statuses {
		s := e.statuses[class].Load()
		if s == nil {
			continue
		}
		for i := range s {
			if n := s[i].Load(); n > 0 {
				f(class*100+i, n)
			}
		}
	}
}

// recorder turns exchanges into figures and hands them to those who tap.
type recorder struct {
	mu      sync.Mutex
	edges   map[edgeKey]*edge
	foreign int                  // edges asked for whose other side is outside the mesh
	list    mesh.Latest[[]*edge] // for readers; grows only

	taps atomic.Pointer[[]*tap] // nil while nobody taps
}

// edge returns the counters for key. Callers keep it for the life of a
// connection or of an endpoint.
func (r *recorder) edge(key edgeKey) *edge {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.edges[key]; e != nil {
		return e
	}
	if key.direction == mesh.Outbound && key.service == "" {
		// What lies outside the mesh has no end, and shall not crowd the mesh out.
		if r.foreign++; r.foreign > maxForeign {
			key.address = "other"
			if e := r.edges[key]; e != nil {
				return e
			}
		}
	}
	if len(r.edges) >= maxEdges {
		key = edgeKey{direction: key.direction, protocol: key.protocol, security: key.security, service: key.service, address: "other"}
		if e := r.edges[key]; e != nil {
			return e
		}
		if len(r.edges) >= maxEdges+64 {
			key.service = "other"
			if e := r.edges[key]; e != nil {
				return e
			}
		}
	}
	e := &edge{key: key}
	if r.edges == nil {
		r.edges = map[edgeKey]*edge{}
	}
	r.edges[key] = e
	r.list.Update(func(old *[]*edge) *[]*edge {
		var next []*edge
		if old != nil {
			next = slices.Clone(*old)
		}
		next = append(next, e)
		return &next
	})
	return e
}

// all returns every edge there is; the caller must not change the slice.
func (r *recorder) all() []*edge {
	if l := r.list.Load(); l != nil {
		return *l
	}
	return nil
}

// tapped tells whether the next exchange should note what it costs to note.
func (r *recorder) tapped() bool { return r.taps.Load() != nil }

// record counts a finished exchange. It does not keep x.
func (r *recorder) record(e *edge, x *mesh.Exchange) {
	e.outcomes[x.Outcome].Add(1)
	e.sent.Add(x.BytesSent)
	e.received.Add(x.BytesReceived)
	if x.Status >= firstStatus && x.Status <= lastStatus {
		e.status(x.Status).Add(1)
	}
	if x.Protocol == mesh.HTTP1 || x.Protocol == mesh.HTTP2 {
		e.latency.Record(x.Duration)
	} else {
		e.latency.Record(x.FirstByte) // of a connection: the time to connect
	}
	e.requests.Add(1) // last: who sees it sees the rest
	if taps := r.taps.Load(); taps != nil {
		seen := *x
		for _, t := range *taps {
			t.offer(seen)
		}
	}
}

// tap passes exchanges on to one watcher, at most max a second.
type tap struct {
	id     uint64
	max    uint32
	events chan mesh.Exchange

	mu      sync.Mutex
	second  int64
	passed  uint32
	dropped uint64 // since the last event that was passed on
}

// offer never blocks: what does not fit is counted and left out.
func (t *tap) offer(x mesh.Exchange) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if now := time.Now().Unix(); now != t.second {
		t.second, t.passed = now, 0
	}
	if t.passed >= t.max {
		t.dropped++
		return
	}
	select {
	case t.events <- x:
		t.passed++
	default:
		t.dropped++
	}
}

func (t *tap) takeDropped() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.dropped
	t.dropped = 0
	return n
}

func (r *recorder) addTap(t *tap) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var next []*tap
	if old := r.taps.Load(); old != nil {
		next = slices.Clone(*old)
	}
	next = append(next, t)
	r.taps.Store(&next)
}

func (r *recorder) removeTap(id uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.taps.Load()
	if old == nil {
		return
	}
	next := slices.DeleteFunc(slices.Clone(*old), func(t *tap) bool { return t.id == id })
	if len(next) == 0 {
		r.taps.Store(nil)
		return
	}
	r.taps.Store(&next)
}

// callerAddress is how a caller without identity is told from others: by IP,
// since each of its connections has another port.
func callerAddress(a netip.AddrPort) string { return a.Addr().String() }
