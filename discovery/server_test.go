package discovery

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
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

// watcher is a caller of follow; it collects what that sends.
type watcher struct {
	requests chan *tullev1.WatchRequest

	mu   sync.Mutex
	seen []string
	last uint64
	bad  string
}

func newWatcher() *watcher { return &watcher{requests: make(chan *tullev1.WatchRequest)} }

func (w *watcher) send(d *tullev1.Destination) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if d.GetRevision() <= w.last {
		w.bad = fmt.Sprintf("revision %d after %d", d.GetRevision(), w.last)
	}
	w.last = d.GetRevision()
	w.seen = append(w.seen, d.GetAddress()+": "+text(d))
	return nil
}

// check compares what was sent since the last call, by address.
func (w *watcher) check(t *testing.T, what string, want ...string) {
	t.Helper()
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	slices.Sort(w.seen)
	if fmt.Sprintf("%q", w.seen) != fmt.Sprintf("%q", want) {
		t.Errorf("%s:\n got %q\nwant %q", what, w.seen, want)
	}
	if w.bad != "" {
		t.Error(w.bad)
	}
	w.seen = nil
}

func add(addresses ...string) *tullev1.WatchRequest {
	return &tullev1.WatchRequest{Add: addresses}
}

func drop(addresses ...string) *tullev1.WatchRequest {
	return &tullev1.WatchRequest{Drop: addresses}
}

const (
	testVIP     = "10.84.128.1:80"
	testReplica = "10.84.0.2:80"
	testForeign = "192.0.2.1:80"
	testID      = "spiffe://tulle.local/ns/default/sa/web"
)

func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newState(t)
		server := NewServer(ServerConfig{State: s})
		ctx, cancel := context.WithCancel(t.Context())
		w := newWatcher()
		ended := make(chan error)
		go func() { ended <- server.follow(ctx, "web", w.requests, w.send) }()
		w.check(t, "nothing was asked for")
		w.requests <- add(testVIP)
		w.check(t, "the first", testVIP+": -")
		w.requests <- add(testReplica, testForeign)
		w.check(t, "others, at once", testReplica+": -", testForeign+": -")

		one, two := "10.84.0.2:80 web-1 "+testID, "10.84.0.4:80 web-2 "+testID
		lease := join(t, s, JoinRequest{Service: "web", Ports: []uint16{80}})
		w.check(t, "joined", testReplica+": web.default | "+one+" unready", testVIP+": web.default | "+one+" unready")
		lease.SetReady(true)
		w.check(t, "ready", testReplica+": web.default | "+one, testVIP+": web.default | "+one)
		lease.SetReady(true)
		join(t, s, JoinRequest{Service: "other"})
		w.check(t, "nothing of it")
		w.requests <- add(testVIP)
		w.check(t, "added again", testVIP+": web.default | "+one)

		// A second replica is no news for who watches the first one, though its
		// service is another value now.
		join(t, s, JoinRequest{Service: "web", Add: true, Ports: []uint16{81}})
		w.check(t, "second", testVIP+": web.default | "+one+" | "+two+" unready")
		lease.Lose()
		w.check(t, "lost", testReplica+": web.default | "+one+" unready", testVIP+": web.default | "+one+" unready | "+two+" unready")
		w.requests <- drop(testVIP, "10.84.128.77:80")
		s.Expire(s.config.Now().Add(defaultGrace))
		w.check(t, "gone, with the service dropped", testReplica+": -")
		setCatalog(t, s, "services: [{name: db, addresses: [192.0.2.1], ports: [80]}]")
		w.check(t, "in the catalog", testForeign+": db.default | 192.0.2.1:80  ")
		w.requests <- &tullev1.WatchRequest{Drop: []string{testForeign}, Add: []string{testForeign, testVIP}}
		w.check(t, "dropped and added", testVIP+": web.default | "+two+" unready", testForeign+": db.default | 192.0.2.1:80  ")
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) || len(server.watched)+len(server.Told()) != 0 {
			t.Errorf("ended with %v; counted %v, told %v", err, server.watched, server.Told())
		}
	})
}

// Who has been told what is so is known of each caller, over all of its
// streams; one that does not read has not.
func TestTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newState(t)
		lease := join(t, s, JoinRequest{Service: "web"})
		server := NewServer(ServerConfig{State: s})
		told := func(what string, want map[string]int) {
			t.Helper()
			synctest.Wait()
			if got := server.Told(); !maps.Equal(got, want) {
				t.Errorf("%s: told %v, want %v", what, got, want)
			}
		}
		reads := make(chan struct{})
		close(reads)
		gate := reads
		ctx, cancel := context.WithCancel(t.Context())
		one, two := newWatcher(), newWatcher()
		go server.follow(ctx, "client", one.requests, one.send)
		go server.follow(ctx, "client", two.requests, func(*tullev1.Destination) error { <-gate; return nil })
		told("nothing was asked for", map[string]int{})
		one.requests <- add(testVIP, testForeign)
		two.requests <- add(testReplica)
		told("both", map[string]int{"client": 3})
		one.requests <- drop(testForeign)
		told("one less", map[string]int{"client": 2})
		hangs := make(chan struct{})
		gate = hangs
		lease.SetReady(true)
		told("one does not read", map[string]int{"client": 1})
		close(hangs)
		told("it has read", map[string]int{"client": 2})
		cancel()
		told("gone", map[string]int{})
	})
}

