package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
	"github.com/tulle-mesh/tulle/dashboard"
	"github.com/tulle-mesh/tulle/discovery"
	discoverykube "github.com/tulle-mesh/tulle/discovery/kube"
	"github.com/tulle-mesh/tulle/identity"
	identitykube "github.com/tulle-mesh/tulle/identity/kube"
	"github.com/tulle-mesh/tulle/inject"
	injectkube "github.com/tulle-mesh/tulle/inject/kube"
	"github.com/tulle-mesh/tulle/mesh"
	"github.com/tulle-mesh/tulle/mesh/cluster"
)

const (
	startTimeout = 30 * time.Second
	endTimeout   = 5 * time.Second
	// Requests to the API server, per second and client.
	apiRate, apiBurst = 100, 200
	eventTimeout      = 5 * time.Second
)

// clients are two, each with a limit of its own: when a thousand pods start at
// once, the reviews of their tokens must not keep what else is to be written
// waiting, nor the other way round.
type clients struct{ cluster, reviews kubernetes.Interface }

// connect returns clients of the cluster.
func connect(c *config) (all clients, err error) {
	conf, err := rest.InClusterConfig()
	if c.Kubeconfig != "" {
		conf, err = clientcmd.BuildConfigFromFlags("", c.Kubeconfig)
	}
	if err != nil {
		return all, fmt.Errorf("no cluster (-kubeconfig FILE names one, from outside): %w", err)
	}
	conf.UserAgent = "tulle-control/" + version
	conf.QPS, conf.Burst = apiRate, apiBurst
	conf.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	conf.ContentType = "application/vnd.kubernetes.protobuf"
	conf.WarningHandler = rest.NoWarnings{}
	if all.cluster, err = kubernetes.NewForConfig(conf); err != nil {
		return all, err
	}
	all.reviews, err = kubernetes.NewForConfig(conf)
	return all, err
}

// control is the control plane, composed.
type control struct {
	*config
	clients
	authority  *identity.Authority
	keeper     *identitykube.Keeper
	source     *discoverykube.Source  // nil: switched off
	discovery  *discovery.Server      // nil: switched off
	namespaces *injectkube.Namespaces // nil: switched off

	proxies   *grpc.Server
	page      *dashboard.Site // nil: switched off
	relay     *relay          // with page
	servers   []*server
	listeners []net.Listener // not yet handed over
}

// server is an HTTP server and where it listens.
type server struct {
	name string
	http *http.Server
	at   net.Listener
}

// serve runs the control plane until ctx ends.
func serve(ctx context.Context, c *config, to clients) error {
	p := &control{config: c, clients: to}
	err := p.open(ctx)
	if err == nil {
		err = p.compose()
	}
	if err == nil {
		err = p.listen()
	}
	if err != nil {
		for _, l := range p.listeners {
			_ = l.Close()
		}
		return err
	}
	return p.run(ctx)
}

// open gets what everything else needs: the authority.
func (p *control) open(ctx context.Context) error {
	starting, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	p.keeper = &identitykube.Keeper{Client: p.cluster, Namespace: p.Namespace, Name: p.CASecret, TrustDomain: p.TrustDomain, Log: p.Log}
	var err error
	if p.authority, err = p.keeper.Open(starting); err != nil {
		return err
	}
	if p.Native == "auto" {
		p.Inject.Native, err = nativeSidecars(p.cluster)
		return err
	}
	p.Inject.Native = p.Native == "true"
	return nil
}

