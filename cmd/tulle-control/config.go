package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/tulle-mesh/tulle/inject"
	"github.com/tulle-mesh/tulle/mesh"
	"github.com/tulle-mesh/tulle/mesh/cluster"
)

// config is what the control plane is told.
type config struct {
	Kubeconfig  string // "": that of the pod it runs in
	TrustDomain string
	Namespace   string // its own
	CASecret    string

	// Parts that can be switched off.
	Identity, Discovery, Injector, Dashboard bool

	Proxies, Webhook, Admin, Page string // addresses to listen on

	Inject          inject.Config // Image and the like; Native is found out
	Native          string        // auto, true or false
	AutoMesh        string        // selector of namespaces; "": none
	Strict          bool          // policy of namespaces that say nothing
	CheckPodAddress bool
	Linger          time.Duration // how long it serves on once it is told to end

	Log *slog.Logger
}

// parse reads the command line.
func parse(args []string, stderr io.Writer) (config, error) {
	c := config{}
	var networks, skipIn, skipOut, policy string
	var level slog.Level
	f := flag.NewFlagSet("tulle-control", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.StringVar(&c.Kubeconfig, "kubeconfig", "", "how to reach the cluster; nothing: from inside")
	f.StringVar(&c.TrustDomain, "trust-domain", cluster.TrustDomain, "domain of every identity")
	f.StringVar(&c.Namespace, "namespace", cluster.Namespace, "where the control plane runs")
	f.StringVar(&c.CASecret, "ca-secret", cluster.CASecret, "Secret with the authority's key; made if it is not there")
	f.BoolVar(&c.Identity, "identity", true, "sign certificates")
	f.BoolVar(&c.Discovery, "discovery", true, "tell proxies what is behind an address")
	f.BoolVar(&c.Injector, "injector", true, "put the proxy into new pods")
	f.BoolVar(&c.Dashboard, "dashboard", true, "gather and show figures")
	f.StringVar(&c.Proxies, "listen", fmt.Sprintf(":%d", mesh.ControlPort), "where proxies call")
	f.StringVar(&c.Webhook, "listen-webhook", fmt.Sprintf(":%d", cluster.WebhookPort), "where the API server calls")
	f.StringVar(&c.Admin, "listen-admin", fmt.Sprintf(":%d", mesh.AdminPort), "GET /live, /ready and /metrics")
	f.StringVar(&c.Page, "listen-dashboard", fmt.Sprintf("127.0.0.1:%d", cluster.DashboardPort), "the dashboard, without any login")
	f.StringVar(&c.Inject.Image, "proxy-image", "", "image of the proxy")
	f.StringVar(&c.Inject.InitImage, "init-image", "", "image of the init container; needed without the CNI plugin")
	f.StringVar(&c.Inject.PullPolicy, "pull-policy", "", "of both images")
	f.StringVar(&c.Inject.Control, "control", fmt.Sprintf("%s:%d", cluster.ControlHost, mesh.ControlPort), "where proxies find the control plane")
	f.BoolVar(&c.Inject.CNI, "cni", true, "the CNI plugin redirects traffic; false: an init container does")
	f.StringVar(&c.Native, "native-sidecar", "auto", "auto, true or false: the proxy is a restartable init container")
	f.StringVar(&networks, "networks", "", "where pods and services have their addresses, by commas; nothing: all private networks")
	f.StringVar(&skipIn, "skip-inbound-ports", "", "ports that no pod has redirected, as in 3306,4000-4010")
	f.StringVar(&skipOut, "skip-outbound-ports", "", "ports to which no pod has its connections redirected")
	f.StringVar(&c.Inject.LogLevel, "proxy-log-level", "info", "of the proxies")
	f.StringVar(&c.Inject.Resources.CPURequest, "proxy-cpu-request", "10m", "of each proxy")
	f.StringVar(&c.Inject.Resources.CPULimit, "proxy-cpu-limit", "", "of each proxy")
	f.StringVar(&c.Inject.Resources.MemoryRequest, "proxy-memory-request", "16Mi", "of each proxy")
	f.StringVar(&c.Inject.Resources.MemoryLimit, "proxy-memory-limit", "256Mi", "of each proxy")
	f.StringVar(&c.AutoMesh, "auto-mesh", "", "label selector of namespaces to mesh without being asked")
	f.StringVar(&policy, "policy", cluster.Permissive, "of namespaces that say nothing: permissive or strict")
	f.BoolVar(&c.CheckPodAddress, "check-pod-address", true, "take a token only from its pod's own address")
	f.DurationVar(&c.Linger, "linger", 5*time.Second, "how long to serve on once told to end, until everybody has heard where else to call")
	f.TextVar(&level, "log-level", slog.LevelInfo, "debug, info, warn or error")
	if err := f.Parse(args); errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(stderr, "Usage of tulle-control:")
		f.SetOutput(stderr)
		f.PrintDefaults()
		return c, err
	} else if err != nil {
		return c, fmt.Errorf("%w; `tulle-control -h` lists all flags", err)
	}
	var errs []error
	if f.NArg() > 0 {
		errs = append(errs, fmt.Errorf("unexpected argument %q", f.Arg(0)))
	}
	c.Log = slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))
	c.Inject.Version, c.Inject.TrustDomain = version, c.TrustDomain
	var err error
	if c.Inject.Networks, err = mesh.ParseNetworks(networks); err != nil {
		errs = append(errs, fmt.Errorf("-networks: %w", err))
	}
	if c.Inject.SkipInbound, err = parsePorts(skipIn); err != nil {
		errs = append(errs, fmt.Errorf("-skip-inbound-ports: %w", err))
	}
	if c.Inject.SkipOutbound, err = parsePorts(skipOut); err != nil {
		errs = append(errs, fmt.Errorf("-skip-outbound-ports: %w", err))
	}
	switch policy {
	case cluster.Permissive:
	case cluster.Strict:
		c.Strict = true
	default:
		errs = append(errs, fmt.Errorf("-policy %q: must be %s or %s", policy, cluster.Permissive, cluster.Strict))
	}
	return c, errors.Join(append(errs, c.validate())...)
}

// validate reports what is wrong with the config.
func (c *config) validate() error {
	errs := []error{mesh.ControlID(c.TrustDomain).Validate()}
	if c.Injector {
		errs = append(errs, c.Inject.Validate())
	}
	if !c.Identity && !c.Discovery && !c.Injector && !c.Dashboard {
		errs = append(errs, errors.New("all parts are switched off"))
	}
	if c.Native != "auto" && c.Native != "true" && c.Native != "false" {
		errs = append(errs, fmt.Errorf("-native-sidecar %q: must be auto, true or false", c.Native))
	}
	for flag, addr := range map[string]string{
		"-listen": c.Proxies, "-listen-webhook": c.Webhook, "-listen-admin": c.Admin, "-listen-dashboard": c.Page,
	} {
		if _, _, err := net.SplitHostPort(addr); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", flag, err))
		}
	}
	if _, err := labels.Parse(c.AutoMesh); err != nil {
		errs = append(errs, fmt.Errorf("-auto-mesh: %w", err))
	}
	return errors.Join(errs...)
}

// autoMesh returns the selector, nil if there is none.
func (c *config) autoMesh() labels.Selector {
	if c.AutoMesh == "" {
		return nil
	}
	s, err := labels.Parse(c.AutoMesh)
	if err != nil {
		return labels.Nothing() // validate has said so
	}
	return s
}

func parsePorts(list string) ([]cluster.Ports, error) {
	if list == "" {
		return nil, nil
	}
	return cluster.ParsePorts(list)
}
