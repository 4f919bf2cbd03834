package host

import (
	"net/netip"
	"os"
	"slices"

	"github.com/tulle-mesh/tulle/cmd/tulle/dns"
	"github.com/tulle-mesh/tulle/discovery"
)

// names answers the DNS server from what discovery knows.
type names struct {
	state    *discovery.State
	networks []netip.Prefix
}

// Lookup implements dns.Names.
func (n names) Lookup(name string) ([]netip.Addr, bool) {
	addr4, addr6, ok := n.state.Load().Resolve(name)
	addrs := slices.DeleteFunc([]netip.Addr{addr4, addr6}, func(a netip.Addr) bool { return !a.IsValid() })
	return addrs, ok
}

// Reverse implements dns.Names.
func (n names) Reverse(addr netip.Addr) (string, bool) {
	inside := slices.ContainsFunc(n.networks, func(p netip.Prefix) bool { return p.Contains(addr) })
	if !inside {
		return "", false
	}
	// Which port does not matter to an address of our own networks.
	m := n.state.Load().Match(netip.AddrPortFrom(addr, 1))
	switch {
	case m.Replica != nil:
		return m.Replica.Name, true
	case m.Service != nil:
		return m.Service.Name, true
	}
	return "", true
}

// upstreams are the host's own resolvers.
func upstreams() []netip.AddrPort {
	text, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		return nil
	}
	var list []netip.AddrPort
	for _, addr := range dns.ParseResolvConf(string(text)).Nameservers {
		list = append(list, netip.AddrPortFrom(addr, dnsPort))
	}
	return list
}
