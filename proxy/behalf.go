package proxy

import (
	"context"
	"errors"
	"net/netip"
	"syscall"

	"github.com/tulle-mesh/tulle/mesh"
	"github.com/tulle-mesh/tulle/proxy/tcp"
)

// What the application sees as its client: with the eBPF redirect the proxy
// connects on behalf of the client, and the application's accept and getpeername
// answer the client's address. Without, they answer the proxy's.

// announceClients finds out whether clients can be shown, and says so.
func (p *Proxy) announceClients() {
	p.showsClients = tcp.CanDialFor()
	if p.config.Redirect == mesh.RedirectCNI {
		p.config.Redirect = mesh.RedirectNetfilter
		if p.showsClients {
			p.config.Redirect = mesh.RedirectEBPF
		}
	}
	switch {
	case p.showsClients:
		p.log.Debug("applications see their clients' addresses")
	case p.config.Redirect == mesh.RedirectEBPF:
		p.log.Warn("applications see this proxy as their client: the kernel does not take the bind that would show them theirs")
	default:
		p.log.Info("applications see this proxy as their client: that takes the eBPF redirect", "redirect", p.config.Redirect)
	}
}

// dialFor connects to the application on behalf of a client, or as itself where
// the kernel does not know what that is.
func (p *Proxy) dialFor(ctx context.Context, client, app netip.AddrPort) (*tcp.Conn, error) {
	if p.shared() {
		return tcp.DialFor(ctx, nameable(client, app), app)
	}
	if !p.showsClients || client.Addr().Is4() != app.Addr().Is4() {
		return tcp.Dial(ctx, app)
	}
	conn, err := tcp.DialFor(ctx, client, app)
	if errors.Is(err, syscall.EADDRNOTAVAIL) {
		return tcp.Dial(ctx, app)
	}
	return conn, err
}

// vouched returns what may be shown of a client that the calling proxy names. A
// proxy of the mesh is believed as to the port. The address has to be the one its
// connection comes from, which is its workload's own: what an application decides by
// addresses is not decided by other workloads. Port 0 stands for any: that of a
// connection that carries many clients, or a foreign one, would name somebody else.
func (in *inbound) vouched(client netip.AddrPort) netip.AddrPort {
	hop := in.client.Addr
	if in.security != mesh.MutualTLS || client.Addr() == hop.Addr() && client != hop {
		return client
	}
	return netip.AddrPortFrom(hop.Addr(), 0)
}
