package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
	"github.com/tulle-mesh/tulle/mesh"
	"github.com/tulle-mesh/tulle/proxy/http2"
	"github.com/tulle-mesh/tulle/proxy/mtls"
	"github.com/tulle-mesh/tulle/proxy/mux"
	"github.com/tulle-mesh/tulle/proxy/tcp"
)

// Config is all that a proxy has to be told.
type Config struct {
	Workload string         // name of the replica, "web-2"
	Service  string         // name of the service it belongs to, "web"
	ID       mesh.ID        // the identity to ask for
	Control  string         // "host:port" of the control plane's gRPC
	Roots    [][]byte       // DER: whom to trust before the first answer
	Networks []netip.Prefix // where the mesh's addresses lie; others are passed through
	// Addresses are the workload's, one of a family, where it shares its network
	// namespace with others. Empty: all addresses of the namespace are.
	Addresses []netip.Addr
	Strict    bool // refuse clients without an identity
	// AskPolicy lets the control plane say whether to be strict; until it has, and
	// where it does not, Strict holds.
	AskPolicy bool
	Probes    []Probe // what the admin port asks the application; see Probe
	Redirect  string  // name of the backend in use, for display, or mesh.RedirectCNI
	// RedirectProbe has mesh.RedirectProbePort answered: somebody outside makes sure
	// by it that the redirect works, before the workload starts.
	RedirectProbe bool
	Version       string
	Drain         time.Duration // how long exchanges may go on after the end was asked for; 0: 5 s

	Token func(ctx context.Context) (string, error) // gets a join token
	Ready func()                                    // called once traffic is served
	Log   *slog.Logger
}

const (
	defaultDrain = 5 * time.Second
	windowGrowth = 16 << 20 // bytes that sessions over long paths may hold beyond what each begins with, together: a pod has 64 MiB
)

// Validate reports all that is wrong with the configuration.
func (c *Config) Validate() error {
	var errs []error
	for _, field := range []struct{ name, value string }{{"workload", c.Workload}, {"service", c.Service}} {
		if err := mesh.CheckDottedName(field.value); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", field.name, err))
		}
	}
	if err := c.ID.Validate(); err != nil {
		errs = append(errs, fmt.Errorf("identity: %w", err))
	}
	if _, _, err := net.SplitHostPort(c.Control); err != nil {
		errs = append(errs, fmt.Errorf("control: %w", err))
	}
	if _, err := mtls.NewRoots(c.Roots); err != nil {
		errs = append(errs, fmt.Errorf("roots: %w", err))
	}
	if c.Token == nil || c.Ready == nil || c.Log == nil {
		errs = append(errs, errors.New("Token, Ready and Log must be set"))
	}
	return errors.Join(errs...)
}

// Proxy is one workload's data plane.
type Proxy struct {
	config    Config
	log       *slog.Logger
	start     time.Time
	silence   time.Duration  // see the constants
	serving   sync.WaitGroup // connections
	parked    atomic.Int64   // how often something was
	creds     mtls.Source
	certifier *mtls.Certifier
	directory *directory
	recorder  recorder
	refusals  complaints
	policy    atomic.Pointer[tullev1.Policy] // nil: none was told
	probes    map[string]Probe               // by name; constant
	hangups   *hangups
	conns     tracker
	windows   *mux.Growth
	kept      http2.Kept
	own       []netip.Addr // addresses of the workload; constant once running

	showsClients bool // to applications; constant once running

	redirected     chan struct{} // closed once the redirect was seen to work
	seenRedirected func()        // closes it
}

// New returns a proxy that is ready to Run.
func New(c Config) (*Proxy, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if c.Drain == 0 {
		c.Drain = defaultDrain
	}
	roots, err := mtls.NewRoots(c.Roots)
	if err != nil {
		return nil, err
	}
	p := &Proxy{config: c, log: c.Log, start: time.Now(), silence: silence, windows: mux.NewGrowth(windowGrowth)}
	p.conns.init(parkAfter)
	p.redirected = make(chan struct{})
	p.seenRedirected = sync.OnceFunc(func() { close(p.redirected) })
	p.probes = make(map[string]Probe, len(c.Probes))
	for _, probe := range c.Probes {
		p.probes[probe.Name] = probe
	}
	p.certifier = &mtls.Certifier{ID: c.ID, Control: c.Control, Roots: roots, Token: c.Token, Source: &p.creds, Log: c.Log}
	return p, nil
}

// now is the clock of balancing and of idle times: monotonic, from zero.
func (p *Proxy) now() time.Duration { return time.Since(p.start) }

// self describes the workload as a peer.
func (p *Proxy) self(addr netip.AddrPort) mesh.Peer {
	return mesh.Peer{ID: p.config.ID, Addr: addr, Workload: p.config.Workload}
}

