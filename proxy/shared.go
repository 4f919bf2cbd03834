package proxy

import (
	"context"
	"errors"
	"net/netip"
	"slices"

	"github.com/tulle-mesh/tulle/proxy/tcp"
)

// A workload may share its network namespace with others: a service that stays in
// its host's network. Of all addresses there one of each family is then the
// workload's, and the proxy listens and calls there. What the redirect hands it is
// meant for the workload; whether a connection is the proxy's own, to the application,
// the redirect knows by its being made on behalf of somebody, and in no other way.

func (p *Proxy) shared() bool { return len(p.config.Addresses) > 0 }

// checkShared makes sure that connections to the application do not come back.
func (p *Proxy) checkShared() error {
	if p.shared() && !p.showsClients {
		return errors.New("only the eBPF redirect can tell this proxy's connections from others in the host's network")
	}
	return nil
}

// ownHost returns the workload's address of a family; "" if it has none.
func (p *Proxy) ownHost(v4 bool) string {
	if a := p.ownOf(v4); a.IsValid() {
		return a.String()
	}
	return ""
}

func (p *Proxy) ownOf(v4 bool) netip.Addr {
	for _, a := range p.config.Addresses {
		if a.Is4() == v4 {
			return a
		}
	}
	return netip.Addr{}
}

// dialPeer connects to somebody else's endpoint. In the mesh a workload is known by
// its address; beyond, the namespace's own routes decide.
func (p *Proxy) dialPeer(ctx context.Context, addr netip.AddrPort) (*tcp.Conn, error) {
	meshed := func(n netip.Prefix) bool { return n.Contains(addr.Addr()) }
	own := p.ownOf(addr.Addr().Is4())
	if !own.IsValid() || !slices.ContainsFunc(p.config.Networks, meshed) {
		return tcp.Dial(ctx, addr)
	}
	return tcp.DialFor(ctx, netip.AddrPortFrom(own, fromPort), addr)
}

// fromPort asks the redirect for a bind to the workload's address itself, at any
// port: FROM in bpf/redirect.c.
const fromPort = 1

// Those who cannot be named to an application have addresses for documentation
// (RFC 5737, RFC 3849).
var (
	unknown4 = netip.MustParseAddr("192.0.2.1")
	unknown6 = netip.MustParseAddr("2001:db8::1")
)

// nameable returns client if it can be shown to the application.
func nameable(client, app netip.AddrPort) netip.AddrPort {
	switch {
	case client.Addr().Is4() == app.Addr().Is4() && client.Port() != fromPort:
		return client
	case client.Addr().Is4() == app.Addr().Is4():
		return netip.AddrPortFrom(client.Addr(), 0)
	case app.Addr().Is4():
		return netip.AddrPortFrom(unknown4, 0)
	}
	return netip.AddrPortFrom(unknown6, 0)
}
