package mtls

import (
	"bytes"
	"context"
	mathrand "math/rand/v2"
	"slices"
	"time"

	grpcbackoff "google.golang.org/grpc/backoff"
)

const (
	firstWait = 200 * time.Millisecond
	longWait  = 30 * time.Second // between attempts to renew, while there is a certificate
	idleWait  = 5 * time.Second  // between attempts to get the first one: traffic waits
)

// controlBackoff is how the connection to the control plane is retried: soon
// enough that its restart goes unnoticed, spread so that it is not run over.
var controlBackoff = grpcbackoff.Config{BaseDelay: firstWait, Multiplier: 1.6, Jitter: 0.4, MaxDelay: 2 * time.Second}

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
