package redirect

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/tulle-mesh/tulle/mesh"
)

// Member is a workload in a network namespace that it shares with others who are
// not meshed: a service that stays in the network of its host. What the processes
// of its cgroup connect to goes to its proxy, and so does what others open to the
// ports that it names. Nobody else in the namespace notices.
//
// The namespace also has HopSource6. The proxy listens on mesh.OutboundPort and mesh.InboundPort of the member's own
// addresses, and has to begin so after Enter. It runs outside the cgroup, as
// mesh.ProxyUID, and has to connect to the application on behalf of somebody
// always: that is what tells its connections to these ports from those of others.
type Member struct {
	Cgroup             string         // directory of a cgroup2
	Address4, Address6 netip.Addr     // the namespace has them for this member; Address6 may be zero
	Networks           []netip.Prefix // are called from these addresses, others from the namespace's
	Ports              []int          // what others open there goes to the proxy
}

// HopSource6 is where IPv6 connections of Members' proxies to their applications come
// from (HOP_SOURCE6 of bpf/redirect.c). The namespace needs it, as a deprecated address
// of any interface; without it there are none of those connections.
var HopSource6 = netip.MustParseAddr("fd84:7475:6c6c:7f54::1")

// PortTakenError is a port of another Member.
type PortTakenError struct{ Port int }

func (e *PortTakenError) Error() string {
	return fmt.Sprintf("port %d of this host is another workload's of the mesh; choose another, or stop that one (tulle ps)", e.Port)
}

// Suffixes of the links at a member's cgroup. A bpffs takes no dots.
const (
	suffix4 = "-4"
	suffix6 = "-6"
)

// ofCgroup tells the numbers of members from cookies of namespaces.
const ofCgroup = 1 << 63

// Validate reports everything that is wrong with the member.
func (m Member) Validate() error {
	var errs []error
	if !m.Address4.Is4() {
		errs = append(errs, fmt.Errorf("address %s: must be an IPv4 address", m.Address4))
	}
	if m.Address6.IsValid() && (!m.Address6.Is6() || m.Address6.Is4In6()) {
		errs = append(errs, fmt.Errorf("address %s: must be an IPv6 address", m.Address6))
	}
	errs = append(errs, checkPorts("member's", m.Ports)...)
	errs = append(errs, checkSubnets(m.Networks)...)
	for _, port := range []int{mesh.OutboundPort, mesh.InboundPort, mesh.AdminPort} {
		if slices.Contains(m.Ports, port) {
			errs = append(errs, fmt.Errorf("port %d: is the proxy's own; choose another", port))
		}
	}
	return errors.Join(errs...)
}

// Enter makes the calling thread's network namespace a shared one, and m a member
// of it, until leave is called or the cgroup has gone and Collect was called. A
// port that another member has named is a PortTakenError.
func (n Node) Enter(m Member) (leave func() error, err error) {
	if err := m.Validate(); err != nil {
		return nil, err
	}
	var dir syscall.Stat_t
	if err := syscall.Stat(m.Cgroup, &dir); err != nil {
		return nil, fmt.Errorf("cgroup %s: %w", m.Cgroup, err)
	}
	number := ofCgroup | dir.Ino // on 64 bits the inode is the cgroup's id, which is never used again
	err = n.change(func(t *tables) error {
		if err := n.collect(t); err != nil {
			return err
		}
		return n.enter(t, m, number)
	})
	if err != nil {
		return nil, err
	}
	return func() error { return n.leave(number) }, nil
}

// Left returns what lets go of the Member of a cgroup whose leave was lost with its
// process. Ask while the cgroup is there, and call once it is empty: the kernel lets
// go of a removed cgroup's programs only some time later, and the ports are taken as long.
func (n Node) Left(cgroup string) (leave func() error) {
	var dir syscall.Stat_t
	if syscall.Stat(cgroup, &dir) != nil {
		return func() error { return nil } // Collect finds what is left
	}
	return func() error { return n.leave(ofCgroup | dir.Ino) }
}

