package dashboard

import (
	"fmt"
	"net/netip"
	"slices"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
	"github.com/tulle-mesh/tulle/mesh"
)

// Bounds of what one proxy may say. A report beyond them is refused whole.
const (
	maxReportEdges = 8192
	maxEndpoints   = 4096
	maxVerdicts    = 256
	maxStatuses    = 64   // kept apart for a row; further ones are not told apart
	maxReportCodes = 1000 // told in one edge
	maxOutcomes    = 16
	maxName        = 253     // a service, a workload, a version
	maxWord        = 32      // a protocol, an outcome, a method
	maxAddress     = 64      // "[fd84:…]:8080"
	maxPath        = 2048    // of a tap event; cut, not refused
	maxCounter     = 1 << 53 // what JSON readers hold exactly; centuries of traffic
)

// edgeKey tells one kind of a proxy's traffic from the others: the fields of
// tullev1.Edge up to protocol.
type edgeKey struct {
	inbound      bool
	service      string
	peerIdentity string
	peerWorkload string
	peerAddress  string
	security     string
	protocol     string
}

// counts are the figures that only ever grow.
type counts struct {
	requests, failures, sent, received uint64
}

func (c counts) plus(o counts) counts {
	return counts{add(c.requests, o.requests), add(c.failures, o.failures), add(c.sent, o.sent), add(c.received, o.received)}
}

func (c counts) since(o counts) counts {
	return counts{sub(c.requests, o.requests), sub(c.failures, o.failures), sub(c.sent, o.sent), sub(c.received, o.received)}
}

// split cuts a share (0 to 1) off; both parts together are exactly the whole.
func (c counts) split(share float64) (first, rest counts) {
	part := func(n uint64) uint64 { return min(n, uint64(float64(n)*share+0.5)) }
	first = counts{part(c.requests), 0, part(c.sent), part(c.received)}
	first.failures = min(first.requests, part(c.failures))
	return first, c.since(first)
}

// reading is a checked tullev1.Edge: cumulative since the proxy's start.
type reading struct {
	key      edgeKey
	counts   counts
	open     uint64
	latency  sparse
	outcomes map[string]uint64
	statuses map[uint32]uint64
}

func checkHello(h *tullev1.Hello) error {
	if h == nil {
		return fmt.Errorf("the first message must be Hello")
	}
	if err := mesh.CheckDottedName(h.Workload); err != nil {
		return fmt.Errorf("workload: %w", err)
	}
	if len(h.Version) > maxName || len(h.Redirect) > maxWord {
		return fmt.Errorf("hello of %s: version or redirect too long", h.Workload)
	}
	return nil
}

func readReport(r *tullev1.Report) ([]reading, error) {
	if len(r.Edges) > maxReportEdges {
		return nil, fmt.Errorf("report with %d edges: at most %d are allowed", len(r.Edges), maxReportEdges)
	}
	readings := make([]reading, 0, len(r.Edges))
	for _, e := range r.Edges {
		reading, err := readEdge(e)
		if err != nil {
			return nil, err
		}
		readings = append(readings, reading)
	}
	return readings, nil
}

func readEdge(e *tullev1.Edge) (reading, error) {
	r := reading{
		key: edgeKey{
			inbound: e.Inbound, service: e.Service, peerIdentity: e.PeerIdentity, peerWorkload: e.PeerWorkload,
			peerAddress: e.PeerAddress, security: e.Security, protocol: e.Protocol,
		},
		counts:   counts{e.Requests, e.Failures, e.BytesSent, e.BytesReceived},
		open:     e.Open,
		outcomes: e.Outcomes,
		statuses: e.Statuses,
	}
	if err := r.key.check(); err != nil {
		return reading{}, err
	}
	if max(e.Requests, e.Failures, e.BytesSent, e.BytesReceived, e.Open) > maxCounter {
		return reading{}, fmt.Errorf("edge to %q: a counter beyond %d", e.Service, uint64(maxCounter))
	}
	if len(e.Outcomes) > maxOutcomes || len(e.Statuses) > maxReportCodes {
		return reading{}, fmt.Errorf("edge to %q: %d outcomes and %d statuses; at most %d and %d are allowed",
			e.Service, len(e.Outcomes), len(e.Statuses), maxOutcomes, maxReportCodes)
	}
	for outcome, n := range e.Outcomes {
		if len(outcome) > maxWord || n > maxCounter {
			return reading{}, fmt.Errorf("edge to %q: outcome %q out of bounds", e.Service, cut(outcome, maxWord))
		}
	}
	for status, n := range e.Statuses {
		if status > 999 || n > maxCounter {
			return reading{}, fmt.Errorf("edge to %q: status %d out of bounds", e.Service, status)
		}
	}
	var err error
	if r.latency, err = readHistogram(e.Latency); err != nil {
		return reading{}, fmt.Errorf("edge to %q: %w", e.Service, err)
	}
	return r, nil
}

