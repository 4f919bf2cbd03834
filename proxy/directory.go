package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
	"github.com/tulle-mesh/tulle/mesh"
	"github.com/tulle-mesh/tulle/proxy/balance"
	"github.com/tulle-mesh/tulle/proxy/sniff"
)

const (
	// maxDestinations bounds what is watched at once; the control plane lets a
	// proxy have 4096, of which its last stream may still hold a half.
	maxDestinations = 2000
	firstAnswer     = 5 * time.Second  // how long the first connection to an address waits for discovery
	destinationIdle = 10 * time.Minute // unused for so long, an address is watched no more
)

var errTooManyDestinations = fmt.Errorf("more than %d destinations in use at once", maxDestinations)

// directory knows what is behind the addresses that the workload dials. It asks
// for an address when it is dialled first, then follows it (watch.go); without
// the control plane, the last answer stays.
type directory struct {
	client   tullev1.DiscoveryClient
	networks []netip.Prefix
	log      *slog.Logger
	now      func() time.Duration
	newUp    func(d *destination, k endpointKey) *upstream
	changed  chan struct{} // holds one: known is not what it was

	mu    sync.Mutex
	known map[netip.AddrPort]*destination
}

// endpointKey is what makes an endpoint another one: a new identity behind an
// old address must not inherit its connections.
type endpointKey struct {
	addr     netip.AddrPort
	id       mesh.ID
	workload string
}

type (
	endpointSet = balance.Set[endpointKey, *upstream]
	endpoint    = balance.Endpoint[endpointKey, *upstream]
)

// destination is what is behind one dialled address. Its fields but the atomic
// ones are constant once ready is closed.
type destination struct {
	addr    netip.AddrPort
	ready   chan struct{} // closed with the first answer
	facts   mesh.Latest[destinationFacts]
	set     *endpointSet
	unready atomic.Bool   // there are endpoints, but none is ready
	open    atomic.Bool   // of those there are, or were last, nobody has an identity
	learned atomic.Uint32 // sniff.Verdict: what the last connection turned out to speak
	scouted atomic.Bool   // a silent client's upstream is open, to hear whether the server speaks first
	used    atomic.Int64  // of the proxy's clock
	inUse   atomic.Int64
	budget  h2Budget
}

type destinationFacts struct {
	service  string // "" : nothing of the mesh
	protocol mesh.Protocol
}

// service returns the name of what is behind the address, or "".
func (d *destination) service() string { return d.facts.Load().service }

// startPatience is how long a connection or request waits for the first replica
// of a service that is just starting.
const startPatience = 2 * time.Second

// pick chooses an endpoint. If all are still starting, it waits a little for one
// that is ready, and then takes what there is.
func (d *destination) pick(ctx context.Context, now func() time.Duration, avoid *endpoint) *endpoint {
	if d.unready.Load() {
		patience := time.NewTimer(startPatience)
		defer patience.Stop()
		for waiting := true; waiting; {
			_, changed := d.facts.Watch()
			if !d.unready.Load() {
				break
			}
			select {
			case <-changed:
			case <-patience.C:
				waiting = false
			case <-ctx.Done():
				waiting = false
			}
		}
	}
	return d.set.Pick(now(), avoid)
}

// intended is how a connection was to be protected that never came to be: tried is
// the endpoint that failed, nil if there was none.
func (d *destination) intended(tried *endpoint) mesh.Security {
	switch {
	case tried != nil:
		return tried.Value.security
	case d.open.Load():
		return mesh.Plaintext
	}
	return mesh.MutualTLS
}

// hint is what the service's owner declared, or what was learned.
func (d *destination) hint() sniff.Verdict {
	switch d.facts.Load().protocol {
	case mesh.HTTP1:
		return sniff.HTTP1
	case mesh.HTTP2:
		return sniff.HTTP2
	case mesh.TCP:
		return sniff.Opaque
	}
	return sniff.More
}

func (d *destination) done(now time.Duration) {
	d.used.Store(int64(now))
	d.inUse.Add(-1)
}

// lookup returns what is behind addr; the caller calls done on it. nil without
// an error means that the mesh has nothing to do with the address.
func (r *directory) lookup(ctx context.Context, addr netip.AddrPort) (*destination, error) {
	if addr.Port() == 0 || !slices.ContainsFunc(r.networks, func(p netip.Prefix) bool { return p.Contains(addr.Addr()) }) {
		return nil, nil
	}
	d, err := r.destination(addr)
	if err != nil {
		return nil, err
	}
	select {
	case <-d.ready:
	default:
		if err := d.await(ctx); err != nil {
			d.done(r.now())
			return nil, err
		}
	}
	if d.service() == "" {
		d.done(r.now())
		return nil, nil
	}
	return d, nil
}

