package mesh

import (
	"net/netip"
	"strings"
)

// ParseNetworks reads a list of prefixes as flags have it, separated by commas:
// "10.84.0.0/16,fd84::/64". An empty list is none.
func ParseNetworks(list string) ([]netip.Prefix, error) {
	var networks []netip.Prefix
	for s := range strings.SplitSeq(list, ",") {
		if s == "" {
			continue
		}
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, err
		}
		networks = append(networks, p.Masked())
	}
	return networks, nil
}
