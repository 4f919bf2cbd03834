package proxy

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"time"

	"google.golang.org/grpc"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
)

const (
	firstWatchRetry = 100 * time.Millisecond
	// longestWatchWait, with its jitter, is less than firstAnswer: a connection
	// that comes as the control plane does must not be refused.
	longestWatchWait = 3 * time.Second
)

// run keeps what is known at what the control plane says until ctx ends. All
// addresses share one stream: a stream of its own for each would cost the proxy
// 15 KB. While nothing is known there is none.
func (r *directory) run(ctx context.Context) {
	defer r.forgetAll()
	for wait := firstWatchRetry; ; {
		if !r.awaitSome(ctx) {
			return
		}
		answered, err := r.watch(ctx)
		if err == nil {
			continue
		}
		if answered {
			wait = firstWatchRetry
		}
		r.log.Debug("watch ended; keeping the last answers", "error", err)
		select {
		case <-time.After(wait/2 + rand.N(wait)):
		case <-ctx.Done():
			return
		}
		wait = min(2*wait, longestWatchWait)
	}
}

// awaitSome waits until there is something to watch; false: ctx ended first.
func (r *directory) awaitSome(ctx context.Context) bool {
	for len(r.all()) == 0 {
		select {
		case <-r.changed:
		case <-ctx.Done():
			return false
		}
	}
	return ctx.Err() == nil
}

// watch asks for all that is known, on a new stream, and follows it. It returns
// nil once there is nothing left to watch, and else why the stream ended.
func (r *directory) watch(ctx context.Context) (answered bool, err error) {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	stream, err := r.client.Watch(ctx, grpc.WaitForReady(true))
	if err != nil {
		return false, err
	}
	received := make(chan struct{})
	go func() {
		defer close(received)
		end(r.receive(stream, &answered))
	}()
	err = r.ask(ctx, stream)
	end(err)
	<-received
	return answered, err
}

type watchStream = grpc.BidiStreamingClient[tullev1.WatchRequest, tullev1.Destination]

// ask tells the control plane what to send, and whenever that changes. It
// returns nil once that is nothing.
func (r *directory) ask(ctx context.Context, stream watchStream) error {
	for asked := map[netip.AddrPort]*destination{}; ; {
		if request := r.difference(asked); request != nil {
			if stream.Send(request) != nil {
				<-ctx.Done() // receive hears why
			}
		}
		if len(asked) == 0 {
			return nil
		}
		select {
		case <-r.changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// difference returns what turns asked into what is known, and does so; nil if
// they are the same. An address that was forgotten and came back is asked for
// again: its new destination has no answer yet.
func (r *directory) difference(asked map[netip.AddrPort]*destination) *tullev1.WatchRequest {
	r.mu.Lock()
	defer r.mu.Unlock()
	var request tullev1.WatchRequest
	for addr, d := range r.known {
		if asked[addr] != d {
			asked[addr] = d
			request.Add = append(request.Add, addr.String())
		}
	}
	for addr := range asked {
		if r.known[addr] == nil {
			delete(asked, addr)
			request.Drop = append(request.Drop, addr.String())
		}
	}
	if len(request.Add) == 0 && len(request.Drop) == 0 {
		return nil
	}
	return &request
}

// receive takes answers over until the stream ends, and returns why.
func (r *directory) receive(stream watchStream, answered *bool) error {
	for {
		message, err := stream.Recv()
		if err != nil {
			return err
		}
		*answered = true
		addr, err := netip.ParseAddrPort(message.GetAddress())
		if err != nil {
			return err
		}
		if d := r.at(addr); d != nil {
			r.adopt(d, message)
			if r.at(addr) != d { // forgotten meanwhile: what adopt brought is nobody's
				d.set.Close()
			}
		}
	}
}

// at returns what is known of addr, or nil.
func (r *directory) at(addr netip.AddrPort) *destination {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.known[addr]
}

func (r *directory) forgetAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, d := range r.known {
		r.forgetLocked(d)
	}
}
