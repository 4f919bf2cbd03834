package host

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"

	"github.com/tulle-mesh/tulle/cni/redirect"
	"github.com/tulle-mesh/tulle/dashboard"
	"github.com/tulle-mesh/tulle/mesh"
)

// Names and numbers of every mesh on one host.
const (
	TrustDomain = "tulle.local"
	Domain      = "mesh"
	BridgeName  = "tulle0"
	dnsPort     = 53
)

// Config is a `tulle up`.
type Config struct {
	RunDir   string // sockets and state of this boot
	StateDir string // the certificate authority
	Catalog  string // file of services that are not run here; "": none
	// Network4 and Network6 are the mesh's own: gateway and replicas in the low
	// half, services in the high half.
	Network4, Network6 netip.Prefix
	Masquerade         bool   // let workloads reach what the host reaches
	Redirect           string // backend: auto, ebpf, nftables or iptables
	Dashboard          string // address of the HTTP API and page
	History            string // directory that keeps the dashboard's last hour; "": none does
	Prometheus         string // server that scrapes the proxies; "": none does
	Version            string
	Out                io.Writer // a line for each thing the user should know
	Log                *slog.Logger
	Ready              func() // called once everything is served; nil: nobody waits
}

// Validate reports what is wrong with the Config.
func (c *Config) Validate() error {
	var errs []error
	if !c.Network4.Addr().Is4() || c.Network4.Bits() > 24 || c.Network4.Bits() < 8 {
		errs = append(errs, fmt.Errorf("--network4 %s: must be an IPv4 network of /8 to /24, such as 10.84.0.0/16", c.Network4))
	}
	if !c.Network6.Addr().Is6() || c.Network6.Bits() > 112 || c.Network6.Bits() < 16 {
		errs = append(errs, fmt.Errorf("--network6 %s: must be an IPv6 network of /16 to /112, such as fd84:7475:6c6c:e000::/64", c.Network6))
	}
	if c.Network6.Contains(redirect.HopSource6) {
		errs = append(errs, fmt.Errorf("--network6 %s: has the address %s in it, which is the redirect's; choose another network", c.Network6, redirect.HopSource6))
	}
	for _, p := range []netip.Prefix{c.Network4, c.Network6} {
		if p.IsValid() && p != p.Masked() {
			errs = append(errs, fmt.Errorf("network %s: has bits beyond its length; write %s", p, p.Masked()))
		}
		if p.IsValid() && special(p.Addr()) {
			errs = append(errs, fmt.Errorf("network %s: has addresses with another meaning; choose a private one, such as 10.84.0.0/16 or fd84:7475:6c6c:e000::/64", p))
		}
	}
	if _, _, err := net.SplitHostPort(c.Dashboard); err != nil {
		errs = append(errs, fmt.Errorf("--dashboard %s: must be ADDRESS:PORT, such as 127.0.0.1:4180", c.Dashboard))
	}
	if c.Prometheus != "" {
		if err := dashboard.CheckPrometheus(c.Prometheus); err != nil {
			errs = append(errs, fmt.Errorf("--prometheus %w", err))
		}
	}
	return errors.Join(errs...)
}

// special tells whether an address cannot be a workload's: it stays on its machine or
// link, is many machines' or none's.
func special(a netip.Addr) bool {
	return a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast() || a.Is4() && (a.As4()[0] == 0 || a.As4()[0] >= 224)
}

// Paths below a run directory.
func lockPath(run string) string    { return filepath.Join(run, "lock") }
func upPath(run string) string      { return filepath.Join(run, "up.json") }
func namesPath(run string) string   { return filepath.Join(run, "names.json") }
func journalPath(run string) string { return filepath.Join(run, "restore.json") }

// HostSocket is where `tulle run` and its like find the daemon.
func HostSocket(run string) string { return filepath.Join(run, "host.sock") }

// APISocket is where the dashboard's API is served to local commands.
func APISocket(run string) string { return filepath.Join(run, "api.sock") }

// LogPath is where a daemon in the background logs.
func LogPath(run string) string { return filepath.Join(run, "up.log") }

// WorkloadDir holds the files of one replica.
func WorkloadDir(run, replica string) string { return filepath.Join(run, "workloads", replica) }

// gateway is the host's own address in a network: the first one.
func gateway(network netip.Prefix) netip.Prefix {
	return netip.PrefixFrom(network.Masked().Addr().Next(), network.Bits())
}

// networks returns those of the Config that are used.
func (c *Config) networks() []netip.Prefix {
	list := []netip.Prefix{c.Network4}
	if c.Network6.IsValid() {
		list = append(list, c.Network6)
	}
	return list
}

func (c *Config) controlAddress() netip.AddrPort {
	return netip.AddrPortFrom(gateway(c.Network4).Addr(), mesh.ControlPort)
}
