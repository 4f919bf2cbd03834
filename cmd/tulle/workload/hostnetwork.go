package workload

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/tulle-mesh/tulle/cmd/tulle/network"
	"github.com/tulle-mesh/tulle/cni/redirect"
	"github.com/tulle-mesh/tulle/mesh"
)

// A replica in the host's network has no namespace and no veth pair. It is told from
// the host's other processes by its cgroup and by its ports, and has its addresses in
// the mesh like every replica: the host gets them.

// checkHostNetwork reports what cannot be had in the host's network.
func (c *Config) checkHostNetwork() error {
	var errs []error
	if c.Replicas > 1 && len(c.Ports) > 0 {
		errs = append(errs, fmt.Errorf("--replicas %d: all would listen on port %d of this host; run one, or leave --network host out", c.Replicas, c.Ports[0]))
	}
	for _, port := range c.Ports {
		if slices.Contains([]uint16{mesh.ControlPort, dnsPort}, port) {
			errs = append(errs, fmt.Errorf("port %d: is the mesh's own on this host; choose another, or leave --network host out", port))
		}
	}
	return errors.Join(errs...)
}

const dnsPort = 53

// connectHost gives the host the replica's addresses.
func (r *replica) connectHost() error {
	var err error
	if r.ns, err = network.Here(); err != nil {
		return err
	}
	return network.AddMember(r.wire.Bridge, r.addresses()...)
}

func (r *replica) addresses() []netip.Addr {
	return []netip.Addr{r.wire.Address4.Addr(), r.wire.Address6.Addr()}
}

// redirectHost makes the cgroup that the command will start in, and the kernel send
// what concerns it to its proxy.
func (r *replica) redirectHost() error {
	since, _ := StartTime(os.Getpid())
	r.group = CgroupFor(r.name(), os.Getpid(), since)
	if r.group.Dir == "" {
		return errors.New("--network host needs cgroup2; type: mount -t cgroup2 none /sys/fs/cgroup/unified")
	}
	var err error
	if r.entered, err = r.group.open(); err != nil {
		return fmt.Errorf("--network host needs a cgroup: %w", err)
	}
	m := redirect.Member{Cgroup: r.group.Dir, Address4: r.wire.Address4.Addr(), Address6: r.wire.Address6.Addr()}
	for _, text := range r.lease.Grant.Networks {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return err
		}
		m.Networks = append(m.Networks, p)
	}
	for _, port := range r.config.Ports {
		m.Ports = append(m.Ports, int(port))
	}
	r.leave, err = redirect.Node{}.Enter(m)
	return err
}

// proxyAddresses are the proxy's flags.
func (r *replica) proxyAddresses() []string {
	var flags []string
	for _, a := range r.addresses() {
		if a.IsValid() {
			flags = append(flags, "--address", a.String())
		}
	}
	return flags
}

// leaveHost takes away what connectHost and redirectHost have made.
func (r *replica) leaveHost() error {
	var errs []error
	if r.entered != nil { // the command was not started
		_ = r.entered.Close()
	}
	if r.leave != nil {
		errs = append(errs, r.leave())
	}
	if r.ns != nil {
		errs = append(errs, network.RemoveMember(r.wire.Bridge, r.addresses()...))
	}
	return errors.Join(errs...)
}

// standInOf is where names are answered while the daemon is away: in the host's
// network each replica has its own place for that.
func standInOf(address4 netip.Addr) netip.AddrPort {
	b := address4.As4()
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, b[2], b[3], 84}), dnsPort)
}
