package dashboard

import (
	"math"
	"slices"
	"strings"
	"time"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
	"github.com/tulle-mesh/tulle/mesh"
)

// Figures are what every row shows. Success and the percentiles are null when
// there was nothing to take them from.
type Figures struct {
	RPS      float64  `json:"rps"`
	Requests uint64   `json:"requests"` // in the window, as all figures but the totals
	Failures uint64   `json:"failures"`
	Success  *float64 `json:"success"` // 0 to 1
	P50      *int64   `json:"p50_us"`  // microseconds
	P95      *int64   `json:"p95_us"`
	P99      *int64   `json:"p99_us"`
	Open     uint64   `json:"open"` // in flight now
	Sent     uint64   `json:"bytes_sent"`
	Received uint64   `json:"bytes_received"`
	// Since the beginning, exactly.
	TotalRequests uint64 `json:"total_requests"`
	TotalFailures uint64 `json:"total_failures"`
}

// Service is one row of the services view.
type Service struct {
	Name      string    `json:"name"`
	Source    string    `json:"source"` // "run", "catalog", "" if only seen in traffic
	Protocol  string    `json:"protocol,omitempty"`
	Addresses []string  `json:"addresses"`
	Ready     int       `json:"ready"`    // replicas
	Replicas  int       `json:"replicas"` //
	MTLS      *float64  `json:"mtls"`     // share of requests, 0 to 1
	History   []float64 `json:"history"`  // requests in each of the last 60 s
	Figures
}

// Edge is one row of the edges view: who calls whom.
type Edge struct {
	Source         string            `json:"source"`
	SourceKind     string            `json:"source_kind"` // "workload", "host", "address"
	SourceIdentity string            `json:"source_identity,omitempty"`
	Service        string            `json:"service"`
	ServiceKind    string            `json:"service_kind"` // "service", "outside"
	Security       string            `json:"security"`
	Protocol       string            `json:"protocol"`
	Outcomes       map[string]uint64 `json:"outcomes"` // since the beginning, success left out
	Statuses       map[uint32]uint64 `json:"statuses"` // since the beginning
	History        []float64         `json:"history"`
	Figures
}

// Replica is one row of the replicas view: how the balancers share a service's
// requests out.
type Replica struct {
	Service  string       `json:"service"`
	Workload string       `json:"workload"` // its name, its address if it has none
	Address  string       `json:"address"`
	Ready    bool         `json:"ready"`
	Share    *float64     `json:"share"`     // of the service's requests, 0 to 1
	Fair     float64      `json:"fair"`      // what an even share would be
	EWMA     *float64     `json:"ewma_us"`   // mean of what its clients' balancers estimate
	InFlight uint64       `json:"in_flight"` // from all clients
	Clients  []ClientView `json:"clients"`
	Figures
}

// ClientView is how one client's balancer sees a replica.
type ClientView struct {
	Workload string  `json:"workload"`
	EWMA     float64 `json:"ewma_us"`
	InFlight uint32  `json:"in_flight"`
}

// figures are the sum as shown.
func (s *sum) figures() Figures {
	f := Figures{
		RPS: round(s.rps, 100), Requests: s.counts.requests, Failures: s.counts.failures, Open: s.open,
		Sent: s.counts.sent, Received: s.counts.received, TotalRequests: s.total.requests, TotalFailures: s.total.failures,
	}
	if f.Requests > 0 {
		f.Success = new(1 - min(float64(f.Failures)/float64(f.Requests), 1))
	}
	f.P50, f.P95, f.P99 = quantile(&s.latency, 0.50), quantile(&s.latency, 0.95), quantile(&s.latency, 0.99)
	return f
}

func quantile(counts *[mesh.Buckets]uint64, q float64) *int64 {
	if *counts == ([mesh.Buckets]uint64{}) {
		return nil
	}
	return new(mesh.Quantile(counts, q).Microseconds())
}

func (s *sum) mtlsShare() *float64 { return share(s.mtls, s.counts.requests) }

func share(part, whole uint64) *float64 {
	if whole == 0 {
		return nil
	}
	return new(float64(part) / float64(whole))
}

func (s *sum) points() []float64 {
	points := make([]float64, len(s.history))
	for i, n := range s.history {
		points[i] = round(n, 10)
	}
	return points
}

func round(x, unit float64) float64 { return math.Round(x*unit) / unit }

// services are those of the inventory and those seen in traffic, by name.
func (s *snapshot) services(flows []flow) []Service {
	sums := map[string]*sum{}
	for _, f := range flows {
		if f.serviceKind == kindService {
			sumFor(sums, f.service).add(f)
		}
	}
	rows := []Service{}
	for _, known := range s.inventory.Services {
		row := Service{Name: known.Name, Source: known.Source, Protocol: known.Protocol, Addresses: nonEmpty(known.Address4, known.Address6)}
		row.Ready, row.Replicas = s.readiness(known)
		rows = append(rows, row.with(sumFor(sums, known.Name)))
		delete(sums, known.Name)
	}
	for name, sum := range sums {
		rows = append(rows, Service{Name: name, Addresses: []string{}}.with(sum))
	}
	slices.SortFunc(rows, func(a, b Service) int { return cmpStrings(a.Name, b.Name) })
	return rows
}

func (row Service) with(s *sum) Service {
	row.Figures, row.MTLS, row.History = s.figures(), s.mtlsShare(), s.points()
	return row
}

func sumFor[K comparable](sums map[K]*sum, key K) *sum {
	if sums[key] == nil {
		sums[key] = &sum{}
	}
	return sums[key]
}

// readiness counts a service's replicas. Those of the catalog are not probed,
// so they count as ready.
func (s *snapshot) readiness(service *tullev1.Service) (ready, all int) {
	for _, w := range s.inventory.Workloads {
		if w.Service == service.Name && !strings.HasPrefix(w.State, "exited") {
			all++
			if isReady(w.State) {
				ready++
			}
		}
	}
	if all == 0 && service.Source == "catalog" {
		return len(service.Endpoints), len(service.Endpoints)
	}
	return ready, all
}

func isReady(state string) bool { return state == "ready" || state == "running" }

func nonEmpty(list ...string) []string {
	return slices.DeleteFunc(list, func(s string) bool { return s == "" })
}

type edgeRow struct{ source, kind, identity, service, serviceKind, security, protocol string }

// edges are who calls whom, by name.
func (s *snapshot) edges(flows []flow) []Edge {
	sums := map[edgeRow]*sum{}
	for _, f := range flows {
		key := edgeRow{f.source, f.sourceKind, f.sourceIdentity, f.service, f.serviceKind, f.key.security, f.key.protocol}
		sumFor(sums, key).add(f)
	}
	rows := make([]Edge, 0, len(sums))
	for k, sum := range sums {
		rows = append(rows, Edge{
			Source: k.source, SourceKind: k.kind, SourceIdentity: k.identity, Service: k.service, ServiceKind: k.serviceKind,
			Security: k.security, Protocol: k.protocol,
			Outcomes: sum.outcomes, Statuses: sum.statuses, History: sum.points(), Figures: sum.figures(),
		})
	}
	slices.SortFunc(rows, func(a, b Edge) int {
		return cmpStrings(a.Source, b.Source, a.Service, b.Service, a.Security, b.Security, a.Protocol, b.Protocol, a.SourceIdentity, b.SourceIdentity)
	})
	return rows
}

// stamp formats a time of the API; the zero time is "".
func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}
