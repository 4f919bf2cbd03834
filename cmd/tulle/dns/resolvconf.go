package dns

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// ResolvConf is what we need of a resolv.conf(5).
type ResolvConf struct {
	Nameservers []netip.Addr
	Search      []string
	Options     []string
}

// ParseResolvConf reads the text of a resolv.conf. Lines that it does not
// understand are passed over, as the C library does.
func ParseResolvConf(text string) ResolvConf {
	var c ResolvConf
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			if addr, err := netip.ParseAddr(fields[1]); err == nil {
				c.Nameservers = append(c.Nameservers, addr)
			}
		case "search", "domain":
			c.Search = fields[1:] // the last one wins
		case "options":
			c.Options = append(c.Options, fields[1:]...)
		}
	}
	return c
}

// ForWorkload returns the resolv.conf that a workload sees: the mesh's servers
// only, the mesh's domain searched before the host's own.
func (c ResolvConf) ForWorkload(servers []netip.Addr, domain string) string {
	var b strings.Builder
	for _, s := range servers {
		_, _ = fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	search := []string{domain}
	for _, s := range c.Search {
		if s != "." && !slices.Contains(search, s) {
			search = append(search, s)
		}
	}
	_, _ = fmt.Fprintf(&b, "search %s\n", strings.Join(search, " "))
	// The rest of the host's options (rotate, timeout, …) is about its own servers.
	for _, o := range c.Options {
		if strings.HasPrefix(o, "ndots:") {
			_, _ = fmt.Fprintf(&b, "options %s\n", o)
		}
	}
	return b.String()
}
