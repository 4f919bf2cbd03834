package inject

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"

	"github.com/tulle-mesh/tulle/mesh"
	"github.com/tulle-mesh/tulle/mesh/cluster"
)

// Config is what all proxies have in common.
type Config struct {
	Image      string // of the proxy
	InitImage  string // of the init container; needed without CNI
	PullPolicy string // of both; "": the cluster's default
	Version    string // what InjectedAnnotation says

	TrustDomain string
	Control     string         // "host:port" of the control plane's gRPC
	Networks    []netip.Prefix // where pods and services may be; nil: all private ones
	// CNI: the node's CNI plugin redirects the traffic; else an init container
	// does, which needs NET_ADMIN.
	CNI bool
	// Native: the cluster knows restartable init containers (Kubernetes 1.29).
	// Else the proxy is a container like others, and Jobs get none.
	Native bool

	SkipInbound, SkipOutbound []cluster.Ports // what annotations add to
	LogLevel                  string          // "": info
	Resources                 Resources       // zero fields: the defaults
}

// Resources are a proxy's requests and limits, in Kubernetes' notation. An empty
// limit is none.
type Resources struct {
	CPURequest, CPULimit, MemoryRequest, MemoryLimit string
}

// DefaultResources suit a proxy of some thousand requests per second: it holds
// about 10 MB, and more only for as long as many connections need it.
var defaultResources = Resources{CPURequest: "10m", MemoryRequest: "16Mi", MemoryLimit: "256Mi"}

// privateNetworks are where pods and services are, whatever a cluster's own
// networks: private addresses (RFC 1918, RFC 4193) and shared ones (RFC 6598).
var privateNetworks = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.168.0.0/16"), netip.MustParsePrefix("fc00::/7"),
}

// Validate reports what is wrong with the Config.
func (c Config) Validate() error {
	var errs []error
	if c.Image == "" {
		errs = append(errs, errors.New("no image of the proxy"))
	}
	if !c.CNI && c.InitImage == "" {
		errs = append(errs, errors.New("no image of the init container, and no CNI plugin"))
	}
	if c.Version == "" {
		errs = append(errs, errors.New("no version"))
	}
	errs = append(errs, mesh.ControlID(c.TrustDomain).Validate())
	if _, _, err := net.SplitHostPort(c.Control); err != nil {
		errs = append(errs, fmt.Errorf("control plane's address: %w", err))
	}
	s := settings{}
	for key, value := range map[string]string{
		cluster.LogLevel: c.LogLevel, cluster.CPURequest: c.Resources.CPURequest, cluster.CPULimit: c.Resources.CPULimit,
		cluster.MemoryRequest: c.Resources.MemoryRequest, cluster.MemoryLimit: c.Resources.MemoryLimit,
	} {
		if value != "" {
			errs = append(errs, s.set(key, value))
		}
	}
	return errors.Join(append(errs, s.check())...)
}

// defaults are the settings of a pod that asks for nothing.
func (c Config) defaults() settings {
	s := settings{
		skipInbound: c.SkipInbound, skipOutbound: c.SkipOutbound,
		logLevel: c.LogLevel, resources: c.Resources,
	}
	if s.logLevel == "" {
		s.logLevel = "info"
	}
	if s.resources == (Resources{}) {
		s.resources = defaultResources
	}
	return s
}

func (c Config) networks() []netip.Prefix {
	if c.Networks == nil {
		return privateNetworks
	}
	return c.Networks
}

var logLevels = map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}