var errNoAnswer = errors.New("the control plane does not answer and has never told what is behind this address; try `tulle check`")

func (d *destination) await(ctx context.Context) error {
	t := time.NewTimer(firstAnswer)
	defer t.Stop()
	select {
	case <-d.ready:
		return nil
	case <-t.C:
		return errNoAnswer
	case <-ctx.Done():
		return ctx.Err()
	}
}

// destination returns what is known of addr, in use once more.
func (r *directory) destination(addr netip.AddrPort) (*destination, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := r.known[addr]
	if d == nil {
		if len(r.known) >= maxDestinations && !r.evictLocked() {
			return nil, errTooManyDestinations
		}
		d = &destination{addr: addr, ready: make(chan struct{})}
		d.set = balance.New(balance.Config[endpointKey, *upstream]{
			New:     func(k endpointKey) *upstream { return r.newUp(d, k) },
			Release: (*upstream).close,
		})
		if r.known == nil {
			r.known = map[netip.AddrPort]*destination{}
		}
		r.known[addr] = d
		r.tellChanged()
	}
	d.inUse.Add(1)
	d.used.Store(int64(r.now()))
	return d, nil
}

// sweep forgets the addresses that nobody dials any more.
func (r *directory) sweep() {
	now := r.now()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, d := range r.known {
		if d.inUse.Load() == 0 && now-time.Duration(d.used.Load()) > destinationIdle {
			r.forgetLocked(d)
		}
	}
}

// evictLocked forgets the address that has been unused for longest, so that a
// workload that tries many does not lock itself out of the others.
func (r *directory) evictLocked() bool {
	var oldest *destination
	for _, d := range r.known {
		if d.inUse.Load() == 0 && (oldest == nil || d.used.Load() < oldest.used.Load()) {
			oldest = d
		}
	}
	if oldest == nil {
		return false
	}
	r.forgetLocked(oldest)
	return true
}

func (r *directory) forgetLocked(d *destination) {
	delete(r.known, d.addr)
	d.set.Close()
	r.tellChanged()
}

// tellChanged lets the watch know that known has changed.
func (r *directory) tellChanged() {
	select {
	case r.changed <- struct{}{}:
	default: // it will look anyway
	}
}

func (r *directory) all() []*destination {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := make([]*destination, 0, len(r.known))
	for _, d := range r.known {
		list = append(list, d)
	}
	return list
}

var protocols = map[tullev1.Protocol]mesh.Protocol{
	tullev1.Protocol_PROTOCOL_HTTP1: mesh.HTTP1,
	tullev1.Protocol_PROTOCOL_HTTP2: mesh.HTTP2,
	tullev1.Protocol_PROTOCOL_TCP:   mesh.TCP,
}

// parseEndpoint reads an address that can be dialled, in its one spelling.
func parseEndpoint(s string) (netip.AddrPort, error) {
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		return netip.AddrPort{}, err
	}
	a = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
	if a.Port() == 0 || a.Addr().IsUnspecified() || a.Addr().IsMulticast() {
		return netip.AddrPort{}, fmt.Errorf("endpoint %s can't be dialled", a)
	}
	return a, nil
}

// adopt takes a whole snapshot over. An endpoint that can't be understood is
// left out rather than dialled in some other way.
func (r *directory) adopt(d *destination, m *tullev1.Destination) {
	specs := make([]balance.Spec[endpointKey], 0, len(m.GetEndpoints()))
	for _, e := range m.GetEndpoints() {
		key := endpointKey{workload: e.GetWorkload()}
		var err error
		if key.addr, err = parseEndpoint(e.GetAddress()); err == nil && e.GetIdentity() != "" {
			key.id, err = mesh.ParseID(e.GetIdentity())
		}
		if err != nil {
			r.log.Error("endpoint left out", "service", m.GetService(), "error", err)
			continue
		}
		specs = append(specs, balance.Spec[endpointKey]{Key: key, Ready: e.GetReady()})
	}
	facts := &destinationFacts{service: m.GetService(), protocol: protocols[m.GetProtocol()]}
	d.facts.Store(facts) // before the endpoints, which are labelled by it
	d.set.Update(r.now(), specs)
	if len(specs) > 0 {
		d.open.Store(!slices.ContainsFunc(specs, func(s balance.Spec[endpointKey]) bool { return !s.Key.id.IsZero() }))
	}
	d.unready.Store(len(specs) > 0 && !slices.ContainsFunc(specs, func(s balance.Spec[endpointKey]) bool { return s.Ready }))
	d.facts.Store(facts) // wakes those who wait in pick
	select {
	case <-d.ready:
	default:
		close(d.ready)
	}
}
