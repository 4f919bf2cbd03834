package host

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
	"github.com/tulle-mesh/tulle/cmd/tulle/command"
	"github.com/tulle-mesh/tulle/cmd/tulle/dns"
	"github.com/tulle-mesh/tulle/cmd/tulle/journal"
	"github.com/tulle-mesh/tulle/cmd/tulle/network"
	"github.com/tulle-mesh/tulle/cmd/tulle/workload"
	"github.com/tulle-mesh/tulle/cni/redirect"
	"github.com/tulle-mesh/tulle/dashboard"
	"github.com/tulle-mesh/tulle/discovery"
	"github.com/tulle-mesh/tulle/identity"
	"github.com/tulle-mesh/tulle/mesh"
)

// daemon is the control plane of one host while it is being put together; its
// fields are filled in the order of Run's steps.
type daemon struct {
	Config

	journal   *journal.Journal
	leftovers []*record // replicas of an earlier daemon that still run
	backend   string    // of the redirect
	reason    string    // why that one
	filter    string    // backend of what the host itself needs: nftables or iptables
	authority *identity.Authority
	state     *discovery.State
	catalog   *discovery.CatalogFile // nil: none
	mtu       int

	leases    *leases
	proxies   *grpc.Server // for the proxies, over mutual TLS
	local     *grpc.Server // for tulle run and its like
	page      *dashboard.Site
	dashboard *http.Server
	names     names
	dns       *dns.Server

	proxiesAt, localAt, pageAt, apiAt net.Listener
}

// Run serves the mesh until ctx ends, then takes it down. An error at the
// start leaves nothing behind.
func Run(ctx context.Context, c Config) (err error) {
	if err := c.Validate(); err != nil {
		return err
	}
	if !network.HasIPv6() {
		c.Network6 = netip.Prefix{}
	}
	d := &daemon{Config: c}
	held, err := d.takeDir()
	if err != nil {
		return err
	}
	defer func() { _ = held.Close() }()
	for _, step := range []func() error{
		d.recover, d.openState, d.chooseBackend, d.openAuthority, d.compose, d.listenLocal, d.connect, d.listen,
	} {
		if err := step(); err != nil {
			return errors.Join(roomFor(err, d.RunDir), d.abandon())
		}
	}
	if err := d.serve(ctx); err != nil {
		return errors.Join(err, d.abandon())
	}
	return nil
}

// takeDir makes the run directory and locks it.
func (d *daemon) takeDir() (*os.File, error) {
	if err := os.MkdirAll(filepath.Join(d.RunDir, "workloads"), 0o700); err != nil {
		return nil, fmt.Errorf("run directory: %w", err)
	}
	held, err := lock(d.RunDir)
	if err == nil {
		if err = ErrStray(d.RunDir); err != nil {
			_ = held.Close()
		}
		return held, err
	}
	if !errors.Is(err, errBusy) {
		return nil, err
	}
	who := "another process"
	if u, err := loadUp(d.RunDir); err == nil && u != nil {
		who = fmt.Sprintf("process %d", u.Pid)
	}
	return nil, command.WithHint(fmt.Errorf("the mesh is up already (%s)", who), "see it with: tulle ps, or end it with: tulle down")
}

// recover looks at what an earlier daemon left: if workloads run on, their
// network stays, else the host is put back first.
func (d *daemon) recover() error {
	records, err := loadRecords(d.RunDir)
	if err != nil {
		d.Log.Error("a replica's record is unreadable", "reason", err)
	}
	before, err := loadUp(d.RunDir)
	if err != nil {
		d.Log.Error("the earlier daemon's record is unreadable", "reason", err)
		before = nil // who runs on in other networks than these is refused a place
	}
	if d.journal, err = openJournal(d.RunDir); err != nil {
		return err
	}
	d.leftovers = records
	living := 0
	for _, r := range records {
		if r.alive() {
			living++
		}
	}
	switch {
	case living == 0:
		if n := len(d.journal.Changes()); n > 0 {
			say(d.Out, "an earlier daemon did not end well; taking back %s of the host first", count(n, "change"))
		}
		return d.journal.Undo(network.Undo)
	case before != nil && (before.Network4 != d.Network4 || before.Network6 != d.Network6):
		return command.WithHint(
			fmt.Errorf("%s left in the networks %s and %s", count(living, "running workload"), before.Network4, before.Network6),
			"name the same ones (--network4, --network6), or end them with: tulle down")
	}
	say(d.Out, "taking over %s", count(living, "running workload"))
	return nil
}

