package dashboard

import (
	"errors"
	"fmt"
	"math"
	"net/url"
	"time"

	"github.com/tulle-mesh/tulle/mesh"
)

// Series is rate, success and latency over time.
type Series struct {
	Now     time.Time `json:"now"`
	Range   string    `json:"range"`
	From    string    `json:"from"` // "history", "prometheus"
	Step    float64   `json:"step_s"`
	Times   []int64   `json:"t"` // the steps' starts, Unix seconds
	RPS     Points    `json:"rps"`
	Success Points    `json:"success"`
	P50     Points    `json:"p50_s"`
	P95     Points    `json:"p95_s"`
	P99     Points    `json:"p99_s"`
}

// Heatmap is how many requests took how long, over time.
type Heatmap struct {
	Now    time.Time  `json:"now"`
	Range  string     `json:"range"`
	From   string     `json:"from"`
	Step   float64    `json:"step_s"`
	Times  []int64    `json:"t"`
	Bounds []float64  `json:"bounds_s"` // of the rows; one more than there are rows
	Counts [][]uint64 `json:"counts"`   // [column][row]; null: no data
}

// Where series come from.
const (
	fromHistory    = "history"
	fromPrometheus = "prometheus"
)

// subject is what a series is about.
type subject struct{ service, source, destination, replica string }

func parseSubject(q url.Values) (subject, error) {
	s := subject{q.Get("service"), q.Get("source"), q.Get("destination"), q.Get("replica")}
	for _, name := range []string{s.service, s.source, s.destination, s.replica} {
		if len(name) > maxName {
			return s, fmt.Errorf("%s…: a name has at most %d bytes", cut(name, maxWord), maxName)
		}
	}
	switch {
	case s.service != "" && s.source == "" && s.destination == "":
		return s, nil
	case s.service == "" && s.source != "" && s.destination != "" && s.replica == "":
		return s, nil
	}
	return s, errors.New("name a service with service=NAME, one of its replicas with replica=NAME besides, or an edge with source=NAME&destination=NAME")
}

func (s subject) wants(key *seriesKey) bool {
	switch {
	case key == nil:
		return false
	case s.replica != "":
		p := key.replica
		return p.service == s.service && (p.workload == s.replica || p.workload == "" && (p.address == s.replica || hostOf(p.address) == s.replica))
	case s.service != "":
		return key.isEdge() && key.edge.service == s.service && key.edge.serviceKind == kindService
	}
	return key.isEdge() && key.edge.source == s.source && key.edge.service == s.destination
}

// timeline is the amounts of one subject on a grid of steps.
type timeline struct {
	now   time.Time
	began time.Time
	first int64 // slice
	each  int64 // slices in a step
	steps []step
}

// step is what was counted in one step of a timeline.
type step struct {
	seconds float64 // that are known of
	parts   []stepPart
}

// stepPart is an amount that is spread over several steps, if it is of a slice
// that was made longer.
type stepPart struct {
	amount
	over, index int64
}

// timeline reads the history.
func (c *Collector) timeline(of subject, window time.Duration, each int64) *timeline {
	now := time.Now()
	c.mu.Lock()
	c.advanceLocked(now, true)
	end := (c.open.oldest + each - 1) / each * each
	t := &timeline{now: now, began: c.began, each: each, first: end - max(int64(window/slice), each)/each*each}
	columns := c.history.since(sliceStart(t.first))
	var ids []uint32
	for id, key := range c.history.keys {
		if of.wants(key) {
			ids = append(ids, uint32(id))
		}
	}
	c.mu.Unlock()
	t.steps = make([]step, (end-t.first)/each)
	for _, column := range columns {
		t.add(column, ids)
	}
	return t
}

