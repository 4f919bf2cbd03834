package redirect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/tulle-mesh/tulle/mesh"
)

// ebpfBackend gives a network namespace its place in a Node's maps, and its
// inbound program.
type ebpfBackend struct {
	node  Node
	netns *os.File
}

// EBPF returns the backend that uses eBPF, in the network namespace that netns
// refers to; nil stands for that of the calling thread at each call. netns must
// stay open as long as the backend is used. Apply needs a Node that was Loaded.
//
// The proxy must begin to listen after Apply: its listener is noticed when it
// does. Addresses that the namespace gets later count from the next Apply on.
// With the namespace, all that Apply wrote loses its effect; Node.Collect clears
// it away.
func (n Node) EBPF(netns *os.File) Backend { return &ebpfBackend{n, netns} }

func (b *ebpfBackend) Name() string { return mesh.RedirectEBPF }

// Probe asks for a Node that was Loaded by this version.
func (b *ebpfBackend) Probe() error {
	switch revision, err := b.node.loaded(); {
	case err != nil:
		return err
	case revision == 0:
		return errNotLoaded
	case revision > loadRevision:
		return ErrNewer
	}
	return nil
}

// Probe reports why the eBPF backend cannot be used on this machine. It has the
// kernel take every program, and attaches each for a moment to where it would be:
// with maps of its own, in which there is no namespace. ErrNoBPFFS is the last
// thing it looks for.
func (n Node) Probe() error {
	cgroup, err := n.cgroup()
	if err != nil {
		return err
	}
	c, err := loadNode("")
	if err != nil {
		return err
	}
	defer c.Close()
	for _, a := range attachments {
		l, err := link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: a.at, Program: c.Programs[a.program]})
		if err != nil {
			return fmt.Errorf("attach eBPF program %s to %s: %w", a.program, cgroup, err)
		}
		defer func() { _ = l.Close() }()
		if _, err := l.Info(); err != nil { // the old way to attach, which ends with its process
			return fmt.Errorf("eBPF programs cannot be pinned: %w", err)
		}
	}
	if err := probeInbound(); err != nil {
		return err
	}
	return checkBPFFS(filepath.Dir(n.pins()))
}

// probeInbound attaches the inbound program to a namespace made for it: in any
// other it would refuse everybody.
func probeInbound() error {
	c, err := loadInstance("", 0, instances...)
	if err != nil {
		return err
	}
	defer c.Close()
	enter := func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		return nil
	}
	return elsewhere(enter, func() error {
		netns, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			return err
		}
		defer netns.Close()
		if _, err := netnsCookie(); err != nil {
			return err
		}
		l, err := link.AttachNetNs(int(netns.Fd()), c.Programs[progInbound])
		if err != nil {
			return fmt.Errorf("attach eBPF program inbound: %w", err)
		}
		return l.Close()
	})
}

func (b *ebpfBackend) Apply(r Rules) error {
	if err := r.Validate(); err != nil {
		return err
	}
	return b.change(func(t *tables, netns *os.File, cookie uint64) error {
		own, err := ownAddresses()
		if err != nil {
			return err
		}
		before, err := t.enter(cookie, r.withDefaults(), own)
		if err != nil {
			return err
		}
		if err := b.node.attachNetns(netns, cookie, b.node.inbound(), progInbound); err != nil {
			return errors.Join(err, t.restore(cookie, before))
		}
		return t.forget(func(c uint64, generation uint32) bool {
			return before != nil && c == cookie && generation == before.Generation
		})
	})
}

func (b *ebpfBackend) Remove() error {
	err := b.change(func(t *tables, _ *os.File, cookie uint64) error {
		// New connections from outside pass from here on; they must not be refused
		// because half of the rules have gone.
		if err := detach(pin(b.node.inbound(), cookie, "")); err != nil {
			return err
		}
		return t.forget(func(c uint64, _ uint32) bool { return c == cookie })
	})
	if errors.Is(err, errNotLoaded) {
		return nil
	}
	return err
}