// count spells a number of things.
func count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

func (d *daemon) openAuthority() error {
	// A new authority would be none to those that run on: they would refuse new
	// workloads, and be refused here, while all looks well.
	if slices.ContainsFunc(d.leftovers, (*record).alive) && isEmpty(d.StateDir) {
		return command.WithHint(
			fmt.Errorf("the certificate authority in %s is gone, and workloads of it run on", d.StateDir),
			"bring the files back, or start anew with: tulle down && tulle up -d")
	}
	var err error
	d.authority, err = identity.Open(identity.Config{Dir: d.StateDir, TrustDomain: TrustDomain, Log: d.Log})
	if err != nil {
		return fmt.Errorf("certificate authority: %w", err)
	}
	return nil
}

// isEmpty tells whether a directory has nothing in it, or is not there.
func isEmpty(dir string) bool {
	entries, err := os.ReadDir(dir)
	return len(entries) == 0 && (err == nil || errors.Is(err, fs.ErrNotExist))
}

func (d *daemon) openState() error {
	config := discovery.Config{TrustDomain: TrustDomain}
	config.Replicas4, config.VIPs4 = discovery.Halves(d.Network4)
	if d.Network6.IsValid() {
		config.Replicas6, config.VIPs6 = discovery.Halves(d.Network6)
	}
	for _, n := range d.networks() {
		config.Reserved = append(config.Reserved, gateway(n).Addr())
	}
	var err error
	if d.state, err = discovery.NewState(config); err != nil {
		return err
	}
	if d.Catalog == "" {
		return nil
	}
	d.catalog = &discovery.CatalogFile{Path: d.Catalog, State: d.state, Log: d.Log}
	return d.catalog.Load()
}

func (d *daemon) chooseBackend() error {
	var unfit error // why it is not eBPF
	if d.Redirect == redirect.Auto || d.Redirect == mesh.RedirectEBPF {
		unfit = d.loadRedirect()
	}
	if unfit != nil && d.Redirect == mesh.RedirectEBPF {
		return unfit
	}
	b, reason, err := redirect.Pick(d.Redirect, nil)
	switch {
	case err != nil && (errors.Is(err, unix.EPERM) || errors.Is(unfit, unix.EPERM)):
		return command.WithHint(errors.New("this root may not redirect traffic: it lacks CAP_NET_ADMIN"), "a container needs --privileged; what there is: tulle check")
	case err != nil && unfit != nil: // what Pick says of eBPF comes of that
		return command.WithHint(fmt.Errorf("ebpf: %w; %w", unfit, err), "what to do about it says: tulle check")
	case err != nil:
		return err
	}
	if unfit != nil {
		reason = fmt.Sprintf("the best that works here: ebpf: %v", unfit)
	}
	d.Log.Info("redirect chosen", "backend", b.Name(), "reason", reason)
	d.backend, d.filter, d.reason = b.Name(), b.Name(), reason
	if d.backend == mesh.RedirectEBPF && d.Masquerade {
		if d.filter, err = redirect.Masquerader(); err != nil {
			return command.WithHint(err, "to do without masquerading type: tulle up --no-masquerade")
		}
	}
	return nil
}

// loadRedirect loads the eBPF programs, or exchanges those of an earlier version.
func (d *daemon) loadRedirect() error {
	node := redirect.Node{}
	if err := node.Probe(); err != nil && !errors.Is(err, redirect.ErrNoBPFFS) {
		return err
	}
	if !network.HasBPFFS() {
		if err := d.journal.Record(journal.Change{Kind: journal.Mount, Name: network.BPFFS}); err != nil {
			return err
		}
		if err := network.MountBPFFS(); err != nil {
			return err
		}
	}
	if err := d.journal.Record(journal.Change{Kind: journal.Redirect, Name: redirect.DefaultPins}); err != nil {
		return err
	}
	// Programs that are exchanged serve workloads that live: what they need comes
	// first, also if this daemon gets no further.
	if slices.ContainsFunc(d.leftovers, (*record).alive) && d.Network6.IsValid() {
		if err := network.AddMember(BridgeName, redirect.HopSource6); err != nil {
			d.Log.Warn("running workloads cannot be called over IPv6 until the mesh is up", "reason", err)
		}
	}
	return node.Load()
}