// A slow watcher holds nobody up and gets the newest state when it is back, of
// each address once.
func TestFollowSlowly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newState(t)
		lease := join(t, s, JoinRequest{Service: "web"})
		server := NewServer(ServerConfig{State: s})
		gate, got := make(chan struct{}), make(chan *tullev1.Destination, 10)
		ctx, cancel := context.WithCancel(t.Context())
		w := newWatcher()
		go server.follow(ctx, "", w.requests, func(d *tullev1.Destination) error {
			<-gate
			got <- d
			return nil
		})
		w.requests <- add(testVIP, testReplica)
		synctest.Wait()
		for i := range 1001 {
			lease.SetReady(i%2 == 0)
		}
		close(gate)
		synctest.Wait()
		if n := len(got); n != 4 {
			t.Fatalf("%d messages, want those that were under way and the newest", n)
		}
		newest := map[string]bool{}
		for len(got) > 0 {
			d := <-got
			newest[d.GetAddress()] = d.GetEndpoints()[0].GetReady()
		}
		if !newest[testVIP] || !newest[testReplica] {
			t.Errorf("the newest state was missed: %v", newest)
		}
		cancel()
	})
}

func TestFollowEndsWithItsStream(t *testing.T) {
	server := NewServer(ServerConfig{State: newState(t)})
	gone := errors.New("gone")
	requests := make(chan *tullev1.WatchRequest, 1)
	requests <- add(testVIP)
	err := server.follow(t.Context(), "", requests, func(*tullev1.Destination) error { return gone })
	if !errors.Is(err, gone) || len(server.watched) != 0 {
		t.Errorf("ended with %v; counted %v", err, server.watched)
	}
}

// serveDiscovery returns a client of a server that tells callers apart by metadata.
func serveDiscovery(t *testing.T, config ServerConfig) tullev1.DiscoveryClient {
	t.Helper()
	config.Log = discard
	config.Caller = func(ctx context.Context) string {
		md, _ := metadata.FromIncomingContext(ctx)
		return fmt.Sprint(md.Get("caller"))
	}
	g := grpc.NewServer()
	tullev1.RegisterDiscoveryServer(g, NewServer(config))
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
	return tullev1.NewDiscoveryClient(conn)
}

// watchOnce adds addresses on a stream of its own and reads as many answers.
func watchOnce(ctx context.Context, client tullev1.DiscoveryClient, addresses ...string) ([]string, error) {
	stream, err := client.Watch(ctx)
	if err != nil {
		return nil, err
	}
	if err := stream.Send(add(addresses...)); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	var got []string
	for range addresses {
		d, err := stream.Recv()
		if err != nil {
			return got, err
		}
		got = append(got, d.GetAddress()+": "+text(d))
	}
	slices.Sort(got)
	return got, nil
}

func TestWatchOverGRPC(t *testing.T) {
	s := newState(t)
	join(t, s, JoinRequest{Service: "web"})
	client := serveDiscovery(t, ServerConfig{State: s, WatchLimit: 3})
	web := "web.default | 10.84.0.2:80 web-1 " + testID + " unready"

	for _, bad := range []string{"", "web.mesh:80", "10.84.128.1", "10.84.128.1:0", strings.Repeat("1", 100)} {
		if _, err := watchOnce(t.Context(), client, bad); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%q: %v", bad, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	got, err := watchOnce(ctx, client, testVIP, "[::ffff:10.84.128.1]:80")
	if want := testVIP + ": " + web + ", [::ffff:10.84.128.1]:80: " + web; err != nil || strings.Join(got, ", ") != want {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
	if _, err := watchOnce(ctx, client, testVIP); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a stream too many: %v", err)
	}
	other := metadata.AppendToOutgoingContext(t.Context(), "caller", "other")
	if _, err := watchOnce(other, client, testVIP, testReplica, testForeign); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("an address too many: %v", err)
	}
	if _, err := watchOnce(other, client, testVIP, testReplica); err != nil {
		t.Errorf("another caller: %v", err)
	}
	cancel()
	for { // until the server has noticed
		_, err := watchOnce(t.Context(), client, testVIP)
		if err == nil {
			break
		}
		if status.Code(err) != codes.ResourceExhausted {
			t.Fatal(err)
		}
	}
}

func TestWatchEndsAsTheCallerSaysSo(t *testing.T) {
	client := serveDiscovery(t, ServerConfig{State: newState(t), WatchLimit: 2})
	for range 10 { // each gives back what it held
		stream, err := client.Watch(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(add(testVIP)); err != nil {
			t.Fatal(err)
		}
		if d, err := stream.Recv(); err != nil || text(d) != "-" {
			t.Fatalf("%v, %v", d, err)
		}
		if err := stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		if d, err := stream.Recv(); !errors.Is(err, io.EOF) {
			t.Fatalf("then %v, %v", d, err)
		}
	}
}