func (k edgeKey) check() error {
	if len(k.service) > maxName || len(k.peerWorkload) > maxName || len(k.peerAddress) > maxAddress || len(k.protocol) > maxWord {
		return fmt.Errorf("edge to %q: a label is too long", cut(k.service, maxName))
	}
	if k.peerIdentity != "" {
		if _, err := mesh.ParseID(k.peerIdentity); err != nil {
			return fmt.Errorf("edge to %q: %w", k.service, err)
		}
	}
	switch k.security {
	case mesh.MutualTLS.String(), mesh.Plaintext.String(), mesh.Local.String():
		return nil
	}
	return fmt.Errorf("edge to %q: security %q is none of mtls, plaintext, local", k.service, cut(k.security, maxWord))
}

// readHistogram takes buckets in any order but each only once.
func readHistogram(h *tullev1.Histogram) (sparse, error) {
	if h == nil {
		return nil, nil
	}
	if len(h.Bucket) != len(h.Count) || len(h.Bucket) > mesh.Buckets {
		return nil, fmt.Errorf("histogram with %d buckets and %d counts", len(h.Bucket), len(h.Count))
	}
	cells := make(sparse, 0, len(h.Bucket))
	for i, b := range h.Bucket {
		if b >= mesh.Buckets || h.Count[i] > maxCounter {
			return nil, fmt.Errorf("histogram bucket %d with count %d: out of bounds", b, h.Count[i])
		}
		if h.Count[i] > 0 {
			cells = append(cells, cell{uint16(b), h.Count[i]})
		}
	}
	slices.SortFunc(cells, func(a, b cell) int { return int(a.bucket) - int(b.bucket) })
	for i := range len(cells) - 1 {
		if cells[i].bucket == cells[i+1].bucket {
			return nil, fmt.Errorf("histogram bucket %d is there twice", cells[i].bucket)
		}
	}
	return cells, nil
}

// endpoint is the balancer's view of one replica, as one proxy has it.
type endpoint struct {
	service, workload, address string
	ewmaMicros                 float64
	inFlight                   uint32
	ready                      bool
}

func readEndpoints(list []*tullev1.EndpointStats) ([]endpoint, error) {
	if len(list) > maxEndpoints {
		return nil, fmt.Errorf("report with %d endpoints: at most %d are allowed", len(list), maxEndpoints)
	}
	endpoints := make([]endpoint, 0, len(list))
	for _, e := range list {
		if len(e.Service) > maxName || len(e.Workload) > maxName || len(e.Address) > maxAddress {
			return nil, fmt.Errorf("endpoint of %q: a label is too long", cut(e.Service, maxName))
		}
		if !(e.EwmaMicros >= 0 && e.EwmaMicros <= maxCounter) { // also refuses NaN, which JSON cannot say
			return nil, fmt.Errorf("endpoint of %q: ewma %g out of bounds", e.Service, e.EwmaMicros)
		}
		endpoints = append(endpoints, endpoint{e.Service, e.Workload, e.Address, e.EwmaMicros, e.InFlight, e.Ready})
	}
	return endpoints, nil
}

// verdict is what a proxy takes a destination's connections to speak.
type verdict struct{ address, service, protocol, reason string }

func readVerdicts(list []*tullev1.Verdict) ([]verdict, error) {
	if len(list) > maxVerdicts {
		return nil, fmt.Errorf("report with %d verdicts: at most %d are allowed", len(list), maxVerdicts)
	}
	verdicts := make([]verdict, 0, len(list))
	for _, v := range list {
		if len(v.Service) > maxName || len(v.Address) > maxAddress || len(v.Protocol) > maxWord || len(v.Reason) > maxName {
			return nil, fmt.Errorf("verdict on %q: a label is too long", cut(v.Service, maxName))
		}
		verdicts = append(verdicts, verdict{v.Address, v.Service, v.Protocol, v.Reason})
	}
	return verdicts, nil
}

// hostOf returns the address without its port, "" if there is none to see.
func hostOf(address string) string {
	if ap, err := netip.ParseAddrPort(address); err == nil {
		return ap.Addr().Unmap().WithZone("").String()
	}
	if a, err := netip.ParseAddr(address); err == nil {
		return a.Unmap().WithZone("").String()
	}
	return ""
}

// cut returns at most n bytes of s, whole characters only.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && s[n]&0xC0 == 0x80 {
		n--
	}
	return s[:n]
}
