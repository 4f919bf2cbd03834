package identity

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"syscall"
	"time"

	"google.golang.org/grpc/credentials"
)

// A refusal is worth a log line, and a log that strangers fill at will is worth
// nothing: the lines about one address are limited.
const (
	refusalRate  = 1.0 / 10 // per second
	refusalBurst = 20
)

// refusalLog is where refusals are logged.
type refusalLog struct {
	log   *slog.Logger
	limit *limiter[netip.Addr]
}

func newRefusalLog(log *slog.Logger) *refusalLog {
	return &refusalLog{log: log, limit: newLimiter[netip.Addr](refusalRate, refusalBurst, maxBuckets)}
}

func (r *refusalLog) warn(from netip.Addr, message string, args ...any) {
	if r.limit.allow(from, time.Now()) {
		r.log.Warn(message, append(args, "from", from)...)
	}
}

// loggedHandshakes logs the TLS handshakes that fail, which grpc keeps to itself.
type loggedHandshakes struct {
	credentials.TransportCredentials
	refusals *refusalLog
}

// ServerHandshake runs the handshake of the embedded credentials.
func (l loggedHandshakes) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := l.TransportCredentials.ServerHandshake(raw)
	// A connection that says nothing is a port check, one that is reset is of a
	// proxy that was told to end meanwhile: nobody was refused.
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		l.refusals.warn(addrOf(raw.RemoteAddr()), "refused a connection", "reason", err)
	}
	return conn, info, err
}

// Clone returns a copy that logs to the same place.
func (l loggedHandshakes) Clone() credentials.TransportCredentials {
	return loggedHandshakes{TransportCredentials: l.TransportCredentials.Clone(), refusals: l.refusals}
}

// addrOf returns the IP address in a, the zero Addr if there is none.
func addrOf(a net.Addr) netip.Addr {
	if a == nil {
		return netip.Addr{}
	}
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap().WithZone("")
}
