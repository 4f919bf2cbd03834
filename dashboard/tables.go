package dashboard

import (
	"cmp"
	"encoding/json"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/tulle-mesh/tulle/mesh"
)

const (
	maxEdgeRows    = 1000 // that one answer has
	maxReplicaRows = 2000
	maxServiceRows = 2000
)

// sum is what several flows, and their history, come to together.
type sum struct {
	counts   counts
	mtls     uint64 // of counts.requests
	latency  *[mesh.Buckets]uint64
	total    counts
	open     uint64
	outcomes tally[string]
	statuses tally[uint32]
	points   *[historySlices]float64 // requests in each of the last slices
}

func (s *sum) count(c counts, security string) {
	s.counts = s.counts.plus(c)
	if security == mesh.MutualTLS.String() {
		s.mtls = add(s.mtls, c.requests)
	}
}

// tables are the sums that all views are made from: one for each edge, service
// and replica, and one for all.
type tables struct {
	*snapshot
	edges    map[edgeRow]*sum
	services map[string]*sum
	replicas map[replicaKey]*sum
	all      *sum

	listed    map[replicaKey]bool
	addresses map[replicaKey]string
	byID      [][]*sum // the sums that a series counts for
	known     [historySlices]bool
	decided   bool // what is shown
}

// tables adds everything up. Figures are counted for all rows; histograms,
// which cost more, only for those that will be shown.
func (s *snapshot) tables() *tables {
	t := &tables{
		snapshot: s, edges: map[edgeRow]*sum{}, services: map[string]*sum{}, replicas: map[replicaKey]*sum{}, all: &sum{},
		listed: s.listed(), addresses: map[replicaKey]string{}, byID: make([][]*sum, len(s.keys)),
	}
	t.countFlows()
	t.countColumns()
	shown(t.edges, maxEdgeRows)
	shown(t.replicas, maxReplicaRows)
	shown(t.services, maxServiceRows)
	t.decided = true
	t.all.latency, t.all.points = new([mesh.Buckets]uint64), new([historySlices]float64)
	t.addLatencies()
	t.addPoints()
	return t
}

// sumsOf returns the sums that a flow or series counts for. Once it is decided
// what is shown, no new ones are made.
func (t *tables) sumsOf(edge edgeRow, place replicaPlace) []*sum {
	sums := make([]*sum, 0, 4)
	if edge != (edgeRow{}) {
		sums = append(sums, t.all)
		sums = pick(sums, t.edges, edge, t.decided)
		if edge.serviceKind == kindService {
			sums = pick(sums, t.services, edge.service, t.decided)
		}
	}
	if place != (replicaPlace{}) {
		key := t.place(place)
		sums = pick(sums, t.replicas, key, t.decided)
		if t.addresses[key] == "" {
			t.addresses[key] = place.address
		}
	}
	return sums
}

func pick[K comparable](sums []*sum, from map[K]*sum, key K, decided bool) []*sum {
	if from[key] == nil {
		if decided {
			return sums
		}
		from[key] = &sum{}
	}
	return append(sums, from[key])
}

// place names a replica: by its workload, or by its address where it has none.
// Those of the catalog may be listed without a port.
func (t *tables) place(p replicaPlace) replicaKey {
	if p.workload != "" {
		return replicaKey{p.service, p.workload}
	}
	if key := (replicaKey{p.service, hostOf(p.address)}); key.name != "" && t.listed[key] {
		return key
	}
	return replicaKey{p.service, p.address}
}

func (t *tables) countFlows() {
	for i := range t.flows {
		f := &t.flows[i]
		for _, sum := range t.sumsOf(f.edge, f.place) {
			for _, p := range f.parts {
				sum.count(p.counts, f.edge.security)
			}
			sum.total, sum.open = sum.total.plus(f.total), add(sum.open, f.open)
		}
		edge := t.edges[f.edge]
		for _, o := range f.outcomes {
			edge.outcomes = edge.outcomes.plus(o.key, o.n, maxOutcomes)
		}
		for _, o := range f.statuses {
			edge.statuses = edge.statuses.plus(o.key, o.n, maxStatuses)
		}
	}
}

func (t *tables) countColumns() {
	for _, c := range t.columns {
		c.each(func(id uint32, a amount) {
			key := t.keys[id]
			if t.byID[id] == nil {
				t.byID[id] = t.sumsOf(key.edge, key.replica)
			}
			for _, sum := range t.byID[id] {
				sum.count(a.counts, key.edge.security)
			}
		})
	}
}

