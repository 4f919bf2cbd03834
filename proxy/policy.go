package proxy

import (
	"context"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
)

const (
	// firstPolicy bounds how long the start waits for the policy: what comes
	// meanwhile waits with it. Without an answer the strict one is right.
	firstPolicy      = 3 * time.Second
	firstPolicyRetry = 100 * time.Millisecond
	longPolicyRetry  = 5 * time.Second
)

// strict tells whether clients without an identity are refused now.
func (p *Proxy) strict() bool {
	if policy := p.policy.Load(); policy != nil {
		return policy.GetStrict()
	}
	return p.config.Strict
}

// followPolicy keeps the policy at what the control plane says until ctx ends,
// and calls first once with the first answer. Without the control plane the last
// answer stays.
func (p *Proxy) followPolicy(ctx context.Context, client tullev1.DiscoveryClient, first func()) {
	for wait := firstPolicyRetry; ctx.Err() == nil; wait = min(2*wait, longPolicyRetry) {
		answered, err := p.watchPolicy(ctx, client, first)
		if answered {
			wait = firstPolicyRetry
		}
		p.log.Debug("watch of the policy ended; keeping the last one", "error", err)
		select {
		case <-time.After(wait/2 + rand.N(wait)):
		case <-ctx.Done():
		}
	}
}

func (p *Proxy) watchPolicy(ctx context.Context, client tullev1.DiscoveryClient, first func()) (answered bool, err error) {
	stream, err := client.WatchPolicy(ctx, &tullev1.WatchPolicyRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return false, err
	}
	for {
		policy, err := stream.Recv()
		if err != nil {
			return answered, err
		}
		p.setPolicy(policy)
		answered = true
		first()
	}
}

// setPolicy makes policy hold, also for connections that are open.
func (p *Proxy) setPolicy(policy *tullev1.Policy) {
	old, ended := p.policy.Swap(policy), 0
	if policy.GetStrict() {
		ended = p.conns.shutOut()
	}
	if old == nil || old.GetStrict() != policy.GetStrict() {
		p.log.Info("policy", "strict", policy.GetStrict(), "connections ended", ended)
	}
}

// admits reports whether a client without an identity may go on. Its connection is
// noted before policy is asked: should that change meanwhile, either is seen.
func (p *Proxy) admits(client *tracked) bool {
	client.invite(true)
	return !p.strict()
}

// awaitPolicy waits until first is closed, for a while.
func awaitPolicy(ctx context.Context, first <-chan struct{}) {
	patience := time.NewTimer(firstPolicy)
	defer patience.Stop()
	select {
	case <-first:
	case <-patience.C:
	case <-ctx.Done():
	}
}
