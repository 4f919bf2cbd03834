package workload

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
)

// Waits between two attempts to reach the daemon again.
const (
	minRetry = 100 * time.Millisecond
	maxRetry = 500 * time.Millisecond
)

// Lease is a replica's place in the mesh. It is kept by a stream to the
// daemon; when that breaks, Run takes the same place up again.
type Lease struct {
	client   tullev1.HostClient
	register *tullev1.Register
	// Grant is what the daemon gave. It does not change when the lease is taken up again.
	Grant *tullev1.Lease
	// note is told, once each, that the daemon is away, back, or refuses, and
	// away whether it is.
	note func(format string, args ...any)
	away func(bool)

	stop   chan struct{} // closed when the daemon asks to stop
	tokens chan string

	mu       sync.Mutex
	stream   grpc.BidiStreamingClient[tullev1.JoinRequest, tullev1.JoinResponse] // nil: the daemon is away
	status   *tullev1.Status
	wanted   int // tokens asked for and not answered
	stopping bool
	leaving  bool
	ended    chan struct{} // closed when Run has returned
}

// Join asks the daemon for a place. Run must be called next, with the same ctx
// or one that ends before it.
func Join(ctx context.Context, client tullev1.HostClient, reg *tullev1.Register, note func(string, ...any), away func(bool)) (*Lease, error) {
	l := &Lease{
		client: client, register: proto.CloneOf(reg), note: note, away: away,
		stop: make(chan struct{}), tokens: make(chan string, 1), ended: make(chan struct{}), status: &tullev1.Status{},
	}
	stream, grant, err := l.open(ctx)
	if err != nil {
		return nil, err
	}
	l.stream, l.Grant = stream, grant
	l.register.Replica, l.register.Add = grant.Replica, false
	l.register.Address4, l.register.Address6 = grant.Address4, grant.Address6
	return l, nil
}

func (l *Lease) open(ctx context.Context) (grpc.BidiStreamingClient[tullev1.JoinRequest, tullev1.JoinResponse], *tullev1.Lease, error) {
	stream, err := l.client.Join(ctx)
	if err != nil {
		return nil, nil, err
	}
	err = stream.Send(&tullev1.JoinRequest{Message: &tullev1.JoinRequest_Register{Register: l.register}})
	if err != nil && !errors.Is(err, io.EOF) { // on EOF, Recv has the reason
		return nil, nil, err
	}
	m, err := stream.Recv()
	if err != nil {
		return nil, nil, err
	}
	grant := m.GetLease()
	if grant == nil {
		return nil, nil, fmt.Errorf("the daemon's first answer is no lease, but %v", m)
	}
	return stream, grant, nil
}

// Run keeps the lease until Leave is called or ctx ends.
func (l *Lease) Run(ctx context.Context) {
	defer close(l.ended)
	for ctx.Err() == nil {
		err := l.receive()
		l.mu.Lock()
		l.stream = nil
		leaving := l.leaving
		l.mu.Unlock()
		if leaving || ctx.Err() != nil {
			return
		}
		l.retry(ctx, err)
	}
}

// receive handles messages until the stream breaks.
func (l *Lease) receive() error {
	l.mu.Lock()
	stream := l.stream
	l.mu.Unlock()
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		switch {
		case m.GetToken() != "":
			l.mu.Lock()
			l.wanted = max(l.wanted-1, 0)
			l.mu.Unlock()
			select {
			case l.tokens <- m.GetToken():
			default: // whoever asked has gone; the token runs out by itself
			}
		case m.GetStop():
			l.mu.Lock()
			if !l.stopping {
				l.stopping = true
				close(l.stop)
			}
			l.mu.Unlock()
		}
	}
}

// retry takes the lease up again; it returns once that is done or ctx ended.
func (l *Lease) retry(ctx context.Context, cause error) {
	l.note("the mesh's daemon is away (%s); %s keeps running; bring it back with: tulle up", reason(cause), l.Grant.Replica)
	l.away(true)
	wait := minRetry
	refused := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = min(2*wait, maxRetry)
		stream, grant, err := l.open(ctx)
		switch {
		case err == nil && (grant.Address4 != l.Grant.Address4 || grant.Address6 != l.Grant.Address6):
			err = errors.New("the daemon has another network now")
			_ = stream.CloseSend()
		case err == nil:
			l.resume(stream)
			l.away(false)
			l.note("the mesh's daemon is back; %s has joined again", l.Grant.Replica)
			return
		}
		if status.Code(err) != codes.Unavailable && ctx.Err() == nil && reason(err) != refused {
			refused = reason(err)
			l.note("%s cannot join again: %s; stop it and run it anew", l.Grant.Replica, refused)
		}
	}
}

// resume makes stream the current one and says everything again that its
// other end does not know.
func (l *Lease) resume(stream grpc.BidiStreamingClient[tullev1.JoinRequest, tullev1.JoinResponse]) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stream = stream
	l.sendLocked(&tullev1.JoinRequest{Message: &tullev1.JoinRequest_Status{Status: l.status}})
	for range l.wanted {
		l.sendLocked(tokenRequest)
	}
}

var tokenRequest = &tullev1.JoinRequest{Message: &tullev1.JoinRequest_Token{Token: &tullev1.TokenRequest{}}}

func (l *Lease) sendLocked(m *tullev1.JoinRequest) {
	if l.stream != nil {
		_ = l.stream.Send(m) // if it breaks now, receive finds out and all is said again
	}
}

// Report changes the replica's status and tells the daemon.
func (l *Lease) Report(change func(*tullev1.Status)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	next := proto.CloneOf(l.status)
	change(next)
	if proto.Equal(next, l.status) {
		return
	}
	l.status = next
	l.sendLocked(&tullev1.JoinRequest{Message: &tullev1.JoinRequest_Status{Status: next}})
}

// Token asks for a join token and waits for it, also for a daemon that is away.
// One caller at a time.
func (l *Lease) Token(ctx context.Context) (string, error) {
	select {
	case <-l.tokens: // an answer that came too late for an earlier caller
	default:
	}
	l.mu.Lock()
	l.wanted++
	l.sendLocked(tokenRequest)
	l.mu.Unlock()
	select {
	case token := <-l.tokens:
		return token, nil
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// Stop is closed when the daemon asks the replica to end.
func (l *Lease) Stop() <-chan struct{} { return l.stop }

// leaveTimeout bounds the wait for the daemon to have heard our goodbye.
const leaveTimeout = time.Second

// Leave says goodbye, so that the daemon need not wait for us to come back, and
// returns when it has heard that. Cancel Run's context afterwards.
func (l *Lease) Leave() {
	l.mu.Lock()
	l.leaving = true
	connected := l.stream != nil
	if connected {
		_ = l.stream.CloseSend()
	}
	l.mu.Unlock()
	if !connected {
		return
	}
	select {
	case <-l.ended:
	case <-time.After(leaveTimeout):
	}
}

// reason is a gRPC error without its dressing.
func reason(err error) string {
	if errors.Is(err, io.EOF) {
		return "it closed the connection"
	}
	switch s, ok := status.FromError(err); {
	case !ok:
		return err.Error()
	case s.Code() == codes.Unavailable:
		return "nobody answers on its socket"
	default:
		return s.Message()
	}
}
