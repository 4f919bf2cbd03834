package mesh

import (
	"net/netip"
	"time"
)

// Direction tells which side of a workload's proxy saw an exchange.
type Direction uint8

// Directions.
const (
	Outbound Direction = iota // the workload called somebody
	Inbound                   // somebody called the workload
)

// String returns "outbound" or "inbound".
func (d Direction) String() string {
	if d == Inbound {
		return "inbound"
	}
	return "outbound"
}

// Protocol is what the proxy found a connection to speak.
type Protocol uint8

// Protocols.
const (
	Unknown Protocol = iota // not yet known
	HTTP1
	HTTP2
	TCP // opaque bytes
	TLS // the application's own TLS, passed through
)

var protocolNames = [...]string{"unknown", "http/1", "http/2", "tcp", "tls"}

// String returns the name used in metrics and in the API.
func (p Protocol) String() string {
	if int(p) < len(protocolNames) {
		return protocolNames[p]
	}
	return protocolNames[Unknown]
}

// Security tells how an exchange was protected between the two workloads; of one
// that no connection came to be for, how it was to be.
type Security uint8

// Securities.
const (
	Plaintext Security = iota // unprotected, or protected by the application only
	MutualTLS                 // by the mesh; both identities are known
	Local                     // never left the workload's own network namespace
)

var securityNames = [...]string{"plaintext", "mtls", "local"}

// String returns the name used in metrics and in the API.
func (s Security) String() string {
	if int(s) < len(securityNames) {
		return securityNames[s]
	}
	return securityNames[Plaintext]
}

// Outcome says how an exchange ended.
type Outcome uint8

// Outcomes. Anything but Success counts against the success rate.
const (
	Success     Outcome = iota
	AppFailure          // the application answered with a failure (HTTP 5xx, or see GRPCOutcome)
	NoEndpoint          // nobody is there to answer
	ConnectFail         // the peer refused or could not be reached
	TLSFail             // the peer could not prove who it is
	Denied              // policy does not allow it
	BadMessage          // the message was not what its protocol allows
	Reset               // one side tore the connection down half way
	TimedOut
)

var outcomeNames = [...]string{"success", "app-failure", "no-endpoint", "connect-failed", "tls-failed", "denied", "bad-message", "reset", "timed-out"}

// String returns the name used in metrics and in the API.
func (o Outcome) String() string {
	if int(o) < len(outcomeNames) {
		return outcomeNames[o]
	}
	return outcomeNames[AppFailure]
}

// GRPCOutcome judges a gRPC status: a failure is one that is the server's fault,
// as 5xx is in HTTP, which leaves out what the caller asked for or may not do.
func GRPCOutcome(status int) Outcome {
	switch status {
	case 2, 4, 12, 13, 14, 15: // UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS
		return AppFailure
	}
	return Success
}

// Peer is one end of an exchange as far as the proxy knows it.
type Peer struct {
	ID       ID             // zero when the peer did not prove one
	Addr     netip.AddrPort // its address; of an outbound exchange, the endpoint's
	Service  string         // the service that was asked for; "" for a caller
	Workload string         // the replica, for instance "web-2"; "" if unknown
}

// Exchange is the one record of a request (HTTP) or a connection (anything
// else). Metrics, tap, access log, dashboard and CLI are all made from it, so
// they cannot disagree.
type Exchange struct {
	Direction Direction
	Protocol  Protocol
	Security  Security
	Outcome   Outcome
	Client    Peer
	Server    Peer

	Start     time.Time
	FirstByte time.Duration // from Start to the first byte of the answer; 0 if there was none
	Duration  time.Duration // from Start to the last byte

	BytesSent     uint64 // towards the server
	BytesReceived uint64 // from the server

	Status int // HTTP status; 0 if there was none

	// Filled only while somebody taps, since they cost an allocation each.
	Method string
	Host   string
	Path   string
}
