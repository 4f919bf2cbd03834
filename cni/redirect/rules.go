package redirect

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"

	"github.com/tulle-mesh/tulle/mesh"
)

// Rules says which TCP connections of a workload go to its proxy. The zero
// value sends all of them, to the mesh's usual ports.
type Rules struct {
	// OutboundPort is where the proxy takes the connections that the workload
	// opens, on 127.0.0.1 and [::1], with eBPF also on 127.0.0.2 to 127.0.0.64.
	// Zero means mesh.OutboundPort.
	OutboundPort int

	// InboundPort is where the proxy takes the connections that others open to
	// the workload, on every address. Zero means mesh.InboundPort.
	InboundPort int

	// ProxyUID is the user whose sockets are left alone, as numbered in the
	// user namespace that owns the network namespace; eBPF sees the numbers of
	// the machine. Zero means mesh.ProxyUID: root is never exempt.
	ProxyUID int

	// SkipInbound are ports of the workload that others reach directly.
	// mesh.AdminPort is always one of them.
	SkipInbound []int

	// SkipOutbound are ports that the workload reaches directly, at whatever
	// address.
	SkipOutbound []int

	// SkipSubnets are addresses that the workload reaches directly and that
	// reach the workload directly. They may overlap.
	SkipSubnets []netip.Prefix
}

// Validate reports everything that is wrong with the rules.
func (r Rules) Validate() error {
	var errs []error
	refuse := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }

	for _, p := range []struct {
		what string
		port int
	}{{"outbound port", r.OutboundPort}, {"inbound port", r.InboundPort}} {
		switch {
		case p.port != 0 && !isPort(p.port):
			refuse("%s %d: must be 1 to 65535", p.what, p.port)
		case p.port == mesh.AdminPort:
			refuse("%s %d: is the proxy's admin port", p.what, p.port)
		}
	}
	full := r.withDefaults()
	if full.OutboundPort == full.InboundPort {
		refuse("outbound and inbound port: both are %d", full.OutboundPort)
	}
	// 2^32-1 is how the kernel says "no user".
	if r.ProxyUID < 0 || r.ProxyUID >= math.MaxUint32 {
		refuse("proxy uid %d: must be 1 to %d", r.ProxyUID, uint32(math.MaxUint32-1))
	}
	errs = append(errs, checkPorts("skip inbound", r.SkipInbound)...)
	errs = append(errs, checkPorts("skip outbound", r.SkipOutbound)...)
	for _, port := range []int{full.OutboundPort, full.InboundPort} {
		if slices.Contains(r.SkipInbound, port) {
			refuse("skip inbound port %d: is the proxy's own, which nobody may reach directly", port)
		}
	}
	errs = append(errs, checkSubnets(r.SkipSubnets)...)
	return errors.Join(errs...)
}

func isPort(p int) bool { return p >= 1 && p <= math.MaxUint16 }

func checkPorts(what string, ports []int) []error {
	var errs []error
	for i, port := range ports {
		switch {
		case !isPort(port):
			errs = append(errs, fmt.Errorf("%s port %d: must be 1 to 65535", what, port))
		case slices.Contains(ports[:i], port):
			errs = append(errs, fmt.Errorf("%s port %d: is listed twice", what, port))
		}
	}
	return errs
}

func checkSubnets(subnets []netip.Prefix) []error {
	var errs []error
	for i, subnet := range subnets {
		switch {
		case !subnet.IsValid():
			errs = append(errs, errors.New("skip subnet: one has no address"))
		case subnet.Addr().Is4In6():
			errs = append(errs, fmt.Errorf("skip subnet %s: write the IPv4 subnet instead, that is what is on the wire", subnet))
		case subnet.Bits() == 0:
			errs = append(errs, fmt.Errorf("skip subnet %s: covers every address; run the workload outside the mesh instead", subnet))
		case subnet != subnet.Masked():
			errs = append(errs, fmt.Errorf("skip subnet %s: has bits beyond its length; write %s", subnet, subnet.Masked()))
		case slices.Contains(subnets[:i], subnet):
			errs = append(errs, fmt.Errorf("skip subnet %s: is listed twice", subnet))
		}
	}
	return errs
}

// withDefaults returns the rules with every zero value filled in, and with
// lists of their own.
func (r Rules) withDefaults() Rules {
	if r.OutboundPort == 0 {
		r.OutboundPort = mesh.OutboundPort
	}
	if r.InboundPort == 0 {
		r.InboundPort = mesh.InboundPort
	}
	if r.ProxyUID == 0 {
		r.ProxyUID = mesh.ProxyUID
	}
	if !slices.Contains(r.SkipInbound, mesh.AdminPort) {
		r.SkipInbound = append([]int{mesh.AdminPort}, r.SkipInbound...)
	}
	return r
}