// isOwn tells whether what is sent to a stays inside the workload.
func (p *Proxy) isOwn(a netip.Addr) bool { return slices.Contains(p.own, a) }

// Run serves until ctx ends, then drains. Its sockets are there at once, but it
// takes connections only once it can prove itself: until then they wait.
func (p *Proxy) Run(ctx context.Context) error {
	var err error
	if p.own, err = p.ownAddresses(); err != nil {
		return err
	}
	if p.hangups, err = newHangups(); err != nil {
		return err
	}
	p.announceClients()
	if err := p.checkShared(); err != nil {
		return err
	}
	listeners, err := p.listen(ctx)
	if err != nil {
		return err
	}
	defer listeners.close()
	if err := p.certifier.First(ctx); err != nil {
		return err
	}
	control, err := p.certifier.Dial()
	if err != nil {
		return err
	}
	defer control.Close()

	// The workload's connections outlive ctx until they are drained; what
	// they need lives as long as they do.
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	var running sync.WaitGroup
	defer func() {
		end()
		running.Wait()
	}()
	p.directory = &directory{
		client: tullev1.NewDiscoveryClient(control), networks: p.config.Networks, log: p.log, now: p.now,
		newUp:   func(d *destination, k endpointKey) *upstream { return newUpstream(p, d.service(), k) },
		changed: make(chan struct{}, 1),
	}
	running.Go(func() { p.directory.run(life) })
	running.Go(func() { _ = p.certifier.Run(life, control) })
	running.Go(func() { p.report(life, tullev1.NewTelemetryClient(control)) })
	running.Go(func() { _ = p.hangups.run(life) })
	running.Go(func() { p.sweep(life) })
	running.Go(func() { p.sweepCrowds(life) })
	if p.config.AskPolicy {
		known := make(chan struct{})
		first := sync.OnceFunc(func() { close(known) })
		running.Go(func() { p.followPolicy(life, tullev1.NewDiscoveryClient(control), first) })
		awaitPolicy(ctx, known)
	}
	listeners.serve(life, p)
	if p.config.RedirectProbe {
		running.Go(func() { p.missRedirect(life) })
	}
	p.config.Ready()
	p.log.Info("serving", "workload", p.config.Workload)

	<-ctx.Done()
	listeners.stop()
	p.log.Info("draining", "connections", p.conns.len(), "at most", p.config.Drain)
	p.conns.drain(p.config.Drain)
	p.serving.Wait()
	return nil
}

func (p *Proxy) ownAddresses() ([]netip.Addr, error) {
	if p.shared() {
		return p.config.Addresses, nil
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list own addresses: %w", err)
	}
	var own []netip.Addr
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok {
				own = append(own, ip.Unmap())
			}
		}
	}
	return own, nil
}

// peer describes the endpoint in an exchange.
func (u *upstream) peer() mesh.Peer {
	return mesh.Peer{ID: u.peerID(), Addr: u.key.addr, Service: u.service, Workload: u.key.workload}
}

// refuseConn resets a connection that can't be served and records why.
func (p *Proxy) refuseConn(c *tcp.Conn, d mesh.Direction, dst netip.AddrPort, err error) {
	c.Reset()
	peer, _ := addrPort(c.RemoteAddr())
	x := mesh.Exchange{Direction: d, Protocol: mesh.TCP, Outcome: outcomeOf(err), Start: time.Now()}
	key := edgeKey{direction: d, protocol: mesh.TCP}
	switch d {
	case mesh.Outbound:
		x.Security = mesh.MutualTLS // nothing of it left, and nothing would have without
		x.Client, x.Server = p.self(peer), mesh.Peer{Addr: dst}
		key.address = dst.String()
	case mesh.Inbound:
		x.Client, x.Server = mesh.Peer{Addr: peer}, p.self(dst)
		key.service, key.address = p.config.Service, callerAddress(peer)
		if bad := (*handshakeError)(nil); errors.As(err, &bad) {
			x.Security = mesh.MutualTLS // it was not to be had without
		}
	}
	key.security = x.Security
	if errors.Is(err, errLoop) || errors.Is(err, errElsewhere) || errors.Is(err, errDenied) {
		x.Outcome = mesh.Denied
	}
	p.recorder.record(p.recorder.edge(key), &x)
	p.refusals.warn(p.log, "connection refused", "direction", d.String(), "from", peer, "to", dst, "error", err)
}

// NotAfter returns when the proxy's certificate ends; zero without one.
func (p *Proxy) notAfter() time.Time {
	if c := p.creds.Load(); c != nil {
		return c.Leaf.Leaf.NotAfter
	}
	return time.Time{}
}
