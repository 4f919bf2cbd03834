package proxy

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
)

// fakePolicies is a control plane that says what is put into said; "" ends the stream.
type fakePolicies struct {
	tullev1.DiscoveryClient
	said chan string
}

func (f *fakePolicies) WatchPolicy(ctx context.Context, _ *tullev1.WatchPolicyRequest, _ ...grpc.CallOption) (grpc.ServerStreamingClient[tullev1.Policy], error) {
	return &fakePolicyStream{ctx: ctx, said: f.said}, nil
}

type fakePolicyStream struct {
	grpc.ClientStream
	ctx  context.Context
	said chan string
}

func (s *fakePolicyStream) Recv() (*tullev1.Policy, error) {
	select {
	case word := <-s.said:
		if word == "" {
			return nil, io.EOF
		}
		return &tullev1.Policy{Strict: word == "strict"}, nil
	case <-s.ctx.Done():
		return nil, errors.New("over")
	}
}

// Before the first word, and where none comes, what the proxy was started with
// holds; a stream that breaks changes nothing.
func TestFollowPolicy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &Proxy{config: Config{Strict: true, AskPolicy: true}, log: slog.New(slog.DiscardHandler)}
		f := &fakePolicies{said: make(chan string)}
		ctx, cancel := context.WithCancel(t.Context())
		known := make(chan struct{})
		var running sync.WaitGroup
		running.Go(func() { p.followPolicy(ctx, f, sync.OnceFunc(func() { close(known) })) })
		awaitPolicy(ctx, known) // in vain
		if !p.strict() {
			t.Error("open before anybody said so")
		}
		for _, word := range []string{"permissive", "strict", "", "permissive"} {
			f.said <- word
			synctest.Wait()
			if word != "" && p.strict() != (word == "strict") {
				t.Errorf("after %s: %v", word, p.strict())
			}
		}
		awaitPolicy(ctx, known)
		cancel()
		running.Wait()
		if p.strict() {
			t.Error("the last word is forgotten")
		}
	})
}
