package mtls

import (
	"bytes"
	"context"
	mathrand "math/rand/v2"
	"net"
	"slices"
	"time"

	grpcbackoff "google.golang.org/grpc/backoff"
)

const (
	firstWait = 200 * time.Millisecond
	longWait  = 30 * time.Second // between attempts to renew, while there is a certificate
	idleWait  = 5 * time.Second  // between attempts to get the first one: traffic waits
	// connectWait bounds the TCP handshake with one address of the control plane.
	// Where a node still leads its service's address to a replica that is gone,
	// all that is sent again goes there, too: only a new connection gets elsewhere.
	connectWait = 1500 * time.Millisecond
)

// controlBackoff is how the connection to the control plane is retried: soon
// enough that its restart goes unnoticed, spread so that it is not run over.
var controlBackoff = grpcbackoff.Config{BaseDelay: firstWait, Multiplier: 1.6, Jitter: 0.4, MaxDelay: 2 * time.Second}

// connectTCP connects to the first of a name's addresses that answers in time.
func connectTCP(ctx context.Context, addr string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	hosts, err := net.DefaultResolver.LookupHost(ctx, host)
	if err != nil {
		return nil, err
	}
	dialer := net.Dialer{Timeout: connectWait}
	for _, host := range hosts {
		var conn net.Conn
		if conn, err = dialer.DialContext(ctx, "tcp", net.JoinHostPort(host, port)); err == nil {
			return conn, nil
		}
	}
	return nil, err
}

// backoff doubles a jittered wait from firstWait to longest.
type backoff struct{ next, longest time.Duration }

func newBackoff(longest time.Duration) *backoff { return &backoff{next: firstWait, longest: longest} }

func (b *backoff) reset() { b.next = firstWait }

func (b *backoff) sleep(ctx context.Context) error {
	d := b.next/2 + mathrand.N(b.next)
	b.next = min(2*b.next, b.longest)
	return sleep(ctx, d)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func sameRoots(a, b [][]byte) bool { return slices.EqualFunc(a, b, bytes.Equal) }