func (t *timeline) add(c *column, ids []uint32) {
	from, to := max((c.first-t.first)/t.each, 0), (c.first+c.span-1-t.first)/t.each
	over := (c.span + t.each - 1) / t.each
	var found []amount
	for _, id := range ids {
		if a, ok := c.find(id); ok {
			found = append(found, a)
		}
	}
	for i := from; i <= to && i < int64(len(t.steps)); i++ {
		s := &t.steps[i]
		if c.span == 1 {
			s.seconds += coveredSeconds(c.first, t.began)
		} else {
			s.seconds += float64(c.span) * slice.Seconds() / float64(over)
		}
		for _, a := range found {
			s.parts = append(s.parts, stepPart{a, over, i - (c.first-t.first)/t.each})
		}
	}
}

func (t *timeline) times() []int64 {
	times := make([]int64, len(t.steps))
	for i := range times {
		times[i] = sliceStart(t.first + int64(i)*t.each).Unix()
	}
	return times
}

func (t *timeline) stepSeconds() float64 { return float64(t.each) * slice.Seconds() }

// series computes what is drawn as lines.
func (t *timeline) series(window Window) Series {
	n := len(t.steps)
	s := Series{
		Now: t.now.UTC(), Range: window.String(), From: fromHistory, Step: t.stepSeconds(), Times: t.times(),
		RPS: make(Points, n), Success: make(Points, n), P50: make(Points, n), P95: make(Points, n), P99: make(Points, n),
	}
	var latency [mesh.Buckets]uint64
	for i := range t.steps {
		step := &t.steps[i]
		clear(latency[:])
		var requests, failures float64
		for _, p := range step.parts {
			requests += float64(p.counts.requests) / float64(p.over)
			failures += float64(p.counts.failures) / float64(p.over)
			p.latency.addTo(&latency)
		}
		s.RPS[i], s.Success[i] = math.NaN(), math.NaN()
		if step.seconds > 0 {
			s.RPS[i] = round(requests/step.seconds, 100)
		}
		if requests > 0 {
			s.Success[i] = 1 - min(failures/requests, 1)
		}
		for q, into := range map[float64]Points{0.50: s.P50, 0.95: s.P95, 0.99: s.P99} {
			into[i] = math.NaN()
			if p := percentile(&latency, q); p != nil {
				into[i] = *p
			}
		}
	}
	return s
}

// rowBuckets is how many buckets make a row of a heat map: four rows for each
// doubling.
const rowBuckets = 8

// heatmap computes what is drawn as a heat map, cut to the rows that have anything.
func (t *timeline) heatmap(window Window) Heatmap {
	const rows = (mesh.Buckets + rowBuckets - 1) / rowBuckets
	all, low, high := make([][]uint64, len(t.steps)), rows, 0
	for i := range t.steps {
		step := &t.steps[i]
		if step.seconds == 0 {
			continue
		}
		all[i] = make([]uint64, rows)
		for _, p := range step.parts {
			for c := p.latency.cursor(); c.next(); {
				n := c.count / uint64(p.over)
				if uint64(p.index) < c.count%uint64(p.over) {
					n++
				}
				row := c.bucket / rowBuckets
				all[i][row] = add(all[i][row], n)
				low, high = min(low, row), max(high, row+1)
			}
		}
	}
	h := Heatmap{Now: t.now.UTC(), Range: window.String(), From: fromHistory, Step: t.stepSeconds(), Times: t.times(), Bounds: []float64{}, Counts: all}
	low = min(low, high)
	for i, column := range all {
		if column != nil {
			all[i] = column[low:high]
		}
	}
	for row := low; row <= high && low < high; row++ {
		start, _ := mesh.BucketBounds(min(row*rowBuckets, mesh.Buckets-1))
		h.Bounds = append(h.Bounds, seconds(start))
	}
	if len(h.Bounds) > 1 && high == rows { // the last row has no end: it is drawn as high as the one before
		h.Bounds[len(h.Bounds)-1] = 2 * h.Bounds[len(h.Bounds)-2]
	}
	return h
}

// stepOf returns how many slices make a step so that at most so many steps
// make the window.
func stepOf(window Window, most int64) int64 {
	for _, each := range []int64{1, 3} {
		if int64(time.Duration(window)/slice)/each <= most {
			return each
		}
	}
	return coarseSpan
}

const (
	mostPoints  = 240 // of a series
	mostColumns = 60  // of a heat map
)
