package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
	"github.com/tulle-mesh/tulle/mesh"
	"github.com/tulle-mesh/tulle/proxy/sniff"
)

// fakeDiscovery answers the watch with what the test sends.
type fakeDiscovery struct {
	tullev1.DiscoveryClient // what is not used
	mu                      sync.Mutex
	down                    bool
	streams                 int // how many were asked for
	newest                  *fakeWatch
}

type fakeWatch struct {
	grpc.ClientStream
	ctx      context.Context
	messages chan *tullev1.Destination
	broken   chan struct{}

	stuck atomic.Bool // Send waits for the end

	mu       sync.Mutex
	requests []string
	watching map[string]bool
}

func (f *fakeDiscovery) Watch(ctx context.Context, _ ...grpc.CallOption) (watchStream, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.streams++
	if f.down {
		return nil, errors.New("nobody is there")
	}
	f.newest = &fakeWatch{ctx: ctx, messages: make(chan *tullev1.Destination, 10), broken: make(chan struct{}), watching: map[string]bool{}}
	return f.newest, nil
}

func (w *fakeWatch) Send(m *tullev1.WatchRequest) error {
	if w.stuck.Load() {
		<-w.ctx.Done()
	}
	select {
	case <-w.broken:
		return io.EOF
	case <-w.ctx.Done():
		return io.EOF
	default:
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, addr := range m.GetDrop() {
		w.requests = append(w.requests, "-"+addr)
		delete(w.watching, addr)
	}
	for _, addr := range m.GetAdd() {
		w.requests = append(w.requests, "+"+addr)
		w.watching[addr] = true
	}
	return nil
}

func (w *fakeWatch) Recv() (*tullev1.Destination, error) {
	select {
	case m := <-w.messages:
		return m, nil
	case <-w.broken:
		return nil, io.ErrUnexpectedEOF
	case <-w.ctx.Done():
		return nil, w.ctx.Err()
	}
}

// watch returns the newest stream once everything has come to rest.
func (f *fakeDiscovery) watch() *fakeWatch {
	synctest.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.newest
}

// asked returns what the newest stream has been asked for, and for no more.
func (f *fakeDiscovery) asked() string {
	w := f.watch()
	if w == nil {
		return ""
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.requests, " ")
}

// send tells what is behind addr, if the proxy wants to know.
func (f *fakeDiscovery) send(addr string, m *tullev1.Destination) {
	w := f.watch()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.watching[addr] {
		m.Address = addr
		w.messages <- m
	}
}

func (f *fakeDiscovery) count() int {
	synctest.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.streams
}

func (f *fakeDiscovery) newestNow() *fakeWatch {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.newest
}

func (f *fakeDiscovery) breakDown(w *fakeWatch) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if w == f.newest {
		close(w.broken)
		f.newest = nil
	}
}

func (f *fakeDiscovery) setDown(down bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down = down
}

const testVIP = "10.84.128.1:80"

func webAt(addrs ...string) *tullev1.Destination {
	m := &tullev1.Destination{Service: "web"}
	for i, a := range addrs {
		m.Endpoints = append(m.Endpoints, &tullev1.Endpoint{
			Address: a, Identity: "spiffe://test.local/ns/default/sa/web", Workload: fmt.Sprintf("web-%d", i+1), Ready: true,
		})
	}
	return m
}

// directoryTest runs f on fake time with a directory that asks fake.
func directoryTest(t *testing.T, f func(t *testing.T, r *directory, fake *fakeDiscovery)) {
	synctest.Test(t, func(t *testing.T) {
		p := &Proxy{log: slog.New(slog.DiscardHandler), start: time.Now()}
		ctx, cancel := context.WithCancel(context.Background())
		fake := &fakeDiscovery{}
		r := &directory{
			client: fake, networks: []netip.Prefix{netip.MustParsePrefix("10.84.0.0/16")}, log: p.log, now: p.now,
			newUp:   func(d *destination, k endpointKey) *upstream { return newUpstream(p, d.service(), k) },
			changed: make(chan struct{}, 1),
		}
		var running sync.WaitGroup
		running.Go(func() { r.run(ctx) })
		f(t, r, fake)
		all := r.all()
		cancel()
		running.Wait()
		for _, d := range all {
			if n := len(d.set.Endpoints()); n != 0 {
				t.Errorf("%d endpoints of %s outlive the proxy", n, d.addr)
			}
		}
	})
}

