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
	longWait  = 30 * time.Second
)

// controlBackoff is how the connection to the control plane is retried: soon
// enough that its restart goes unnoticed, spread so that it is not run over.
var controlBackoff = grpcbackoff.Config{BaseDelay: firstWait, Multiplier: 1.6, Jitter: 0.4, MaxDelay: 5 * time.Second}

// backoff doubles a jittered wait from firstWait to longWait.
type backoff struct{ next time.Duration }

func newBackoff() *backoff { return &backoff{next: firstWait} }

func (b *backoff) reset() { b.next = firstWait }

func (b *backoff) sleep(ctx context.Context) error {
	d := b.next/2 + mathrand.N(b.next)
	b.next = min(2*b.next, longWait)
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
