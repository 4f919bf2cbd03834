package proxy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/tulle-mesh/tulle/mesh"
	"github.com/tulle-mesh/tulle/proxy/tcp"
)

// errLoop is returned for a connection whose destination is the proxy itself:
// serving it would make the proxy dial itself until it has no files left.
var errLoop = errors.New("original destination is the proxy itself")

// origin returns where the client of c meant to go before the redirect. If
// c's local address is not the listener's port it is the original destination
// (eBPF, TPROXY); else netfilter knows (SO_ORIGINAL_DST).
func origin(c *tcp.Conn, listenPort uint16) (netip.AddrPort, error) {
	local, err := addrPort(c.LocalAddr())
	if err != nil {
		return netip.AddrPort{}, err
	}
	dst := local
	if local.Port() == listenPort {
		if dst, err = netfilterOrigin(c, local.Addr()); err != nil {
			return netip.AddrPort{}, fmt.Errorf("original destination: %w", err)
		}
	}
	if ownPort(dst.Port()) && (dst.Addr().IsLoopback() || dst.Addr() == local.Addr()) {
		return dst, errLoop
	}
	return dst, nil
}

func ownPort(port uint16) bool {
	return port == mesh.OutboundPort || port == mesh.InboundPort || port == mesh.AdminPort
}

const ip6tSoOriginalDst = 80 // linux/netfilter_ipv6/ip6_tables.h; the same number as SO_ORIGINAL_DST

func netfilterOrigin(c *tcp.Conn, local netip.Addr) (dst netip.AddrPort, err error) {
	cerr := c.Control(func(fd uintptr) {
		if local.Is4() {
			// The 16 bytes of a sockaddr_in, read through the option type of that size.
			var got *unix.IPv6Mreq
			if got, err = unix.GetsockoptIPv6Mreq(int(fd), unix.SOL_IP, unix.SO_ORIGINAL_DST); err == nil {
				b := got.Multiaddr
				dst = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), uint16(b[2])<<8|uint16(b[3]))
			}
			return
		}
		var got *unix.IPv6MTUInfo // begins with a sockaddr_in6
		if got, err = unix.GetsockoptIPv6MTUInfo(int(fd), unix.SOL_IPV6, ip6tSoOriginalDst); err == nil {
			port := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, got.Addr.Port))
			dst = netip.AddrPortFrom(netip.AddrFrom16(got.Addr.Addr), port)
		}
	})
	if cerr != nil {
		err = cerr
	}
	return dst, err
}

// addrPort unmaps, so that an address has one spelling.
func addrPort(a net.Addr) (netip.AddrPort, error) {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}, fmt.Errorf("%v is not a TCP address", a)
	}
	ap := t.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), nil
}