func (n Node) enter(t *tables, m Member, number uint64) error {
	netns, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer netns.Close()
	cookie, err := netnsCookie()
	if err != nil {
		return err
	}
	own, sources, hops, err := hostAddresses(m.Networks)
	if err != nil {
		return err
	}
	steps := []func() error{
		func() error { return t.share(cookie, sources, hops) },
		func() error { return t.claimMember(cookie, number, m) },
		func() error { return t.enterMember(number, m, own) },
		func() error { return n.attachNetns(netns, cookie, n.shared(), progMemberInbound) },
		func() error { return n.attachMember(m.Cgroup, number) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return errors.Join(err, n.expel(t, number))
		}
	}
	return nil
}

// leave is the opposite of enter; what has left already does not matter.
func (n Node) leave(number uint64) error {
	err := n.change(func(t *tables) error { return n.expel(t, number) })
	if errors.Is(err, errNotLoaded) {
		return nil
	}
	return err
}

func (n Node) expel(t *tables, number uint64) error {
	return errors.Join(
		t.forgetMembers(func(other uint64) bool { return other == number }),
		detach(pin(n.members(), number, suffix4)),
		detach(pin(n.members(), number, suffix6)),
		t.forget(func(other uint64, _ uint32) bool { return other == number }),
		n.leaveShared(t))
}

// leaveShared takes from shared namespaces that have no member any more what made
// them shared ones.
func (n Node) leaveShared(t *tables) error {
	cookies, err := numbers(n.shared(), "")
	if err != nil {
		return err
	}
	inhabited := map[uint64]bool{}
	if err := eachEntry(t.members, func(k kernelMemberKey, _ uint64) { inhabited[k.Netns] = true }); err != nil {
		return err
	}
	var errs []error
	for _, cookie := range cookies {
		if !inhabited[cookie] {
			errs = append(errs, detach(pin(n.shared(), cookie, "")))
		}
	}
	errs = append(errs, t.forget(func(cookie uint64, generation uint32) bool { return generation == 0 && !inhabited[cookie] }))
	return errors.Join(errs...)
}

func (n Node) attachMember(cgroup string, number uint64) error {
	c, err := loadInstance(n.maps(), number, progMember4, progMember6)
	if err != nil {
		return err
	}
	defer c.Close()
	for _, a := range []struct {
		program, suffix string
		at              ebpf.AttachType
	}{{progMember4, suffix4, ebpf.AttachCGroupInet4Connect}, {progMember6, suffix6, ebpf.AttachCGroupInet6Connect}} {
		l, err := link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: a.at, Program: c.Programs[a.program]})
		if err != nil {
			return fmt.Errorf("attach eBPF program %s to %s: %w", a.program, cgroup, err)
		}
		err = l.Pin(pin(n.members(), number, a.suffix))
		_ = l.Close()
		if err != nil {
			return fmt.Errorf("pin eBPF program %s: %w", a.program, err)
		}
	}
	return nil
}

// hostAddresses returns the addresses of the thread's network namespace that are
// nobody's in particular, and one of each family for calls that leave the mesh, and
// tells whether HopSource6 is among them. In the mesh's networks members have single
// addresses; the one with a prefix is the gateway.
func hostAddresses(networks []netip.Prefix) (own, sources []netip.Addr, hops bool, err error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, nil, false, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range list {
		p, err := netip.ParsePrefix(a.String())
		if err != nil {
			continue
		}
		meshed := slices.ContainsFunc(networks, func(n netip.Prefix) bool { return n.Contains(p.Addr()) })
		if p.Addr() == HopSource6 {
			hops = true
			continue
		}
		if meshed && p.IsSingleIP() {
			continue
		}
		own = append(own, p.Addr())
		if !meshed && p.Addr().IsGlobalUnicast() {
			sources = append(sources, p.Addr())
		}
	}
	return own, sources, hops, nil
}

// share makes a namespace a shared one, or brings that up to date; hops tells whether
// what comes from HopSource6 can be one of the namespace's own.
func (t *tables) share(cookie uint64, sources []netip.Addr, hops bool) error {
	var before kernelNamespace
	switch err := t.namespaces.Lookup(cookie, &before); {
	case err == nil && before.Generation != 0:
		return errors.New("this network namespace is a workload's own")
	case err != nil && !errors.Is(err, ebpf.ErrKeyNotExist):
		return err
	}
	entry := kernelNamespace{ProxyUid: mesh.ProxyUID, OutboundPort: mesh.OutboundPort, InboundPort: mesh.InboundPort}
	entry.setSources(sources)
	for _, port := range []uint16{mesh.OutboundPort, mesh.InboundPort, mesh.AdminPort} { // where proxies listen
		if err := t.ports.Put(kernelPortKey{Netns: cookie, Direction: dirInbound, Port: port}, uint8(1)); err != nil {
			return err
		}
	}
	if err := t.noteHops(cookie, hops); err != nil {
		return err
	}
	return t.namespaces.Put(cookie, entry)
}

