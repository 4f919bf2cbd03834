package host

import (
	"context"
	"encoding/json"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/tulle-mesh/tulle/cmd/tulle/dns"
	"github.com/tulle-mesh/tulle/cmd/tulle/journal"
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

// LastNames answers with the names that the daemon of a run directory knew
// last: for the time while it is away.
func LastNames(run string) dns.Names { return lastNames{run} }

type lastNames struct{ run string }

// Lookup implements dns.Names.
func (n lastNames) Lookup(name string) ([]netip.Addr, bool) {
	var known map[string][]netip.Addr
	if readJSON(namesPath(n.run), &known) != nil {
		return nil, false
	}
	addrs, ok := known[name]
	return addrs, ok
}

// Reverse implements dns.Names.
func (n lastNames) Reverse(addr netip.Addr) (string, bool) {
	var known map[string][]netip.Addr
	if readJSON(namesPath(n.run), &known) != nil {
		return "", false
	}
	for name, addrs := range known {
		if slices.Contains(addrs, addr) {
			return name, true
		}
	}
	return "", false
}

// publishInterval bounds how often the names are written down.
const publishInterval = 100 * time.Millisecond

// publish writes all names down for LastNames, whenever they change, until
// ctx ends.
func (n names) publish(ctx context.Context, run string) error {
	for {
		snapshot, changed := n.state.Watch()
		known := map[string][]netip.Addr{}
		for _, s := range snapshot.Services() {
			known[s.Name], _ = n.Lookup(s.Name)
			for _, r := range s.Replicas {
				known[r.Name], _ = n.Lookup(r.Name)
			}
		}
		data, err := json.Marshal(known)
		if err == nil {
			err = journal.WriteFile(namesPath(run), data)
		}
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(publishInterval):
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

// Upstreams are the host's own resolvers.
func Upstreams() []netip.AddrPort {
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
