package dashboard

import (
	"cmp"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tulle-mesh/tulle/mesh"
)

// Route is one HTTP route or gRPC method of a service, as a sample shows it.
type Route struct {
	Kind     string   `json:"kind"` // "http", "grpc"
	Method   string   `json:"method"`
	Path     string   `json:"path"`
	RPS      float64  `json:"rps"` // the sample's share of the service's rate
	Requests uint64   `json:"requests"`
	Failures uint64   `json:"failures"`
	Success  *float64 `json:"success"`
	P50      *float64 `json:"p50_s"`
	P95      *float64 `json:"p95_s"`
	P99      *float64 `json:"p99_s"`
}

// Routes is the answer about a service's routes.
type Routes struct {
	Now     time.Time `json:"now"`
	Range   string    `json:"range"`
	Service string    `json:"service"`
	Since   string    `json:"since"`
	Seen    uint64    `json:"seen"`
	Missed  uint64    `json:"missed"`
	Items   []Route   `json:"items"`
}

const (
	maxSamples    = 8   // services whose routes are noted at a time
	maxRoutes     = 100 // of a service, the rest is "(other)"
	usualRoutes   = 20  // shown
	sampleRate    = 20  // requests per second that are noted, times tapRateFactor at each proxy
	sampleFor     = time.Minute
	generation    = time.Minute // what a sample is forgotten by
	otherRoutes   = "(other)"
	longestNumber = 3 // digits in a path that may be a part of the route: /v1, /404
)

// routes samples what is requested of services, while somebody asks: noting
// methods and paths costs the proxies an allocation for each request.
type routes struct {
	taps *taps

	mu      sync.Mutex // taken before taps.mu
	samples map[string]*sample
}

// sample is what was noted of one service's routes.
type sample struct {
	tap   *tap
	began time.Time
	until time.Time

	mu          sync.Mutex     // guards generations; taken after taps.mu
	generations []*routeCounts // oldest first
}

type routeKey struct{ kind, method, path string }

// routeCounts is what one generation counted.
type routeCounts struct {
	start  time.Time
	missed uint64
	routes map[routeKey]*routeCount
}

type routeCount struct {
	requests, failures uint64
	latency            tally[uint16]
}

func newRoutes(t *taps) *routes { return &routes{taps: t, samples: map[string]*sample{}} }

// of returns the sample of a service, and sees to it that it goes on.
func (r *routes) of(service string, now time.Time) *sample {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.samples[service]
	if s == nil {
		if len(r.samples) >= maxSamples {
			r.endOldestLocked()
		}
		s = &sample{began: now}
		s.tap = r.taps.follow(Filter{Service: service, MaxRate: sampleRate}, func(e *Event) {
			if e.Service == service && e.Method != "" {
				s.note(e, time.Now())
			}
		})
		r.samples[service] = s
	}
	s.until = now.Add(sampleFor)
	return s
}

func (r *routes) endOldestLocked() {
	oldest := ""
	for service, s := range r.samples {
		if oldest == "" || s.until.Before(r.samples[oldest].until) {
			oldest = service
		}
	}
	r.taps.close(r.samples[oldest].tap)
	delete(r.samples, oldest)
}

// expire ends the samples that nobody has asked for lately.
func (r *routes) expire(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for service, s := range r.samples {
		if now.After(s.until) {
			r.taps.close(s.tap)
			delete(r.samples, service)
		}
	}
}

func (s *sample) note(e *Event, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.generations)
	if n == 0 || now.Sub(s.generations[n-1].start) >= generation {
		s.generations = append(s.generations, &routeCounts{start: now, routes: map[routeKey]*routeCount{}})
		if n++; n > int(time.Hour/generation) {
			s.generations = slices.Delete(s.generations, 0, 1)
			n--
		}
	}
	g := s.generations[n-1]
	g.missed = add(g.missed, e.Dropped)
	key := routeOf(e)
	if g.routes[key] == nil && len(g.routes) >= maxRoutes {
		key = routeKey{key.kind, "", otherRoutes}
	}
	count := g.routes[key]
	if count == nil {
		count = &routeCount{}
		g.routes[key] = count
	}
	count.requests++
	if e.Outcome != mesh.Success.String() {
		count.failures++
	}
	bucket := mesh.BucketOf(time.Duration(e.Duration * float64(time.Second)))
	count.latency = count.latency.plus(uint16(bucket), 1, mesh.Buckets)
}