// found looks testVIP up while the answer is m.
func found(t *testing.T, r *directory, fake *fakeDiscovery, m *tullev1.Destination) *destination {
	t.Helper()
	type answer struct {
		d   *destination
		err error
	}
	got := make(chan answer, 1)
	go func() {
		d, err := r.lookup(context.Background(), netip.MustParseAddrPort(testVIP))
		got <- answer{d, err}
	}()
	fake.send(testVIP, m)
	a := <-got
	if a.err != nil {
		t.Fatal(a.err)
	}
	return a.d
}

func endpointsOf(d *destination) string {
	synctest.Wait()
	s := ""
	for _, e := range d.set.Endpoints() {
		s += fmt.Sprintf("%s %s %s %v;", e.Key.addr, e.Key.id.Account, e.Key.workload, e.Ready())
	}
	return s
}

func TestLookupFirstAnswer(t *testing.T) {
	directoryTest(t, func(t *testing.T, r *directory, fake *fakeDiscovery) {
		d := found(t, r, fake, webAt("10.84.0.2:80", "10.84.0.3:80"))
		if d == nil || d.service() != "web" || endpointsOf(d) != "10.84.0.2:80 web web-1 true;10.84.0.3:80 web web-2 true;" {
			t.Fatalf("destination %v: %s", d, endpointsOf(d))
		}
		// The next one does not wait, nor ask again.
		if again, err := r.lookup(context.Background(), netip.MustParseAddrPort(testVIP)); again != d || err != nil || fake.asked() != "+"+testVIP {
			t.Errorf("again: %v, %v; asked %s", again, err, fake.asked())
		}
	})
}

func TestPickWaitsForAStartingService(t *testing.T) {
	directoryTest(t, func(t *testing.T, r *directory, fake *fakeDiscovery) {
		starting := webAt("10.84.0.2:80")
		starting.Endpoints[0].Ready = false
		d := found(t, r, fake, starting)
		start := r.now()
		if ep := d.pick(context.Background(), r.now, nil); ep == nil || r.now()-start != startPatience {
			t.Errorf("an endpoint that never gets ready: %v after %v", ep, r.now()-start)
		}
		start = r.now()
		time.AfterFunc(time.Second, func() { fake.send(testVIP, webAt("10.84.0.2:80")) })
		if ep := d.pick(context.Background(), r.now, nil); ep == nil || !ep.Ready() || r.now()-start != time.Second {
			t.Errorf("one that gets ready after a second: %v after %v", ep, r.now()-start)
		}
		start = r.now()
		if ep := d.pick(context.Background(), r.now, nil); ep == nil || r.now() != start {
			t.Errorf("a ready one: %v after %v", ep, r.now()-start)
		}
	})
}

func TestLookupOutsideTheMesh(t *testing.T) {
	directoryTest(t, func(t *testing.T, r *directory, fake *fakeDiscovery) {
		for _, addr := range []string{"192.0.2.1:80", "[2001:db8::1]:80", "127.0.0.1:80", "10.84.128.1:0"} {
			if d, err := r.lookup(context.Background(), netip.MustParseAddrPort(addr)); d != nil || err != nil {
				t.Errorf("%s: %v, %v", addr, d, err)
			}
		}
		if fake.count() != 0 {
			t.Error("asked about an address that is none of the mesh's")
		}
		if d := found(t, r, fake, &tullev1.Destination{}); d != nil {
			t.Errorf("nothing of the mesh, and yet %v", d)
		}
		if d := r.all()[0]; d.inUse.Load() != 0 {
			t.Errorf("in use by %d", d.inUse.Load())
		}
	})
}