// shown gives the rows that will be shown, those with the most requests, room
// for details, and drops the others.
func shown[K comparable](sums map[K]*sum, limit int) {
	if len(sums) > limit {
		ranked := make([]K, 0, len(sums))
		for key := range sums {
			ranked = append(ranked, key)
		}
		slices.SortFunc(ranked, func(a, b K) int {
			return cmp.Or(cmp.Compare(sums[b].counts.requests, sums[a].counts.requests), cmp.Compare(sums[b].total.requests, sums[a].total.requests))
		})
		for _, key := range ranked[limit:] {
			delete(sums, key)
		}
	}
	for _, sum := range sums {
		if sum.counts.requests > 0 {
			sum.latency = new([mesh.Buckets]uint64)
		}
		sum.points = new([historySlices]float64)
	}
}

func (t *tables) addLatencies() {
	addTo := func(sums []*sum, p packed) {
		for _, sum := range sums {
			if sum.latency != nil {
				p.addTo(sum.latency)
			}
		}
	}
	for i := range t.flows {
		f := &t.flows[i]
		if len(f.parts) == 0 {
			continue
		}
		sums := t.sumsOf(f.edge, f.place)
		for _, p := range f.parts {
			addTo(sums, p.latency)
		}
	}
	for _, c := range t.columns {
		c.each(func(id uint32, a amount) {
			addTo(t.byID[id], a.latency)
		})
	}
}

// addPoints fills the sparklines. The newest point is the newest slice that is
// closed.
func (t *tables) addPoints() {
	oldest := t.newest - historySlices + 1
	for _, c := range t.recent {
		from, to := max(c.first-oldest, 0), min(c.first+c.span-oldest, historySlices)
		for i := from; i < to; i++ {
			t.known[i] = true
		}
		c.each(func(id uint32, a amount) {
			if t.byID[id] == nil {
				t.byID[id] = t.sumsOf(t.keys[id].edge, t.keys[id].replica)
			}
			for _, sum := range t.byID[id] {
				for i := from; i < to && sum.points != nil; i++ {
					sum.points[i] += float64(a.counts.requests) / float64(c.span)
				}
			}
		})
	}
}

// Points are numbers over time; NaN, written as null, is where there are none.
type Points []float64

// MarshalJSON writes an array.
func (p Points) MarshalJSON() ([]byte, error) {
	b := append(make([]byte, 0, 2+6*len(p)), '[')
	for i, n := range p {
		if i > 0 {
			b = append(b, ',')
		}
		if math.IsNaN(n) || math.IsInf(n, 0) {
			b = append(b, "null"...)
		} else {
			b = strconv.AppendFloat(b, n, 'g', -1, 64)
		}
	}
	return append(b, ']'), nil
}

// UnmarshalJSON reads an array.
func (p *Points) UnmarshalJSON(b []byte) error {
	var list []*float64
	if err := json.Unmarshal(b, &list); err != nil {
		return err
	}
	*p = make(Points, len(list))
	for i, n := range list {
		(*p)[i] = math.NaN()
		if n != nil {
			(*p)[i] = *n
		}
	}
	return nil
}

func (t *tables) points(s *sum) Points {
	points := make(Points, historySlices)
	for i := range points {
		switch {
		case !t.known[i]:
			points[i] = math.NaN()
		case s.points != nil:
			points[i] = round(s.points[i]/coveredSeconds(t.newest-historySlices+1+int64(i), t.began), 10)
		}
	}
	return points
}

// figures are the sum as shown.
func (t *tables) figures(s *sum) Figures {
	f := Figures{
		RPS: round(float64(s.counts.requests)/t.span.Seconds(), 100), Requests: s.counts.requests, Failures: s.counts.failures, Open: s.open,
		Sent: s.counts.sent, Received: s.counts.received, TotalRequests: s.total.requests, TotalFailures: s.total.failures,
	}
	if f.Requests > 0 {
		f.Success = new(1 - min(float64(f.Failures)/float64(f.Requests), 1))
	}
	f.P50, f.P95, f.P99 = percentile(s.latency, 0.50), percentile(s.latency, 0.95), percentile(s.latency, 0.99)
	return f
}

// percentile returns seconds, nil if nothing was counted.
func percentile(counts *[mesh.Buckets]uint64, q float64) *float64 {
	if counts == nil || *counts == ([mesh.Buckets]uint64{}) {
		return nil
	}
	return new(seconds(mesh.Quantile(counts, q)))
}

// seconds is in whole microseconds, the finest that there is.
func seconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1e6 }
