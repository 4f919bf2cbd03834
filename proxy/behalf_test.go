package proxy

import (
	"net/netip"
	"testing"

	"github.com/tulle-mesh/tulle/mesh"
)

func TestVouched(t *testing.T) {
	for name, tc := range map[string]struct {
		security  mesh.Security
		hop, said string
		want      string
	}{
		"outside the mesh":              {mesh.Plaintext, "198.51.100.7:55555", "198.51.100.7:55555", "198.51.100.7:55555"},
		"a stream's client":             {mesh.MutualTLS, "10.84.0.3:41000", "10.84.0.3:55555", "10.84.0.3:55555"},
		"of many clients":               {mesh.MutualTLS, "10.84.0.3:41000", "10.84.0.3:41000", "10.84.0.3:0"},
		"who names somebody else":       {mesh.MutualTLS, "10.84.0.3:41000", "10.84.0.9:55555", "10.84.0.3:0"},
		"who names the other family":    {mesh.MutualTLS, "[fd84::3]:41000", "10.84.0.3:55555", "[fd84::3]:0"},
		"who names localhost to get in": {mesh.MutualTLS, "10.84.0.3:41000", "127.0.0.1:55555", "10.84.0.3:0"},
	} {
		t.Run(name, func(t *testing.T) {
			in := &inbound{security: tc.security, client: mesh.Peer{Addr: netip.MustParseAddrPort(tc.hop)}}
			if got := in.vouched(netip.MustParseAddrPort(tc.said)); got.String() != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
		})
	}
}
