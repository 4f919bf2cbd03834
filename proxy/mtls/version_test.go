package mtls

import (
	"testing"

	"github.com/tulle-mesh/tulle/mesh"
)

// Proxies of two versions agree on the newest protocol that both know.
func TestVersions(t *testing.T) {
	a := newCA(t)
	for _, tt := range []struct {
		name          string
		offers, knows []string // nil: what this version does
		want          string
	}{
		{"http, both of this version", []string{mesh.ALPNHTTP1, mesh.ALPNHTTP1First}, nil, mesh.ALPNHTTP1},
		{"http, an older client", []string{mesh.ALPNHTTP1First}, nil, mesh.ALPNHTTP1First},
		{"http, an older server", []string{mesh.ALPNHTTP1, mesh.ALPNHTTP1First}, []string{mesh.ALPNHTTP1First, mesh.ALPNHTTP2, mesh.ALPNTCPFirst}, mesh.ALPNHTTP1First},
		{"http, a newer client", []string{"tulle-http1/3", mesh.ALPNHTTP1}, nil, mesh.ALPNHTTP1},
		{"http, a newer server", []string{mesh.ALPNHTTP1, mesh.ALPNHTTP1First}, []string{"tulle-http1/3", mesh.ALPNHTTP1}, mesh.ALPNHTTP1},
		{"tcp, both of this version", []string{mesh.ALPNTCP, mesh.ALPNTCPFirst}, nil, mesh.ALPNTCP},
		{"tcp, an older client", []string{mesh.ALPNTCPFirst}, nil, mesh.ALPNTCPFirst},
		{"tcp, an older server", []string{mesh.ALPNTCP, mesh.ALPNTCPFirst}, []string{mesh.ALPNHTTP1First, mesh.ALPNHTTP2, mesh.ALPNTCPFirst}, mesh.ALPNTCPFirst},
		{"tcp, a newer client", []string{"tulle-tcp/3", mesh.ALPNTCP}, nil, mesh.ALPNTCP},
	} {
		server := a.credentials(t, "server").Server()
		if tt.knows != nil {
			server.NextProtos = tt.knows // before anybody uses it
		}
		s := shake(t, a.credentials(t, "client").Client(testID("server"), tt.offers...), server)
		if got := s.clientSaw.NegotiatedProtocol; !s.ok() || got != tt.want || s.serverSaw.NegotiatedProtocol != tt.want {
			t.Errorf("%s: %q, should be %q; %v, %v", tt.name, got, tt.want, s.client, s.server)
		}
	}
}