// Without an answer there is no connection, rather than one past the mesh.
func TestLookupFailsClosed(t *testing.T) {
	directoryTest(t, func(t *testing.T, r *directory, fake *fakeDiscovery) {
		fake.setDown(true)
		begin := time.Now()
		var group sync.WaitGroup
		for range 10 {
			group.Go(func() {
				d, err := r.lookup(context.Background(), netip.MustParseAddrPort(testVIP))
				if d != nil || !errors.Is(err, errNoAnswer) {
					t.Errorf("%v, %v; want %v", d, err, errNoAnswer)
				}
			})
		}
		group.Wait()
		if took := time.Since(begin); took != firstAnswer {
			t.Errorf("took %v, want %v", took, firstAnswer)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if _, err := r.lookup(ctx, netip.MustParseAddrPort(testVIP)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("given up by the caller: %v", err)
		}
		if n := r.all()[0].inUse.Load(); n != 0 {
			t.Errorf("in use by %d", n)
		}
		// It keeps asking, with patience, and finds it in the end.
		time.Sleep(time.Minute)
		if n := fake.count(); n < 10 || n > 40 {
			t.Errorf("asked %d times in a minute", n)
		}
		fake.setDown(false)
		time.Sleep(2 * longestWatchWait)
		if d := found(t, r, fake, webAt("10.84.0.2:80")); d == nil {
			t.Error("not found")
		}
	})
}

func TestWatchFollowsAndKeepsTheLastAnswer(t *testing.T) {
	directoryTest(t, func(t *testing.T, r *directory, fake *fakeDiscovery) {
		d := found(t, r, fake, webAt("10.84.0.2:80"))
		first := d.set.Endpoints()[0]
		watch := fake.watch()
		more := webAt("10.84.0.2:80", "10.84.0.3:80")
		more.Endpoints[1].Ready, more.Protocol = false, tullev1.Protocol_PROTOCOL_TCP
		fake.send(testVIP, more)
		if got := endpointsOf(d); got != "10.84.0.2:80 web web-1 true;10.84.0.3:80 web web-2 false;" || d.hint() != sniff.Opaque {
			t.Errorf("then %s, hint %v", got, d.hint())
		}
		if d.set.Endpoints()[0] != first {
			t.Error("the endpoint that stayed is another one")
		}
		fake.setDown(true)
		close(watch.broken)
		time.Sleep(time.Hour)
		if got := endpointsOf(d); got != "10.84.0.2:80 web web-1 true;10.84.0.3:80 web web-2 false;" {
			t.Errorf("without the control plane: %s", got)
		}
		fake.setDown(false)
		time.Sleep(2 * longestWatchWait)
		fake.send(testVIP, webAt("10.84.0.9:80"))
		if got := endpointsOf(d); got != "10.84.0.9:80 web web-1 true;" {
			t.Errorf("after it came back: %s", got)
		}
	})
}

// What can't be understood is left out: never dialled in some other way.
func TestBadEndpointsAreLeftOut(t *testing.T) {
	for _, bad := range []*tullev1.Endpoint{
		{Address: "10.84.0.3:80", Identity: "spiffe://test.local/ns/default/sa/"},
		{Address: "10.84.0.3:80", Identity: "web"},
		{Address: "10.84.0.3:80", Identity: "SPIFFE://test.local/ns/default/sa/web"},
		{Address: "10.84.0.3", Identity: "spiffe://test.local/ns/default/sa/web"},
		{Address: "web:80"}, {Address: ""}, {Address: "10.84.0.3:0"}, {Address: "0.0.0.0:80"}, {Address: "[ff02::1]:80"}, {Address: "10.84.0.3:99999"},
	} {
		directoryTest(t, func(t *testing.T, r *directory, fake *fakeDiscovery) {
			m := webAt("10.84.0.2:80")
			m.Endpoints = append([]*tullev1.Endpoint{bad}, m.Endpoints...)
			d := found(t, r, fake, m)
			if got := endpointsOf(d); got != "10.84.0.2:80 web web-1 true;" {
				t.Errorf("%v: %s", bad, got)
			}
		})
	}
}

func TestEndpointSpellings(t *testing.T) {
	directoryTest(t, func(t *testing.T, r *directory, fake *fakeDiscovery) {
		d := found(t, r, fake, webAt("[::ffff:10.84.0.2]:80", "10.84.0.2:80"))
		if got := endpointsOf(d); got != "10.84.0.2:80 web web-1 true;10.84.0.2:80 web web-2 true;" {
			t.Error(got)
		}
	})
}

// A new identity, or another replica, behind an old address inherits nothing.
func TestAnotherIdentityIsAnotherEndpoint(t *testing.T) {
	directoryTest(t, func(t *testing.T, r *directory, fake *fakeDiscovery) {
		d := found(t, r, fake, webAt("10.84.0.2:80"))
		old := d.set.Endpoints()[0]
		m := webAt("10.84.0.2:80")
		m.Endpoints[0].Identity = "spiffe://test.local/ns/default/sa/db"
		fake.send(testVIP, m)
		if got := endpointsOf(d); got != "10.84.0.2:80 db web-1 true;" {
			t.Fatal(got)
		}
		now := d.set.Endpoints()[0]
		if now == old || now.Value == old.Value || !old.Gone() {
			t.Error("the endpoint went on under another identity")
		}
		old.Value.mu.Lock()
		closed := old.Value.closed
		old.Value.mu.Unlock()
		if !closed {
			t.Error("the old one's sessions are still there")
		}
		m = webAt("10.84.0.2:80")
		m.Endpoints[0].Identity = ""
		fake.send(testVIP, m)
		synctest.Wait()
		if plain := d.set.Endpoints()[0]; plain == now || plain.Value.security != mesh.Plaintext || now.Value.security != mesh.MutualTLS {
			t.Error("not another endpoint without an identity")
		}
	})
}

// All addresses share a stream, which is there while there are any.
func TestOneStreamForAllAddresses(t *testing.T) {
	directoryTest(t, func(t *testing.T, r *directory, fake *fakeDiscovery) {
		if synctest.Wait(); fake.count() != 0 {
			t.Error("a stream for nothing")
		}
		destinations := map[string]*destination{}
		dial := func(addr string) {
			t.Helper()
			d, err := r.destination(netip.MustParseAddrPort(addr))
			if err != nil {
				t.Fatal(err)
			}
			destinations[addr] = d
		}
		check := func(what, want string, streams int) {
			t.Helper()
			if got := fake.asked(); got != want || fake.count() != streams {
				t.Errorf("%s: asked %q on stream %d, want %q on %d", what, got, fake.count(), want, streams)
			}
		}
		dial("10.84.128.1:80")
		check("the first", "+10.84.128.1:80", 1)
		dial("10.84.128.2:80")
		check("the second", "+10.84.128.1:80 +10.84.128.2:80", 1)
		fake.send("10.84.128.2:80", webAt("10.84.0.2:80"))
		fake.send("10.84.128.1:80", webAt("10.84.0.1:80"))
		if a, b := endpointsOf(destinations["10.84.128.1:80"]), endpointsOf(destinations["10.84.128.2:80"]); a != "10.84.0.1:80 web web-1 true;" || b != "10.84.0.2:80 web web-1 true;" {
			t.Errorf("%s and %s", a, b)
		}
		destinations["10.84.128.1:80"].done(r.now())
		time.Sleep(destinationIdle + time.Second)
		r.sweep()
		check("one is idle", "+10.84.128.1:80 +10.84.128.2:80 -10.84.128.1:80", 1)

		dial("10.84.128.3:80")
		synctest.Wait()
		close(fake.watch().broken)
		time.Sleep(time.Second)
		if got := fake.asked(); fake.count() != 2 || got != "+10.84.128.2:80 +10.84.128.3:80" && got != "+10.84.128.3:80 +10.84.128.2:80" {
			t.Errorf("a new stream, number %d, is asked %q", fake.count(), got)
		}

		destinations["10.84.128.2:80"].done(r.now())
		destinations["10.84.128.3:80"].done(r.now())
		time.Sleep(destinationIdle + time.Second)
		r.sweep()
		synctest.Wait()
		if fake.watch().ctx.Err() == nil {
			t.Error("the stream outlives its last address")
		}
		time.Sleep(time.Hour)
		dial("10.84.128.1:80")
		check("another one later", "+10.84.128.1:80", 3)
	})
}

// An address that is forgotten and dialled again in one breath is asked for
// again: who dials it waits for the first answer.
func TestForgottenAndDialledAgain(t *testing.T) {
	directoryTest(t, func(t *testing.T, r *directory, fake *fakeDiscovery) {
		old := found(t, r, fake, webAt("10.84.0.2:80"))
		r.mu.Lock()
		r.forgetLocked(old)
		r.mu.Unlock()
		if d := found(t, r, fake, webAt("10.84.0.3:80")); d == old || endpointsOf(d) != "10.84.0.3:80 web web-1 true;" {
			t.Error("the old one")
		}
		if n := len(old.set.Endpoints()); n != 0 {
			t.Errorf("%d endpoints of what was forgotten", n)
		}
		if got := strings.Count(fake.asked(), "+"+testVIP); got != 2 && fake.count() != 2 {
			t.Errorf("asked %q", fake.asked())
		}
	})
}

// A control plane that reads nothing holds up who needs an answer, and nobody else.
func TestControlPlaneThatIsStuck(t *testing.T) {
	directoryTest(t, func(t *testing.T, r *directory, fake *fakeDiscovery) {
		found(t, r, fake, webAt("10.84.0.2:80"))
		fake.watch().stuck.Store(true)
		begin := time.Now()
		if d, err := r.lookup(context.Background(), netip.MustParseAddrPort("10.84.128.2:80")); d != nil || !errors.Is(err, errNoAnswer) || time.Since(begin) != firstAnswer {
			t.Errorf("%v, %v after %v", d, err, time.Since(begin))
		}
		begin = time.Now()
		if d, err := r.lookup(context.Background(), netip.MustParseAddrPort(testVIP)); d == nil || err != nil || time.Since(begin) != 0 {
			t.Errorf("a known one: %v, %v after %v", d, err, time.Since(begin))
		}
		fake.send(testVIP, webAt("10.84.0.3:80"))
		if got := endpointsOf(r.at(netip.MustParseAddrPort(testVIP))); got != "10.84.0.3:80 web web-1 true;" {
			t.Errorf("its next answer: %s", got)
		}
	})
}

func TestAnswersNobodyAskedFor(t *testing.T) {
	directoryTest(t, func(t *testing.T, r *directory, fake *fakeDiscovery) {
		d := found(t, r, fake, webAt("10.84.0.2:80"))
		stray := webAt("10.84.0.9:80")
		stray.Address = "10.84.128.9:80"
		fake.watch().messages <- stray
		if n := len(r.all()); n != 1 || endpointsOf(d) != "10.84.0.2:80 web web-1 true;" {
			t.Errorf("of another address: %d known, %s", n, endpointsOf(d))
		}
		stray = webAt("10.84.0.9:80")
		stray.Address = "web.mesh:80"
		fake.watch().messages <- stray
		synctest.Wait()
		time.Sleep(time.Second)
		if fake.count() != 2 || fake.asked() != "+"+testVIP || endpointsOf(d) != "10.84.0.2:80 web web-1 true;" {
			t.Errorf("of no address: asked %q on stream %d; %s", fake.asked(), fake.count(), endpointsOf(d))
		}
	})
}

// Answers, sweeps and dials at once; the race detector watches.
func TestDirectoryUnderChange(t *testing.T) {
	directoryTest(t, func(t *testing.T, r *directory, fake *fakeDiscovery) {
		addrs := []string{"10.84.128.1:80", "10.84.128.2:80", "10.84.128.3:80"}
		var group sync.WaitGroup
		for _, addr := range addrs {
			group.Go(func() {
				for i := range 200 {
					d, err := r.destination(netip.MustParseAddrPort(addr))
					if err != nil {
						t.Error(err)
						return
					}
					time.Sleep(time.Duration(i) * time.Millisecond)
					d.done(r.now())
					if i%3 == 0 {
						time.Sleep(destinationIdle + time.Second)
						r.sweep()
					}
				}
			})
		}
		group.Go(func() {
			for i := range 2000 {
				if w := fake.newestNow(); w != nil {
					m := webAt(fmt.Sprintf("10.84.0.%d:80", i%250+1))
					m.Address = addrs[i%3]
					select {
					case w.messages <- m:
					case <-w.ctx.Done():
					}
					if i%100 == 99 {
						fake.breakDown(w)
					}
				}
				time.Sleep(time.Minute / 2)
			}
		})
		group.Wait()
		for _, addr := range addrs {
			if d, err := r.destination(netip.MustParseAddrPort(addr)); err != nil || d.inUse.Load() != 1 {
				t.Errorf("%s: %v, in use by %d", addr, err, d.inUse.Load())
			}
		}
		w := fake.watch()
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, addr := range addrs {
			if !w.watching[addr] {
				t.Errorf("%s is not watched", addr)
			}
		}
	})
}

func TestIdleDestinationsAreDropped(t *testing.T) {
	directoryTest(t, func(t *testing.T, r *directory, fake *fakeDiscovery) {
		d := found(t, r, fake, webAt("10.84.0.2:80"))
		time.Sleep(2 * destinationIdle)
		r.sweep()
		if len(r.all()) != 1 {
			t.Fatal("dropped while in use")
		}
		d.done(r.now())
		r.sweep()
		if len(r.all()) != 1 {
			t.Fatal("dropped just after its last use")
		}
		watch := fake.watch()
		time.Sleep(destinationIdle + time.Second)
		r.sweep()
		synctest.Wait()
		if len(r.all()) != 0 || watch.ctx.Err() == nil || len(d.set.Endpoints()) != 0 {
			t.Error("kept for ever")
		}
		if again := found(t, r, fake, webAt("10.84.0.3:80")); again == d || endpointsOf(again) != "10.84.0.3:80 web web-1 true;" {
			t.Error("not asked again")
		}
	})
}

func TestNumberOfDestinationsIsBounded(t *testing.T) {
	directoryTest(t, func(t *testing.T, r *directory, fake *fakeDiscovery) {
		at := func(i int) netip.AddrPort {
			return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 84, byte(i >> 8), byte(i)}), 80)
		}
		var all []*destination
		for i := range maxDestinations {
			d, err := r.destination(at(i))
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, d)
		}
		if _, err := r.destination(at(maxDestinations)); !errors.Is(err, errTooManyDestinations) {
			t.Errorf("one more: %v", err)
		}
		time.Sleep(time.Second)
		all[7].done(r.now())
		time.Sleep(time.Second)
		all[3].done(r.now())
		if _, err := r.destination(at(maxDestinations)); err != nil {
			t.Errorf("one more with two unused: %v", err)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if len(r.known) != maxDestinations || r.known[at(7)] != nil || r.known[at(3)] == nil {
			t.Error("not the one unused for longest made room")
		}
	})
}