// compose makes the parts; nothing can be reached yet.
func (p *control) compose() error {
	state, err := discovery.NewState(discovery.Config{TrustDomain: p.TrustDomain})
	if err != nil {
		return err
	}
	// The injector and the check of pods' addresses need it, too.
	p.source, err = discoverykube.New(discoverykube.Config{
		Client: p.cluster, State: state, TrustDomain: p.TrustDomain, Strict: p.Strict, Log: p.Log,
	})
	if err != nil {
		return err
	}
	p.proxies = grpc.NewServer(identity.ServerOptions(p.authority, p.Log)...)
	if p.Identity {
		p.registerIdentity()
	}
	if p.Discovery {
		p.discovery = discovery.NewServer(discovery.ServerConfig{
			State: state, Caller: identity.CallerName, PeerID: identity.PeerID, Log: p.Log,
			Place: func(ctx context.Context) discovery.Place { return p.source.Place(identity.CallerAddr(ctx)) },
		})
		tullev1.RegisterDiscoveryServer(p.proxies, p.discovery)
	}
	if p.Injector {
		if err := p.composeInjector(); err != nil {
			return err
		}
	}
	if p.Dashboard {
		return p.composeDashboard()
	}
	return nil
}

func (p *control) registerIdentity() {
	reviewer := identitykube.ReviewerConfig{Client: p.reviews, TrustDomain: p.TrustDomain}
	if p.CheckPodAddress {
		reviewer.PodAddrs = p.source.PodAddrs
	}
	tullev1.RegisterIdentityServer(p.proxies, identity.NewServer(identity.ServerConfig{
		Authority: p.authority, Prove: identitykube.NewReviewer(reviewer).Prove, TokenOnly: true, Log: p.Log,
	}))
}

func (p *control) composeInjector() error {
	var err error
	p.namespaces, err = injectkube.New(injectkube.Config{
		Client: p.cluster, Meshed: p.source.Meshed, AutoMesh: p.autoMesh(), Webhook: true, Log: p.Log,
		Roots: func() ([]byte, <-chan struct{}) {
			roots, changed := p.authority.Watch()
			return roots.PEM(), changed
		},
	})
	if err != nil {
		return err
	}
	webhook, err := inject.NewWebhook(inject.WebhookConfig{
		Inject: p.Inject, Defaults: p.namespaces.Annotations, Skipped: p.skipped, Log: p.Log,
	})
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle(cluster.WebhookPath, webhook)
	conf := identity.HostTLS(p.authority, cluster.Control+"."+p.Namespace+".svc")
	p.servers = append(p.servers, &server{name: "webhook", http: httpServer(mux, conf)})
	return nil
}

func (p *control) skipped(namespace string, o inject.Owner, reason string) {
	ctx, cancel := context.WithTimeout(context.Background(), eventTimeout)
	defer cancel()
	about := corev1.ObjectReference{APIVersion: o.APIVersion, Kind: o.Kind, Name: o.Name, Namespace: namespace}
	p.namespaces.Skipped(ctx, namespace, about, reason)
}

func (p *control) composeDashboard() error {
	collector, err := dashboard.NewCollector(dashboard.Config{PeerID: reporter, MaxProxies: 10_000, Log: p.Log})
	if err != nil {
		return err
	}
	p.relay = &relay{local: collector, first: p.gatherer, dial: dialReplica(p.authority)}
	tullev1.RegisterTelemetryServer(p.proxies, p.relay)
	conf := dashboard.HandlerConfig{
		Collector: collector,
		Inventory: func(context.Context) (*tullev1.ListResponse, error) { return p.source.Inventory(), nil },
		Path:      p.source.Path,
		Roots:     func() []*x509.Certificate { return p.authority.Roots().Certificates },
		Version:   version, TrustDomain: p.TrustDomain,
	}
	if p.discovery != nil {
		conf.Told = p.discovery.Told
	}
	page, err := dashboard.Handler(conf)
	if err != nil {
		return err
	}
	p.page = page
	p.servers = append(p.servers, &server{name: "dashboard", http: dashboard.NewServer(page)})
	return nil
}

// gatherer returns where the replica is that gathers what proxies report; "":
// it is this one. A replica that is not in the cluster's lists is alone.
func (p *control) gatherer() string {
	replicas := p.source.Replicas(p.Namespace, cluster.Control)
	own, err := os.Hostname() // the pod's name
	if err != nil || len(replicas) == 0 || replicas[0].Pod == own {
		return ""
	}
	return netip.AddrPortFrom(replicas[0].Addr, mesh.ControlPort).String()
}

