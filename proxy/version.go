package proxy

import (
	"github.com/tulle-mesh/tulle/mesh"
	"github.com/tulle-mesh/tulle/proxy/mtls"
	"github.com/tulle-mesh/tulle/proxy/mux"
	"github.com/tulle-mesh/tulle/proxy/stream"
)

// What the other proxy does not know yet, because it is of an older version, is
// not used with it. See mesh.ALPNHTTP1First.

// growth returns what windows of sessions over conn may grow by; nil: nothing.
func (p *Proxy) growth(conn *mtls.Conn) *mux.Growth {
	if conn.Protocol == mesh.ALPNHTTP1First {
		return nil
	}
	return p.windows
}

// newStream returns a stream.Conn whose frames are such as the peer takes.
func newStream(conn *mtls.Conn, kill func()) *stream.Conn {
	c := stream.New(conn, kill)
	if conn.Protocol == mesh.ALPNTCPFirst {
		c.Limit(stream.FirstMaxPayload)
	}
	return c
}
