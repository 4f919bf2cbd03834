package workload

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/tulle-mesh/tulle/mesh"
)

func TestHostNetworkIsChecked(t *testing.T) {
	for name, tc := range map[string]struct {
		replicas int
		ports    []uint16
		want     string // "": fine
	}{
		"one port":               {1, []uint16{8080, 8081}, ""},
		"replicas without ports": {3, nil, ""},
		"replicas with a port":   {2, []uint16{8080}, "all would listen on port 8080 of this host"},
		"the control plane's":    {1, []uint16{mesh.ControlPort}, "is the mesh's own on this host"},
		"the name server's":      {1, []uint16{8080, 53}, "port 53: is the mesh's own on this host"},
	} {
		t.Run(name, func(t *testing.T) {
			c := Config{Service: "web", Replicas: tc.replicas, Ports: tc.ports, HostNetwork: true, Command: []string{"true"}}
			err := c.Validate()
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
			c.HostNetwork = false
			if err := c.Validate(); err != nil {
				t.Errorf("in a network of its own: %v", err)
			}
		})
	}
}

// Each replica in the host's network answers names at a place of its own.
func TestStandInsInTheHostsNetworkAreApart(t *testing.T) {
	seen := map[netip.AddrPort]bool{standInAddr: true}
	for _, a := range []string{"10.84.0.2", "10.84.0.3", "10.84.1.2"} {
		at := standInOf(netip.MustParseAddr(a))
		if seen[at] || !at.Addr().IsLoopback() {
			t.Errorf("%s: %s", a, at)
		}
		seen[at] = true
	}
}