func httpServer(h http.Handler, conf *tls.Config) *http.Server {
	return &http.Server{
		Handler: h, TLSConfig: conf, ReadTimeout: 15 * time.Second, WriteTimeout: 15 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10,
	}
}

// Bounds of the webhook's connections. API servers send each review that is under
// way over a connection of its own: for their webhooks they speak HTTP/1.1 only, so
// that replicas share the work (kubernetes/kubernetes#82090). One of them has 600
// requests at once unless told otherwise, and several may share an address.
const (
	maxReviewsPerAddr = 1024
	maxReviews        = 2048
)

// forReviews returns the webhook's listener on l.
func forReviews(l net.Listener, conf *tls.Config) net.Listener {
	return tls.NewListener(identity.Bound(l, maxReviewsPerAddr, maxReviews), conf)
}

// listen opens the sockets.
func (p *control) listen() error {
	open := func(what, addr string) (net.Listener, error) {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", what, err)
		}
		p.listeners = append(p.listeners, l)
		p.Log.Info("listening", "for", what, "at", l.Addr())
		return l, nil
	}
	p.servers = append(p.servers, &server{name: "admin", http: httpServer(p.admin(), nil)})
	addrs := map[string]string{"webhook": p.Webhook, "dashboard": p.Page, "admin": p.Admin}
	for _, s := range p.servers {
		l, err := open(s.name, addrs[s.name])
		if err != nil {
			return err
		}
		if s.at = l; s.http.TLSConfig != nil {
			s.at = forReviews(l, s.http.TLSConfig)
		}
	}
	_, err := open("proxies", p.Proxies)
	return err
}

// run serves until ctx ends, and then ends everything.
func (p *control) run(ctx context.Context) error {
	background, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	var running sync.WaitGroup
	failed := make(chan error, 8)
	start := func(what string, f func() error) {
		running.Go(func() {
			if err := f(); err != nil && !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, grpc.ErrServerStopped) {
				failed <- fmt.Errorf("%s: %w", what, err)
			}
		})
	}
	if p.page != nil {
		start("dashboard's view", func() error { return p.page.Run(background) })
		start("relay", func() error { return p.relay.Run(background) })
	}
	start("authority", func() error { return p.keeper.Run(background) })
	start("cluster", func() error { return p.source.Run(background) })
	if p.namespaces != nil {
		start("namespaces", func() error { return p.namespaces.Run(background) })
	}
	for _, s := range p.servers {
		start(s.name, func() error { return s.http.Serve(s.at) })
	}
	proxiesAt := identity.Listen(p.listeners[len(p.listeners)-1])
	start("proxies", func() error { return p.serveProxies(background, proxiesAt) })
	p.Log.Info("control plane", "version", version, "trust_domain", p.TrustDomain, "native_sidecars", p.Inject.Native)

	var err error
	select {
	case <-ctx.Done():
		p.linger(failed)
	case err = <-failed:
	}
	p.end()
	cancel()
	running.Wait()
	return err
}

// serveProxies waits until the cluster is known: an answer made of half of it
// would take endpoints away from proxies that know them.
func (p *control) serveProxies(ctx context.Context, at net.Listener) error {
	for !p.source.Ready() {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return at.Close()
		}
	}
	debug.FreeOSMemory() // reading the cluster took more than knowing it does
	return p.proxies.Serve(at)
}

// linger serves on for a while. The cluster's nodes are only now being told that
// this replica ends: a proxy that lost it at once would be led back to where
// nobody is, and know of no change until it has given up there.
func (p *control) linger(failed <-chan error) {
	p.Log.Info("told to end; serving on until everybody knows", "for", p.Linger)
	select {
	case <-time.After(p.Linger):
	case err := <-failed:
		p.Log.Error("ended at once", "error", err)
	}
}

// end lets proxies go to another replica: their streams break, and come back
// there.
func (p *control) end() {
	ctx, cancel := context.WithTimeout(context.Background(), endTimeout)
	defer cancel()
	for _, s := range p.servers {
		if err := s.http.Shutdown(ctx); err != nil {
			_ = s.http.Close()
		}
	}
	p.proxies.Stop()
}