// collectInterval is how long what the kernel holds of an ended replica may outlive it.
const collectInterval = 10 * time.Second

// collect clears away what the redirect has of replicas that were killed, until ctx ends.
func (d *daemon) collect(ctx context.Context) {
	ticker := time.NewTicker(collectInterval)
	defer ticker.Stop()
	for {
		if err := (redirect.Node{}).Collect(); err != nil {
			d.Log.Error("cannot clear the redirect of replicas that are gone", "reason", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// compose makes the servers; nothing can be reached yet.
func (d *daemon) compose() error {
	tokens := identity.NewTokens(identity.TokenConfig{})
	d.mtu = network.MTU()
	d.leases = &leases{
		run: d.RunDir, state: d.state, tokens: tokens, grant: d.grant, sweep: (*record).sweep, log: d.Log, replicas: map[string]*held{},
	}
	if d.backend != mesh.RedirectEBPF {
		d.leases.hostNetwork = fmt.Errorf("--network host takes the eBPF redirect, but this mesh redirects by %s (%s); see tulle check, then type: tulle down && tulle up --redirect ebpf", d.backend, d.reason)
	}
	gateways := make([]netip.Addr, 0, 2)
	for _, n := range d.networks() {
		gateways = append(gateways, gateway(n).Addr())
	}
	collector, err := dashboard.NewCollector(dashboard.Config{PeerID: peerID, HostAddresses: gateways, HistoryDir: d.History, Log: d.Log})
	if err != nil {
		return err
	}
	d.proxies = grpc.NewServer(identity.ServerOptions(d.authority, d.Log)...)
	tullev1.RegisterIdentityServer(d.proxies, identity.NewServer(identity.ServerConfig{
		Authority: d.authority, Tokens: tokens, Admit: d.admit, Log: d.Log,
	}))
	tullev1.RegisterDiscoveryServer(d.proxies, discovery.NewServer(discovery.ServerConfig{
		State: d.state, Caller: identity.CallerName, Log: d.Log,
	}))
	tullev1.RegisterTelemetryServer(d.proxies, collector)
	d.local = grpc.NewServer()
	tullev1.RegisterHostServer(d.local, d.leases)

	page, err := dashboard.Handler(dashboard.HandlerConfig{
		Collector: collector,
		Inventory: func(ctx context.Context) (*tullev1.ListResponse, error) {
			return d.leases.List(ctx, &tullev1.ListRequest{})
		},
		Path:       func(client, server, _ string) (*mesh.Path, error) { return d.leases.path(client, server) },
		Roots:      func() []*x509.Certificate { return d.authority.Roots().Certificates },
		Prometheus: d.Prometheus,
		URL:        "http://" + d.Dashboard + "/", Version: d.Version, TrustDomain: TrustDomain,
	})
	if err != nil {
		return err
	}
	d.page, d.dashboard = page, dashboard.NewServer(page)
	return nil
}

func peerID(ctx context.Context) (mesh.ID, error) {
	id, ok := identity.PeerID(ctx)
	if !ok {
		return mesh.ID{}, errors.New("the caller proved no identity")
	}
	return id, nil
}

// admit lets only services that run have certificates.
func (d *daemon) admit(id mesh.ID) error {
	if s := d.state.Load().Service(id.Account); s == nil || s.ID != id {
		return fmt.Errorf("no service of identity %s is running", id)
	}
	return nil
}

// grant tells a replica all that it has to know.
func (d *daemon) grant(l *discovery.Lease) *tullev1.Lease {
	g := &tullev1.Lease{
		Replica: l.Replica.Name, Service: l.Service.Name, Identity: l.Service.ID.String(),
		Address4: netip.PrefixFrom(l.Replica.Addr4, d.Network4.Bits()).String(), Gateway4: gateway(d.Network4).Addr().String(),
		ServiceAddress4: text(l.Service.VIP4), ServiceAddress6: text(l.Service.VIP6),
		Bridge: BridgeName, Mtu: uint32(d.mtu), ControlAddress: d.controlAddress().String(),
		RootsPem: d.authority.Roots().PEM(), TrustDomain: TrustDomain, Redirect: d.backend, DnsDomain: Domain,
	}
	if l.Replica.Addr6.IsValid() {
		g.Address6 = netip.PrefixFrom(l.Replica.Addr6, d.Network6.Bits()).String()
		g.Gateway6 = gateway(d.Network6).Addr().String()
	}
	for _, n := range d.networks() {
		g.Networks = append(g.Networks, n.String())
	}
	return g
}

// listenLocal opens what needs no network of ours: the cheapest way to find
// out that a port is taken.
func (d *daemon) listenLocal() error {
	var err error
	if d.pageAt, err = net.Listen("tcp", d.Dashboard); err != nil {
		return command.WithHint(fmt.Errorf("dashboard: %w", err), "choose another address with --dashboard 127.0.0.1:PORT")
	}
	if d.localAt, err = listenUnix(HostSocket(d.RunDir)); err != nil {
		return err
	}
	d.apiAt, err = listenUnix(APISocket(d.RunDir))
	return err
}

// taken says what to do about a port that cannot be had.
func taken(what string, err error, hint string) error {
	err = fmt.Errorf("%s: %w", what, err)
	if errors.Is(err, unix.EADDRINUSE) {
		return command.WithHint(err, hint)
	}
	return err
}

// connect changes the host: the bridge, forwarding, masquerading. Everything is in
// the journal before it is done.
func (d *daemon) connect() error {
	for _, n := range d.networks() {
		if err := network.Overlap(n, BridgeName); err != nil {
			flag := "--network4 10.85.0.0/16"
			if n.Addr().Is6() {
				flag = "--network6 fd85:7475:6c6c:e000::/64"
			}
			return command.WithHint(err, "choose a free one, such as "+flag)
		}
	}
	self := up{Pid: os.Getpid(), Network4: d.Network4, Network6: d.Network6}
	self.PidStart, _ = workload.StartTime(self.Pid)
	if err := self.save(d.RunDir); err != nil {
		return err
	}
	if !exists(network.NamespaceDir) {
		if err := d.journal.Record(journal.Change{Kind: journal.Dir, Name: network.NamespaceDir}); err != nil {
			return err
		}
	}
	if err := d.journal.Record(journal.Change{Kind: journal.Link, Name: BridgeName}); err != nil {
		return err
	}
	b := network.Bridge{Name: BridgeName, Gateway4: gateway(d.Network4), MTU: d.mtu}
	if d.Network6.IsValid() {
		b.Gateway6 = gateway(d.Network6)
	}
	if err := b.Create(); err != nil {
		if errors.Is(err, unix.EPERM) {
			return command.WithHint(err, "this root may not change the network; a container needs --privileged")
		}
		return err
	}
	if err := d.openFirewall(); err != nil {
		return err
	}
	return d.masquerade()
}

// openFirewall lets the mesh's packets pass where the host drops what it forwards.
func (d *daemon) openFirewall() error {
	families, err := network.DroppedForward()
	if err != nil {
		d.Log.Warn("cannot see whether the host's firewall drops forwarded packets", "reason", err)
	}
	for _, f := range families {
		if err := d.journal.Record(journal.Change{Kind: journal.Forward, Name: f}); err != nil {
			return err
		}
		if err := network.AcceptForward(f, BridgeName); err != nil {
			return err
		}
		d.Log.Info("the host's firewall drops forwarded packets; those of the mesh are let through", "family", f)
	}
	return nil
}

func (d *daemon) masquerade() error {
	for _, c := range d.journal.Changes() { // of an earlier daemon with other flags
		if c.Kind == journal.Masquerade && (!d.Masquerade || c.Name != d.filter) {
			if err := network.Undo(c); err != nil {
				return err
			}
		}
	}
	if !d.Masquerade {
		return nil
	}
	changes, err := network.ForwardingChanges(d.Network6.IsValid())
	if err != nil {
		return err
	}
	changes = append(changes, journal.Change{Kind: journal.Masquerade, Name: d.filter})
	if err := d.journal.Record(changes...); err != nil {
		return err
	}
	if err := network.Apply(changes); err != nil {
		return command.WithHint(err, "to leave forwarding alone type: tulle up --no-masquerade")
	}
	return network.Masquerade{Backend: d.filter, Bridge: BridgeName, Networks: d.networks()}.Add()
}

// listen opens what is on the bridge.
func (d *daemon) listen() error {
	proxiesAt, err := net.Listen("tcp", d.controlAddress().String())
	if err != nil {
		return taken("control port", err, fmt.Sprintf("find out who has it with: ss -ltnp 'sport = :%d'", mesh.ControlPort))
	}
	d.proxiesAt = identity.Listen(proxiesAt)
	d.names = names{state: d.state, networks: d.networks()}
	config := dns.Config{Domain: Domain, Names: d.names, Upstreams: Upstreams}
	for _, n := range d.networks() {
		config.Listen = append(config.Listen, netip.AddrPortFrom(gateway(n).Addr(), dnsPort))
	}
	if d.dns, err = dns.Listen(config); err != nil {
		return taken("name server", err, "a resolver of this host listens on every address; keep it off "+BridgeName+", or find it with: ss -lnp 'sport = :53'")
	}
	return nil
}

// serve runs everything until ctx ends, and then ends everything.
func (d *daemon) serve(ctx context.Context) error {
	d.leases.adopt(d.leftovers)
	background, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	var wg sync.WaitGroup
	failed := make(chan error, 8)
	run := func(what string, f func() error) {
		wg.Go(func() {
			if err := f(); err != nil && !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, grpc.ErrServerStopped) {
				failed <- fmt.Errorf("%s: %w", what, err)
			}
		})
	}
	run("proxies", func() error { return d.proxies.Serve(d.proxiesAt) })
	run("host socket", func() error { return d.local.Serve(d.localAt) })
	run("dashboard", func() error { return d.dashboard.Serve(d.pageAt) })
	run("API socket", func() error { return d.dashboard.Serve(d.apiAt) })
	run("dashboard's view", func() error { return d.page.Run(background) })
	run("name server", func() error { return d.dns.Run(background) })
	run("state", func() error { return d.state.Run(background) })
	run("lost replicas", func() error { d.leases.watchLost(background); return nil })
	if d.backend == mesh.RedirectEBPF {
		run("redirect", func() error { d.collect(background); return nil })
	}
	run("names", func() error {
		if err := d.names.publish(background, d.RunDir); err != nil {
			d.Log.Error("cannot write the names down", "reason", err) // they are for emergencies only
		}
		return nil
	})
	if d.catalog != nil {
		run("catalog", func() error { return d.catalog.Run(background) })
	}
	d.tellReady()
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	err = errors.Join(err, d.end())
	cancel()
	wg.Wait()
	_ = os.MkdirAll(d.RunDir, 0o700) // it may have been removed, and what cannot be undone has to be kept
	return errors.Join(err, restore(d.journal, d.RunDir))
}

func (d *daemon) tellReady() {
	networks := make([]string, 0, 2)
	for _, n := range d.networks() {
		networks = append(networks, n.String())
	}
	say(d.Out, "up; network %s, redirect by %s (%s), dashboard http://%s/", strings.Join(networks, " and "), d.backend, d.reason, d.Dashboard)
	if d.Ready != nil {
		d.Ready()
	}
}

// end stops the workloads first, while everything they need still serves.
func (d *daemon) end() error {
	if n := d.leases.running(); n > 0 {
		say(d.Out, "stopping %s", count(n, "workload"))
	}
	err := d.leases.close(workloadTimeout)
	d.local.Stop()
	d.proxies.Stop()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if shutErr := d.dashboard.Shutdown(ctx); shutErr != nil {
		_ = d.dashboard.Close() // a reader that does not let go
	}
	return err
}

// abandon undoes a start that failed. If workloads of an earlier daemon run on, their
// network, and the records needed to restore the host, have to stay.
func (d *daemon) abandon() error {
	for _, l := range []net.Listener{d.proxiesAt, d.localAt, d.pageAt, d.apiAt} {
		if l != nil {
			_ = l.Close()
		}
	}
	if d.journal == nil {
		return nil // an unreadable one: whoever mends it needs all there is
	}
	for _, r := range d.leftovers {
		if r.alive() {
			return nil
		}
	}
	err := restore(d.journal, d.RunDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
