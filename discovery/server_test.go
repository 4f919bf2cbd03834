package discovery

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
)

// watcher collects what a watch sends.
type watcher struct {
	mu   sync.Mutex
	seen []string
	last uint64
	bad  string
}

func (w *watcher) send(d *tullev1.Destination) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if d.GetRevision() <= w.last {
		w.bad = fmt.Sprintf("revision %d after %d", d.GetRevision(), w.last)
	}
	w.last = d.GetRevision()
	w.seen = append(w.seen, text(d))
	return nil
}

// next returns all that was sent since the last call.
func (w *watcher) next() []string {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	seen := w.seen
	w.seen = nil
	return seen
}

func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newState(t)
		server := NewServer(ServerConfig{State: s})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		watch := func(addr string) *watcher {
			w := &watcher{}
			wg.Go(func() {
				err := server.follow(ctx, netip.MustParseAddrPort(addr), w.send)
				if status.Code(err) != codes.Canceled {
					t.Errorf("ended with %v", err)
				}
			})
			return w
		}
		service, replica, foreign := watch("10.84.128.1:80"), watch("10.84.0.2:80"), watch("192.0.2.1:80")
		check := func(what string, w *watcher, want ...string) {
			t.Helper()
			if got := w.next(); fmt.Sprintf("%q", got) != fmt.Sprintf("%q", want) {
				t.Errorf("%s:\n got %q\nwant %q", what, got, want)
			}
		}
		for _, w := range []*watcher{service, replica, foreign} {
			check("at once", w, "-")
		}
		const id = "spiffe://tulle.local/ns/default/sa/web"
		lease := join(t, s, JoinRequest{Service: "web", Ports: []uint16{80}})
		check("joined", service, "web.default | 10.84.0.2:80 web-1 "+id+" unready")
		check("joined", replica, "web.default | 10.84.0.2:80 web-1 "+id+" unready")
		lease.SetReady(true)
		check("ready", service, "web.default | 10.84.0.2:80 web-1 "+id)
		check("ready", replica, "web.default | 10.84.0.2:80 web-1 "+id)
		lease.SetReady(true)
		join(t, s, JoinRequest{Service: "other"})
		check("nothing of it", service)

		// A second replica is no news for who watches the first one, though its
		// service is another value now.
		join(t, s, JoinRequest{Service: "web", Add: true, Ports: []uint16{81}})
		check("second", service, "web.default | 10.84.0.2:80 web-1 "+id+" | 10.84.0.4:80 web-2 "+id+" unready")
		check("second", replica)
		lease.Lose()
		check("lost", service, "web.default | 10.84.0.2:80 web-1 "+id+" unready | 10.84.0.4:80 web-2 "+id+" unready")
		check("lost", replica, "web.default | 10.84.0.2:80 web-1 "+id+" unready")
		s.Expire(s.config.Now().Add(defaultGrace))
		check("gone", service, "web.default | 10.84.0.4:80 web-2 "+id+" unready")
		check("gone", replica, "-")
		setCatalog(t, s, "services: [{name: db, addresses: [192.0.2.1], ports: [80]}]")
		check("in the catalog", foreign, "db.default | 192.0.2.1:80  ")
		cancel()
		wg.Wait()
		for _, w := range []*watcher{service, replica, foreign} {
			if w.bad != "" {
				t.Error(w.bad)
			}
		}
	})
}

// A slow watcher holds nobody up and gets the newest state when it is back.
func TestFollowSlowly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newState(t)
		lease := join(t, s, JoinRequest{Service: "web"})
		server := NewServer(ServerConfig{State: s})
		gate, got := make(chan struct{}), make(chan *tullev1.Destination, 10)
		ctx, cancel := context.WithCancel(t.Context())
		go server.follow(ctx, netip.MustParseAddrPort("10.84.128.1:80"), func(d *tullev1.Destination) error {
			<-gate
			got <- d
			return nil
		})
		synctest.Wait()
		for i := range 1001 {
			lease.SetReady(i%2 == 0)
		}
		close(gate)
		synctest.Wait()
		if n := len(got); n != 2 {
			t.Errorf("%d messages, want the one that was stuck and the newest", n)
		}
		<-got
		if d := <-got; !d.GetEndpoints()[0].GetReady() {
			t.Error("the newest state was missed")
		}
		cancel()
	})
}

func TestFollowEndsWithItsStream(t *testing.T) {
	s := newState(t)
	server := NewServer(ServerConfig{State: s})
	gone := errors.New("gone")
	err := server.follow(t.Context(), netip.MustParseAddrPort("10.84.128.1:80"), func(*tullev1.Destination) error { return gone })
	if !errors.Is(err, gone) {
		t.Errorf("ended with %v", err)
	}
}

func TestWatchOverGRPC(t *testing.T) {
	s := newState(t)
	join(t, s, JoinRequest{Service: "web"})
	g := grpc.NewServer()
	server := NewServer(ServerConfig{State: s, WatchLimit: 2, Log: discard, Caller: func(ctx context.Context) string {
		md, _ := metadata.FromIncomingContext(ctx)
		return fmt.Sprint(md.Get("caller"))
	}})
	tullev1.RegisterDiscoveryServer(g, server)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { g.Serve(listener) })
	t.Cleanup(func() { g.Stop(); wg.Wait() })
	conn, err := grpc.NewClient("passthrough:///"+listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	client := tullev1.NewDiscoveryClient(conn)
	watch := func(ctx context.Context, address string) (string, error) {
		stream, err := client.Watch(ctx, &tullev1.WatchRequest{Address: address})
		if err != nil {
			return "", err
		}
		d, err := stream.Recv()
		return text(d), err
	}

	for _, bad := range []string{"", "web.mesh:80", "10.84.128.1", "10.84.128.1:0"} {
		if _, err := watch(t.Context(), bad); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%q: %v", bad, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	for range 2 {
		if got, err := watch(ctx, "10.84.128.1:80"); err != nil || got == "-" {
			t.Errorf("%q, %v", got, err)
		}
	}
	if _, err := watch(ctx, "10.84.128.1:80"); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("one too many: %v", err)
	}
	other := metadata.AppendToOutgoingContext(t.Context(), "caller", "other")
	if _, err := watch(other, "10.84.128.1:80"); err != nil {
		t.Errorf("another caller: %v", err)
	}
	cancel()
	for { // until the server has noticed
		_, err := watch(t.Context(), "10.84.128.1:80")
		if err == nil {
			break
		}
		if status.Code(err) != codes.ResourceExhausted {
			t.Fatal(err)
		}
	}
}