var errNotLoaded = errors.New("the eBPF programs are not loaded; type: tulle up")

// change runs do on a thread in the namespace, when it is its turn.
func (b *ebpfBackend) change(do func(t *tables, netns *os.File, cookie uint64) error) error {
	return b.node.change(func(t *tables) error {
		return inside(b.netns, func() error {
			netns, err := os.Open("/proc/thread-self/ns/net")
			if err != nil {
				return err
			}
			defer netns.Close()
			cookie, err := netnsCookie()
			if err != nil {
				return err
			}
			return do(t, netns, cookie)
		})
	})
}

// change runs do when it is its turn.
func (n Node) change(do func(*tables) error) error {
	unlock, err := n.lock()
	if errors.Is(err, fs.ErrNotExist) {
		return errNotLoaded
	}
	if err != nil {
		return err
	}
	defer unlock()
	if revision, err := n.loaded(); err != nil {
		return err
	} else if revision == 0 {
		return errNotLoaded
	}
	t, err := n.tables()
	if err != nil {
		return err
	}
	defer t.close()
	return do(t)
}

// netnsCookie returns what eBPF programs know the thread's network namespace by;
// it is never given to another one.
func netnsCookie() (uint64, error) {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer func() { _ = unix.Close(s) }()
	cookie, err := unix.GetsockoptUint64(s, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("cookie of the network namespace (needs Linux 5.14): %w", err)
	}
	return cookie, nil
}

// attachNetns gives a namespace its program, unless it has it, and pins that in dir.
func (n Node) attachNetns(netns *os.File, cookie uint64, dir, program string) error {
	pin := pin(dir, cookie, "")
	if _, err := os.Stat(pin); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	c, err := loadInstance(n.maps(), cookie, program)
	if err != nil {
		return err
	}
	defer c.Close()
	l, err := link.AttachNetNs(int(netns.Fd()), c.Programs[program])
	if err != nil {
		return fmt.Errorf("attach eBPF program %s: %w", program, err)
	}
	defer func() { _ = l.Close() }()
	if err := l.Pin(pin); err != nil {
		return fmt.Errorf("pin eBPF program %s: %w", program, err)
	}
	return nil
}

// ownAddresses returns the addresses of the thread's network namespace.
func ownAddresses() ([]netip.Addr, error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var own []netip.Addr
	for _, a := range list {
		if n, ok := a.(*net.IPNet); ok {
			if addr, ok := netip.AddrFromSlice(n.IP); ok {
				own = append(own, addr.Unmap())
			}
		}
	}
	return own, nil
}

// tables are the maps that say what is redirected.
type tables struct {
	namespaces, ports, subnets, listeners, members, pending *ebpf.Map
}

func (n Node) tables() (*tables, error) {
	t := &tables{}
	for _, m := range []struct {
		name string
		into **ebpf.Map
	}{{"namespaces", &t.namespaces}, {"ports", &t.ports}, {"subnets", &t.subnets}, {"listeners", &t.listeners}, {"members", &t.members}, {"pending", &t.pending}} {
		var err error
		if *m.into, err = ebpf.LoadPinnedMap(filepath.Join(n.maps(), m.name), nil); err != nil {
			t.close()
			if errors.Is(err, fs.ErrNotExist) {
				err = errNotLoaded
			}
			return nil, err
		}
	}
	return t, nil
}

func (t *tables) close() {
	for _, m := range []*ebpf.Map{t.namespaces, t.ports, t.subnets, t.listeners, t.members, t.pending} {
		_ = m.Close()
	}
}

