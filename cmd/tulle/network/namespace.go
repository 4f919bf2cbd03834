package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// NamespaceDir is where network namespaces have names, for `ip netns` too.
const NamespaceDir = "/run/netns"

// Namespace is a named network namespace, together with a Thread in it.
type Namespace struct {
	*Thread

	Name string
	Path string
}

// NewNamespace makes a namespace with its loopback up. The caller must Close it.
func NewNamespace(name string) (*Namespace, error) {
	n := &Namespace{Name: name, Path: filepath.Join(NamespaceDir, name)}
	var err error
	if n.Thread, err = startThread(n.enter); err != nil {
		return nil, fmt.Errorf("network namespace %s: %w", name, err)
	}
	return n, nil
}

// Here returns the namespace that the process itself is in, which gets no name. The
// caller must Close it.
func Here() (*Namespace, error) {
	t, err := startThread(func() error { return nil })
	if err != nil {
		return nil, err
	}
	return &Namespace{Thread: t}, nil
}

// Another starts one more thread in the namespace, whose other attributes are
// its own. The caller must Close it.
func (n *Namespace) Another() (*Thread, error) {
	return startThread(func() error {
		if n.Path == "" {
			return nil
		}
		f, err := os.Open(n.Path)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		return unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
	})
}

func (n *Namespace) enter() error {
	if err := os.MkdirAll(NamespaceDir, 0o755); err != nil {
		return err
	}
	if err := RemoveNamespace(n.Name); err != nil {
		return err
	}
	f, err := os.OpenFile(n.Path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return err
	}
	_ = f.Close()
	err = unix.Unshare(unix.CLONE_NEWNET)
	if err == nil {
		err = unix.Mount("/proc/thread-self/ns/net", n.Path, "", unix.MS_BIND, "")
	}
	if err == nil {
		err = setUpLoopback()
	}
	if err == nil {
		err = reusePorts()
	}
	if err != nil {
		return errors.Join(err, RemoveNamespace(n.Name))
	}
	return nil
}

func setUpLoopback() error {
	if HasIPv6() { // wanted in here even where the host has it off by default
		if err := writeSysctl("net/ipv6/conf/lo/disable_ipv6", "0"); err != nil {
			return err
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// reusePorts lets ports that wait for stray packets of their last connection be
// used again, as they are on loopback anyway. The proxy's own connections to the
// application all have the same addresses: 28,000 a minute would be the end.
func reusePorts() error {
	err := writeSysctl("net/ipv4/tcp_tw_reuse", "1") // IPv6 as well
	if errors.Is(err, unix.EROFS) {
		return nil // inside a container: it does without
	}
	return err
}

// Close ends the namespace's first thread and removes the name.
func (n *Namespace) Close() error {
	n.Thread.Close()
	if n.Name == "" {
		return nil
	}
	return RemoveNamespace(n.Name)
}

// RemoveNamespace removes a namespace's name, if it has one. The namespace
// itself goes when the last process in it does.
func RemoveNamespace(name string) error {
	path := filepath.Join(NamespaceDir, name)
	err := unix.Unmount(path, unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	return ignoreMissing(os.Remove(path))
}

// Wire is a replica's connection to the bridge.
type Wire struct {
	Bridge             string
	Link               string // name of the host's end
	Address4, Address6 netip.Prefix
	Gateway4, Gateway6 netip.Addr
	MTU                int
}

// inside is what the interface is called in the replica's namespace.
const inside = "eth0"

// LinkName derives the name of a replica's veth on the host from its address:
// unique on the bridge, and within the 15 characters that there are.
func LinkName(addr netip.Addr) string {
	a := addr.As4()
	return fmt.Sprintf("tl%02x%02x%02x%02x", a[0], a[1], a[2], a[3])
}

// hardwareAddr derives a replica's MAC address from its IPv4 address. Whoever gets an
// address after another replica then answers to the same MAC: what the others
// still have in their neighbour tables stays true.
func hardwareAddr(addr netip.Addr) net.HardwareAddr {
	a := addr.As4()
	return net.HardwareAddr{0x02, 't', a[0], a[1], a[2], a[3]}
}

// Connect adds the veth pair, and gives the namespace's end its addresses and routes.
func (n *Namespace) Connect(w Wire) error {
	bridge, err := netlink.LinkByName(w.Bridge)
	if err != nil {
		return fmt.Errorf("bridge %s: %w", w.Bridge, err)
	}
	ns, err := os.Open(n.Path)
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	// What a run that was killed left behind has our address, and thus our name.
	if err := DeleteLink(w.Link); err != nil {
		return fmt.Errorf("remove old %s: %w", w.Link, err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.MasterIndex = w.Link, w.MTU, bridge.Attrs().Index
	attrs.Flags |= unix.IFF_UP
	pair := &netlink.Veth{LinkAttrs: attrs, PeerName: inside, PeerNamespace: netlink.NsFd(ns.Fd()), PeerHardwareAddr: hardwareAddr(w.Address4.Addr())}
	if err := netlink.LinkAdd(pair); err != nil {
		return fmt.Errorf("add %s: %w", w.Link, err)
	}
	if err := n.Do(func() error { return w.configure() }); err != nil {
		return errors.Join(err, DeleteLink(w.Link))
	}
	return nil
}

// configure runs inside the namespace.
func (w Wire) configure() error {
	link, err := netlink.LinkByName(inside)
	if err != nil {
		return fmt.Errorf("%s: %w", inside, err)
	}
	if w.Address6.IsValid() {
		for _, name := range []string{"disable_ipv6", "accept_ra"} {
			if err := writeSysctl("net/ipv6/conf/"+inside+"/"+name, "0"); err != nil {
				return err
			}
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", inside, err)
	}
	if err := addAddresses(link, w.Address4, w.Address6); err != nil {
		return err
	}
	for _, gw := range []netip.Addr{w.Gateway4, w.Gateway6} {
		if !gw.IsValid() {
			continue
		}
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: gw.AsSlice()}
		if err := netlink.RouteReplace(route); err != nil {
			return fmt.Errorf("default route by %s: %w", gw, err)
		}
	}
	return nil
}
