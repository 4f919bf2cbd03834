package identity

import (
	"net"

	"google.golang.org/grpc/credentials"

	"github.com/tulle-mesh/tulle/mesh"
)

// replicasApart lets other replicas of the control plane have as many connections
// as they need: one passes on the streams of thousands of proxies, so a bound for
// one proxy's address is not for it. Who proves to be the control plane is no
// longer counted; until then, a connection is.
type replicasApart struct {
	credentials.TransportCredentials
	control mesh.ID
}

// ServerHandshake runs the handshake of the embedded credentials, which verify
// the certificate that the caller shows.
func (r replicasApart) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := r.TransportCredentials.ServerHandshake(raw)
	if bounded, ok := raw.(*boundedConn); ok && err == nil && r.isReplica(info) {
		bounded.leave()
	}
	return conn, info, err
}

func (r replicasApart) isReplica(info credentials.AuthInfo) bool {
	t, ok := info.(credentials.TLSInfo)
	if !ok || len(t.State.PeerCertificates) == 0 {
		return false
	}
	names := t.State.PeerCertificates[0].URIs
	return len(names) == 1 && names[0].String() == r.control.String()
}

// Clone returns a copy for the same control plane.
func (r replicasApart) Clone() credentials.TransportCredentials {
	return replicasApart{TransportCredentials: r.TransportCredentials.Clone(), control: r.control}
}