// enter writes the rules under a new generation, and then has them count, all at
// once. It returns what counted before, nil for nothing.
func (t *tables) enter(cookie uint64, r Rules, own []netip.Addr) (before *kernelNamespace, err error) {
	entry := kernelNamespace{Generation: 1, ProxyUid: uint32(r.ProxyUID), OutboundPort: uint16(r.OutboundPort), InboundPort: uint16(r.InboundPort)}
	var last kernelNamespace
	switch err := t.namespaces.Lookup(cookie, &last); {
	case err == nil:
		before, entry.Generation = &last, last.Generation+1
	case !errors.Is(err, ebpf.ErrKeyNotExist):
		return nil, err
	}
	entry.setSources(own)
	err = t.enterSkipped(cookie, entry.Generation, r, own)
	if err == nil {
		err = t.namespaces.Put(cookie, entry)
	}
	if err != nil {
		err = fmt.Errorf("write the redirect's maps: %w", err)
		return nil, errors.Join(err, t.forget(func(c uint64, g uint32) bool { return c == cookie && g == entry.Generation }))
	}
	return before, nil
}

// Directions and kinds of bpf/redirect.c.
const (
	dirInbound = iota
	dirOutbound
)

const (
	kindOwn uint8 = iota + 1
	kindSkipped
	kindMesh
)

func (t *tables) enterSkipped(cookie uint64, generation uint32, r Rules, own []netip.Addr) error {
	for direction, ports := range map[uint16][]int{dirInbound: r.SkipInbound, dirOutbound: r.SkipOutbound} {
		for _, port := range ports {
			key := kernelPortKey{Netns: cookie, Generation: generation, Direction: direction, Port: uint16(port)}
			if err := t.ports.Put(key, uint8(1)); err != nil {
				return err
			}
		}
	}
	for _, p := range r.SkipSubnets {
		if err := t.subnets.Put(subnetKey(cookie, generation, p), kindSkipped); err != nil {
			return err
		}
	}
	for _, a := range own { // after the subnets: one of them may be just this address
		if err := t.subnets.Put(subnetKey(cookie, generation, netip.PrefixFrom(a, a.BitLen())), kindOwn); err != nil {
			return err
		}
	}
	return nil
}

func subnetKey(cookie uint64, generation uint32, p netip.Prefix) kernelSubnetKey {
	key := kernelSubnetKey{Generation: generation, Netns: cookie}
	key.Bits = uint32(32 + 64 + 128 - p.Addr().BitLen() + p.Bits())
	key.Address.Word = words(p.Addr())
	return key
}

// words is a struct address of bpf/redirect.c.
func words(a netip.Addr) (w [4]uint32) {
	b := a.As16()
	for i := range w {
		w[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	return w
}

// restore has count again what enter returned.
func (t *tables) restore(cookie uint64, before *kernelNamespace) error {
	if before == nil {
		return t.forget(func(c uint64, _ uint32) bool { return c == cookie })
	}
	if err := t.namespaces.Put(cookie, before); err != nil {
		return err
	}
	return t.forget(func(c uint64, generation uint32) bool { return c == cookie && generation != before.Generation })
}

// forget deletes the entries that which picks; a namespace's own goes with the
// generation that counts.
func (t *tables) forget(which func(cookie uint64, generation uint32) bool) error {
	return errors.Join(
		forgetKeys[uint64, kernelNamespace](t.namespaces, func(k uint64, v kernelNamespace) bool { return which(k, v.Generation) }),
		forgetKeys[kernelPortKey, uint8](t.ports, func(k kernelPortKey, _ uint8) bool { return which(k.Netns, k.Generation) }),
		forgetKeys[kernelSubnetKey, uint8](t.subnets, func(k kernelSubnetKey, _ uint8) bool { return which(k.Netns, k.Generation) }),
	)
}

// forgetKeys works on a map that nobody changes meanwhile.
func forgetKeys[K, V any](m *ebpf.Map, which func(K, V) bool) error {
	var keys []K
	err := eachEntry(m, func(key K, value V) {
		if which(key, value) {
			keys = append(keys, key)
		}
	})
	errs := []error{err}
	for _, k := range keys {
		if err := m.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