// noteHops notes whether a shared namespace has HopSource6.
func (t *tables) noteHops(cookie uint64, hops bool) error {
	hop := subnetKey(cookie, 0, netip.PrefixFrom(HopSource6, HopSource6.BitLen()))
	if hops {
		return t.subnets.Put(hop, kindOwn)
	}
	if err := t.subnets.Delete(hop); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return err
	}
	return nil
}

// renewHops notes the same of the calling thread's network namespace, if that is a
// shared one: members that entered with an earlier revision have not.
func (n Node) renewHops() error {
	t, err := n.tables()
	if err != nil {
		return err
	}
	defer t.close()
	cookie, err := netnsCookie()
	if err != nil {
		return err
	}
	var entry kernelNamespace
	err = t.namespaces.Lookup(cookie, &entry)
	if errors.Is(err, ebpf.ErrKeyNotExist) || err == nil && entry.Generation != 0 {
		return nil
	}
	if err != nil {
		return err
	}
	_, _, hops, err := hostAddresses(nil)
	if err != nil {
		return err
	}
	return t.noteHops(cookie, hops)
}

// setSources takes the first address of each family.
func (e *kernelNamespace) setSources(addresses []netip.Addr) {
	for _, a := range addresses {
		switch {
		case !a.IsGlobalUnicast():
		case a.Is4() && e.Source4 == 0:
			e.Source4 = words(a)[3]
		case a.Is6() && e.Source6.Word == [4]uint32{}:
			e.Source6.Word = words(a)
		}
	}
}

// claimMember takes ports and addresses.
func (t *tables) claimMember(cookie, number uint64, m Member) error {
	for _, port := range m.Ports {
		key := kernelMemberKey{Netns: cookie, Port: uint16(port)}
		err := t.members.Update(key, number, ebpf.UpdateNoExist)
		if errors.Is(err, ebpf.ErrKeyExist) {
			return &PortTakenError{port}
		}
		if err != nil {
			return err
		}
	}
	for _, a := range []netip.Addr{m.Address4, m.Address6, loopbackBase(m.Address4)} {
		if !a.IsValid() {
			continue
		}
		key := kernelMemberKey{Netns: cookie}
		key.Address.Word = words(a)
		if err := t.members.Put(key, number); err != nil {
			return err
		}
	}
	return nil
}

// loopbackBase is where a member's connections go by: 127.X.Y.0 of one whose address
// ends in X.Y, kept apart by discovery for as many members as there can be.
func loopbackBase(a netip.Addr) netip.Addr {
	b := a.As4()
	return netip.AddrFrom4([4]byte{127, b[2], b[3], 0})
}

func (t *tables) enterMember(number uint64, m Member, own []netip.Addr) error {
	entry := kernelNamespace{Generation: 1, ProxyUid: mesh.ProxyUID, OutboundPort: mesh.OutboundPort, InboundPort: mesh.InboundPort}
	entry.setSources([]netip.Addr{m.Address4, m.Address6})
	for _, p := range m.Networks {
		if err := t.subnets.Put(subnetKey(number, entry.Generation, p), kindMesh); err != nil {
			return err
		}
	}
	for _, a := range own {
		if err := t.subnets.Put(subnetKey(number, entry.Generation, netip.PrefixFrom(a, a.BitLen())), kindOwn); err != nil {
			return err
		}
	}
	return t.namespaces.Put(number, entry)
}

func (t *tables) forgetMembers(which func(number uint64) bool) error {
	return forgetKeys[kernelMemberKey, uint64](t.members, func(_ kernelMemberKey, number uint64) bool { return which(number) })
}

// eachEntry works on a map that nobody changes meanwhile.
func eachEntry[K, V any](m *ebpf.Map, do func(K, V)) error {
	var key K
	var value V
	entries := m.Iterate()
	for entries.Next(&key, &value) {
		do(key, value)
	}
	return entries.Err()
}