// routeOf names the route of a request. A gRPC method is one posted over HTTP/2
// to /package.Service/Method (the gRPC over HTTP/2 protocol, "Requests").
func routeOf(e *Event) routeKey {
	path, _, _ := strings.Cut(e.Path, "?")
	if service, method, ok := strings.Cut(strings.TrimPrefix(path, "/"), "/"); ok && e.Protocol == mesh.HTTP2.String() && e.Method == "POST" &&
		strings.Contains(service, ".") && method != "" && !strings.Contains(method, "/") {
		return routeKey{"grpc", method, service}
	}
	return routeKey{"http", e.Method, routePath(path)}
}

// routePath replaces what looks like a number or an identifier by "*".
func routePath(path string) string {
	parts := strings.Split(cut(path, maxName), "/")
	for i, part := range parts {
		if isIdentifier(part) {
			parts[i] = "*"
		}
	}
	return strings.Join(parts, "/")
}

// isIdentifier tells whether a part of a path is one of many: a number, a UUID,
// a digest.
func isIdentifier(part string) bool {
	digits, hex := 0, 0
	for _, r := range part {
		switch {
		case r >= '0' && r <= '9':
			digits++
		case r >= 'a' && r <= 'f' || r >= 'A' && r <= 'F' || r == '-':
			hex++
		}
	}
	switch {
	case digits > longestNumber:
		return true
	case digits == len(part):
		return digits > 0
	}
	return digits > 0 && digits+hex == len(part) && len(part) >= 8
}

// since adds up the generations that reach into the window.
func (s *sample) since(t time.Time) (sums map[routeKey]*routeCount, missed uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sums = map[routeKey]*routeCount{}
	for _, g := range s.generations {
		if !g.start.Add(generation).After(t) {
			continue
		}
		missed = add(missed, g.missed)
		for key, count := range g.routes {
			sum := sums[key]
			if sum == nil {
				sum = &routeCount{}
				sums[key] = sum
			}
			sum.requests += count.requests
			sum.failures += count.failures
			for _, e := range count.latency {
				sum.latency = sum.latency.plus(e.key, e.n, mesh.Buckets)
			}
		}
	}
	return sums, missed
}

// answer lists the routes of a service that is requested so often.
func (s *sample) answer(now time.Time, window Window, rps float64, limit int) Routes {
	from := now.Add(-time.Duration(window))
	if window == 0 {
		from = s.began
	}
	sums, missed := s.since(from)
	a := Routes{Now: now.UTC(), Range: window.String(), Since: stamp(s.began), Missed: missed, Items: []Route{}}
	for _, count := range sums {
		a.Seen += count.requests
	}
	for key, count := range sums {
		var latency [mesh.Buckets]uint64
		for _, e := range count.latency {
			latency[e.key] = e.n
		}
		a.Items = append(a.Items, Route{
			Kind: key.kind, Method: key.method, Path: key.path, Requests: count.requests, Failures: count.failures,
			RPS:     math.Round(rps*float64(count.requests)/float64(a.Seen)*100) / 100,
			Success: new(1 - float64(count.failures)/float64(count.requests)),
			P50:     percentile(&latency, 0.50), P95: percentile(&latency, 0.95), P99: percentile(&latency, 0.99),
		})
	}
	slices.SortFunc(a.Items, func(x, y Route) int {
		return cmp.Or(cmp.Compare(y.Requests, x.Requests), cmpStrings(x.Path, y.Path, x.Method, y.Method, x.Kind, y.Kind))
	})
	a.Items = a.Items[:min(len(a.Items), limit)]
	return a
}
