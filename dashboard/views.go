package dashboard

import (
	"math"
	"slices"
	"strings"
	"time"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
)

// Figures are what every row shows. Success and the percentiles are null when
// there was nothing to take them from.
type Figures struct {
	RPS      float64  `json:"rps"`
	Requests uint64   `json:"requests"` // in the window, as all figures but the totals
	Failures uint64   `json:"failures"`
	Success  *float64 `json:"success"` // 0 to 1
	P50      *float64 `json:"p50_s"`   // seconds
	P95      *float64 `json:"p95_s"`
	P99      *float64 `json:"p99_s"`
	Open     uint64   `json:"open"` // in flight now
	Sent     uint64   `json:"bytes_sent"`
	Received uint64   `json:"bytes_received"`
	// Since the beginning, exactly.
	TotalRequests uint64 `json:"total_requests"`
	TotalFailures uint64 `json:"total_failures"`
}

// Service is one row of the services view.
type Service struct {
	Name      string   `json:"name"`
	Source    string   `json:"source"` // "run", "catalog", "" if only seen in traffic
	Protocol  string   `json:"protocol,omitempty"`
	Addresses []string `json:"addresses"`
	Ready     int      `json:"ready"`    // replicas
	Replicas  int      `json:"replicas"` //
	MTLS      *float64 `json:"mtls"`     // share of requests, 0 to 1
	History   Points   `json:"history"`  // requests per second in each of the last 60 slices
	Figures
}

// Edge is one row of the edges view: who calls whom.
type Edge struct {
	Source          string            `json:"source"`
	SourceKind      string            `json:"source_kind"` // "workload", "host", "address"
	SourceIdentity  string            `json:"source_identity,omitempty"`
	Destination     string            `json:"destination"`
	DestinationKind string            `json:"destination_kind"` // "service", "outside"
	Security        string            `json:"security"`
	Protocol        string            `json:"protocol"`
	Outcomes        map[string]uint64 `json:"outcomes"` // since the beginning, success left out
	Statuses        map[uint32]uint64 `json:"statuses"` // since the beginning
	History         Points            `json:"history"`
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
	EWMA     *float64     `json:"ewma_s"`    // mean of what its clients' balancers estimate
	InFlight uint64       `json:"in_flight"` // from all clients
	Clients  []ClientView `json:"clients"`
	Figures
}

// ClientView is how one client's balancer sees a replica.
type ClientView struct {
	Workload string  `json:"workload"`
	EWMA     float64 `json:"ewma_s"`
	InFlight uint32  `json:"in_flight"`
}

func share(part, whole uint64) *float64 {
	if whole == 0 {
		return nil
	}
	return new(float64(part) / float64(whole))
}

func round(x, unit float64) float64 { return math.Round(x*unit) / unit }

// serviceRows are those of the inventory and those seen in traffic, by name.
func (t *tables) serviceRows() []Service {
	rows := []Service{}
	known := map[string]bool{}
	for _, service := range t.inventory.GetServices() {
		row := Service{Name: service.Name, Source: service.Source, Protocol: service.Protocol, Addresses: nonEmpty(service.Address4, service.Address6)}
		row.Ready, row.Replicas = t.readiness(service)
		rows = append(rows, t.service(row))
		known[service.Name] = true
	}
	for name := range t.services {
		if !known[name] {
			rows = append(rows, t.service(Service{Name: name, Addresses: []string{}}))
		}
	}
	slices.SortFunc(rows, func(a, b Service) int { return cmpStrings(a.Name, b.Name) })
	return rows
}

func (t *tables) service(row Service) Service {
	s := t.services[row.Name]
	if s == nil {
		s = &sum{}
	}
	row.Figures, row.MTLS, row.History = t.figures(s), share(s.mtls, s.counts.requests), t.points(s)
	return row
}

// readiness counts a service's replicas. Those of the catalog are not probed,
// so they count as ready.
func (s *snapshot) readiness(service *tullev1.Service) (ready, all int) {
	for _, w := range s.inventory.GetWorkloads() {
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

// edgeRows are who calls whom, by name.
func (t *tables) edgeRows() []Edge {
	rows := make([]Edge, 0, len(t.edges))
	for k, sum := range t.edges {
		row := Edge{
			Source: k.source, SourceKind: k.kind, SourceIdentity: k.identity, Destination: k.service, DestinationKind: k.serviceKind,
			Security: k.security, Protocol: k.protocol,
			Outcomes: map[string]uint64{}, Statuses: map[uint32]uint64{}, History: t.points(sum), Figures: t.figures(sum),
		}
		for _, o := range sum.outcomes {
			row.Outcomes[o.key] = o.n
		}
		for _, o := range sum.statuses {
			row.Statuses[o.key] = o.n
		}
		rows = append(rows, row)
	}
	slices.SortFunc(rows, func(a, b Edge) int {
		return cmpStrings(a.Source, b.Source, a.Destination, b.Destination, a.Security, b.Security, a.Protocol, b.Protocol, a.SourceIdentity, b.SourceIdentity)
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
