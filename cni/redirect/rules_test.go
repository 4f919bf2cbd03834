package redirect

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/tulle-mesh/tulle/mesh"
)

func prefixes(texts ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, text := range texts {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

// everything sets all there is to set.
var everything = Rules{
	OutboundPort: 15001,
	InboundPort:  15006,
	ProxyUID:     1337,
	SkipInbound:  []int{22, 9090},
	SkipOutbound: []int{25, 65535},
	SkipSubnets:  prefixes("10.0.0.0/9", "192.0.2.7/32", "fd00:a::/33", "2001:db8::7/128"),
}

func TestValidate(t *testing.T) {
	for name, tc := range map[string]struct {
		rules Rules
		want  []string // parts of the error; none: valid
	}{
		"zero":                   {Rules{}, nil},
		"everything":             {everything, nil},
		"admin port asked for":   {Rules{SkipInbound: []int{mesh.AdminPort}}, nil},
		"subnets may overlap":    {Rules{SkipSubnets: prefixes("10.0.0.0/8", "10.1.0.0/16")}, nil},
		"same port both ways":    {Rules{SkipInbound: []int{53}, SkipOutbound: []int{53}}, nil},
		"port too high":          {Rules{OutboundPort: 65536}, []string{"outbound port 65536: must be 1 to 65535"}},
		"port negative":          {Rules{InboundPort: -1}, []string{"inbound port -1: must be 1 to 65535"}},
		"port is admin":          {Rules{OutboundPort: 4191}, []string{"outbound port 4191: is the proxy's admin port"}},
		"ports equal":            {Rules{OutboundPort: 7, InboundPort: 7}, []string{"both are 7"}},
		"port equal to default":  {Rules{OutboundPort: mesh.InboundPort}, []string{"both are 4143"}},
		"uid negative":           {Rules{ProxyUID: -1}, []string{"proxy uid -1: must be"}},
		"uid is nobody at all":   {Rules{ProxyUID: 1<<32 - 1}, []string{"proxy uid 4294967295: must be"}},
		"skip port zero":         {Rules{SkipInbound: []int{0}}, []string{"skip inbound port 0: must be 1 to 65535"}},
		"skip port twice":        {Rules{SkipOutbound: []int{25, 80, 25}}, []string{"skip outbound port 25: is listed twice"}},
		"skip the proxy's own":   {Rules{SkipInbound: []int{4140}}, []string{"skip inbound port 4140: is the proxy's own"}},
		"subnet without address": {Rules{SkipSubnets: []netip.Prefix{{}}}, []string{"one has no address"}},
		"subnet twice":           {Rules{SkipSubnets: prefixes("10.0.0.0/8", "10.0.0.0/8")}, []string{"10.0.0.0/8: is listed twice"}},
		"subnet with host bits":  {Rules{SkipSubnets: prefixes("10.1.0.0/8")}, []string{"write 10.0.0.0/8"}},
		"subnet mapped":          {Rules{SkipSubnets: prefixes("::ffff:10.0.0.0/104")}, []string{"write the IPv4 subnet"}},
		"subnet of all":          {Rules{SkipSubnets: prefixes("0.0.0.0/0", "::/0")}, []string{"0.0.0.0/0: covers every address", "::/0: covers every address"}},
		"everything that is wrong": {Rules{OutboundPort: -1, ProxyUID: -2, SkipInbound: []int{-3}, SkipOutbound: []int{70000}},
			[]string{"-1", "-2", "-3", "70000"}},
	} {
		t.Run(name, func(t *testing.T) {
			err := tc.rules.Validate()
			if (err == nil) != (len(tc.want) == 0) {
				t.Fatalf("got %v, want %q", err, tc.want)
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got %q, want %q in it", err, want)
				}
			}
		})
	}
}

func TestDefaultsLeaveTheCallersListsAlone(t *testing.T) {
	ports := append(make([]int, 0, 8), 22, 23)
	full := Rules{SkipInbound: ports}.withDefaults()
	if want := []int{mesh.AdminPort, 22, 23}; !slices.Equal(full.SkipInbound, want) {
		t.Errorf("got %v, want %v", full.SkipInbound, want)
	}
	if !slices.Equal(ports, []int{22, 23}) || ports[:3][2] != 0 {
		t.Errorf("the caller's list became %v", ports[:3])
	}
	if full.OutboundPort != mesh.OutboundPort || full.InboundPort != mesh.InboundPort || full.ProxyUID != mesh.ProxyUID {
		t.Errorf("got %+v", full)
	}
}
