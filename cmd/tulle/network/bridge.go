package network

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tulle-mesh/tulle/cni/redirect"
)

// Bridge is the switch all replicas hang on; the host itself is on it with the
// gateway's addresses.
type Bridge struct {
	Name     string
	Gateway4 netip.Prefix
	Gateway6 netip.Prefix // invalid: the host has no IPv6
	MTU      int
}

// bridgeMAC keeps the bridge's address constant: by default it is the lowest of its
// ports', which would make every workload's neighbour entry for the gateway
// stale whenever a replica comes or goes.
var bridgeMAC = net.HardwareAddr{0x02, 't', 'u', 'l', 'l', 'e'}

// Create makes the bridge, or brings one that is there already (left by a
// daemon that was killed) into the same state.
func (b Bridge) Create() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = b.Name, b.MTU, bridgeMAC
	err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add bridge %s: %w", b.Name, err)
	}
	link, err := netlink.LinkByName(b.Name)
	if err != nil {
		return fmt.Errorf("bridge %s: %w", b.Name, err)
	}
	if link.Type() != "bridge" {
		return fmt.Errorf("interface %s exists and is a %s, not a bridge", b.Name, link.Type())
	}
	if b.Gateway6.IsValid() {
		// Our own interface: wanted even where IPv6 is off by default.
		if err := writeSysctl("net/ipv6/conf/"+b.Name+"/disable_ipv6", "0"); err != nil {
			return err
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", b.Name, err)
	}
	if err := addAddresses(link, b.Gateway4, b.Gateway6); err != nil || !b.Gateway6.IsValid() {
		return err
	}
	return AddMember(b.Name, redirect.HopSource6)
}

// addAddresses gives link its addresses. IPv6 duplicate detection is left out:
// the addresses are ours to give, and a workload must not wait two seconds.
func addAddresses(link netlink.Link, addresses ...netip.Prefix) error {
	for _, a := range addresses {
		if !a.IsValid() {
			continue
		}
		addr := &netlink.Addr{IPNet: ipNet(a)}
		if a.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrReplace(link, addr); err != nil {
			return fmt.Errorf("add address %s to %s: %w", a, link.Attrs().Name, err)
		}
	}
	return nil
}

// AddMember gives the host the addresses of a replica that shares its network. As a
// single one, and deprecated, neither is ever what a connection comes from that did
// not ask for it.
func AddMember(bridge string, addresses ...netip.Addr) error {
	link, err := netlink.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("bridge %s: %w", bridge, err)
	}
	for _, a := range addresses {
		if !a.IsValid() {
			continue
		}
		addr := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(a, a.BitLen()))}
		if a.Is6() {
			addr.Flags, addr.PreferedLft, addr.ValidLft = unix.IFA_F_NODAD, 0, math.MaxUint32
		}
		if err := netlink.AddrReplace(link, addr); err != nil {
			return fmt.Errorf("add address %s to %s: %w", a, bridge, err)
		}
	}
	return nil
}

// RemoveMember takes them away again. What is not there is no error.
func RemoveMember(bridge string, addresses ...netip.Addr) error {
	link, err := netlink.LinkByName(bridge)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, a := range addresses {
		if !a.IsValid() {
			continue
		}
		err := netlink.AddrDel(link, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(a, a.BitLen()))})
		if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			errs = append(errs, fmt.Errorf("remove address %s from %s: %w", a, bridge, err))
		}
	}
	return errors.Join(errs...)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// Overlap returns an error if the host already has a route to a part of p
// that leads elsewhere than to the bridge.
func Overlap(p netip.Prefix, bridge string) error {
	family := netlink.FAMILY_V4
	if p.Addr().Is6() {
		family = netlink.FAMILY_V6
	}
	routes, err := netlink.RouteList(nil, family)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		addr, _ := netip.AddrFromSlice(r.Dst.IP)
		bits, _ := r.Dst.Mask.Size()
		dst := netip.PrefixFrom(addr.Unmap(), bits)
		// A wider route (a default route, a VPN's 10.0.0.0/8) goes on working for all other addresses.
		if bits < p.Bits() || !p.Overlaps(dst) {
			continue
		}
		link, err := netlink.LinkByIndex(r.LinkIndex)
		if err == nil && link.Attrs().Name != bridge {
			return fmt.Errorf("network %s overlaps the route to %s by %s", p, dst, link.Attrs().Name)
		}
	}
	return nil
}

// HasIPv6 tells whether the kernel has IPv6 at all.
func HasIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6")
	return err == nil
}

// Exists tells whether there is a link of this name.
func Exists(name string) bool {
	_, err := netlink.LinkByName(name)
	return err == nil
}

// DeleteLink removes an interface; one that does not exist is fine.
func DeleteLink(name string) error {
	link, err := netlink.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return err
	}
	return nil
}

// defaultMTU is Ethernet's.
const defaultMTU = 1500

// MTU returns what a bridge should have so that what workloads send fits where
// the host's default route leads; tunnels and some clouds have less than Ethernet.
func MTU() int {
	mtu := defaultMTU
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return mtu
	}
	for _, r := range routes {
		if r.Dst != nil && !r.Dst.IP.IsUnspecified() {
			continue
		}
		if link, err := netlink.LinkByIndex(r.LinkIndex); err == nil {
			mtu = min(mtu, link.Attrs().MTU)
		}
	}
	return max(mtu, 1280) // what IPv6 demands
}
