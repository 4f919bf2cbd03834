package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
	"github.com/tulle-mesh/tulle/mesh"
	"github.com/tulle-mesh/tulle/proxy/balance"
)

// fakeTelemetry is a control plane that keeps what it is told.
type fakeTelemetry struct {
	mu       sync.Mutex
	streams  []*fakeAttach
	deaf     bool // takes no message
	loseNext bool // the next stream breaks at its first report
}

type fakeAttach struct {
	grpc.ClientStream
	owner    *fakeTelemetry
	ctx      context.Context
	commands chan *tullev1.ControlMessage
	closed   chan struct{}
	lost     bool

	mu       sync.Mutex
	messages []*tullev1.ProxyMessage
}

func (f *fakeTelemetry) Attach(ctx context.Context, _ ...grpc.CallOption) (grpc.BidiStreamingClient[tullev1.ProxyMessage, tullev1.ControlMessage], error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := &fakeAttach{owner: f, ctx: ctx, commands: make(chan *tullev1.ControlMessage, 100), closed: make(chan struct{}), lost: f.loseNext}
	f.loseNext = false
	f.streams = append(f.streams, s)
	return s, nil
}

func (s *fakeAttach) Send(m *tullev1.ProxyMessage) error {
	s.owner.mu.Lock()
	deaf := s.owner.deaf
	s.owner.mu.Unlock()
	if deaf {
		<-s.ctx.Done()
	}
	if s.ctx.Err() != nil {
		return io.EOF
	}
	if _, err := proto.Marshal(m); err != nil {
		return err // as gRPC would
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lost && m.GetReport() != nil {
		return io.EOF
	}
	s.messages = append(s.messages, proto.Clone(m).(*tullev1.ProxyMessage))
	return nil
}

func (s *fakeAttach) Recv() (*tullev1.ControlMessage, error) {
	select {
	case m := <-s.commands:
		return m, nil
	case <-s.closed:
		return nil, io.EOF
	case <-s.ctx.Done():
		return nil, s.ctx.Err()
	}
}

func (s *fakeAttach) CloseSend() error { close(s.closed); return nil }

func (s *fakeAttach) take() (hellos []*tullev1.Hello, reports []*tullev1.Report, taps []*tullev1.TapEvent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.messages {
		switch m := m.GetMessage().(type) {
		case *tullev1.ProxyMessage_Hello:
			hellos = append(hellos, m.Hello)
		case *tullev1.ProxyMessage_Report:
			r := &tullev1.Report{}
			if err := proto.Unmarshal(m.Report, r); err != nil {
				panic(err)
			}
			reports = append(reports, r)
		case *tullev1.ProxyMessage_Tap:
			taps = append(taps, m.Tap)
		}
	}
	s.messages = nil
	return hellos, reports, taps
}

func (f *fakeTelemetry) last() *fakeAttach {
	synctest.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.streams[len(f.streams)-1]
}

func newQuietProxy() *Proxy {
	return &Proxy{
		config: Config{Workload: "web-1", Service: "web", Version: "v1", Redirect: "nftables"},
		log:    slog.New(slog.DiscardHandler), start: time.Now(), directory: &directory{},
	}
}

// telemetryTest runs f on fake time while p reports to fake; it fails if
// anything is left when the proxy ends.
func telemetryTest(t *testing.T, f func(t *testing.T, p *Proxy, fake *fakeTelemetry)) {
	synctest.Test(t, func(t *testing.T) {
		p, fake := newQuietProxy(), &fakeTelemetry{}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); p.report(ctx, fake) }()
		synctest.Wait()
		f(t, p, fake)
		end := time.Now()
		cancel()
		<-done
		if took := time.Since(end); took > goodbyeWithin {
			t.Errorf("the goodbye took %v", took)
		}
		if p.recorder.tapped() {
			t.Error("taps outlive the stream")
		}
	})
}

func TestReportsTellWhatChanged(t *testing.T) {
	telemetryTest(t, func(t *testing.T, p *Proxy, fake *fakeTelemetry) {
		a := p.recorder.edge(edgeKey{direction: mesh.Outbound, protocol: mesh.HTTP1, security: mesh.MutualTLS, service: "db", peer: mesh.ID{TrustDomain: "t", Namespace: "n", Account: "db"}, workload: "db-1", address: "10.84.0.3:80"})
		b := p.recorder.edge(edgeKey{direction: mesh.Inbound, protocol: mesh.TCP, service: "web", address: "192.0.2.1"})
		s := fake.last()
		hellos, _, _ := s.take()
		if len(hellos) != 1 || hellos[0].Workload != "web-1" || hellos[0].Version != "v1" || hellos[0].Redirect != "nftables" {
			t.Fatalf("hello %v", hellos)
		}
		p.recorder.record(a, &mesh.Exchange{Protocol: mesh.HTTP1, Status: 200, Duration: 3 * time.Millisecond, BytesSent: 7, BytesReceived: 9})
		p.recorder.record(a, &mesh.Exchange{Protocol: mesh.HTTP1, Status: 503, Outcome: mesh.AppFailure, Duration: 70 * time.Millisecond})
		b.open.Add(1)
		time.Sleep(reportEvery)
		synctest.Wait()
		_, reports, _ := s.take()
		if len(reports) != 1 || len(reports[0].Edges) != 2 {
			t.Fatalf("reports %v", reports)
		}
		want := &tullev1.Edge{
			Service: "db", PeerIdentity: "spiffe://t/ns/n/sa/db", PeerWorkload: "db-1", PeerAddress: "10.84.0.3:80", Security: "mtls", Protocol: "http/1",
			Requests: 2, Failures: 1, BytesSent: 7, BytesReceived: 9,
			Latency: &tullev1.Histogram{
				Bucket: []uint32{uint32(mesh.BucketOf(3 * time.Millisecond)), uint32(mesh.BucketOf(70 * time.Millisecond))},
				Count:  []uint64{1, 1},
			},
			Number:   1,
			Outcomes: map[string]uint64{"app-failure": 1}, Statuses: map[uint32]uint64{200: 1, 503: 1},
		}
		if got := reports[0].Edges[0]; !proto.Equal(got, want) {
			t.Errorf("edge\n%v\nwant\n%v", got, want)
		}
		if got := reports[0].Edges[1]; !got.Inbound || got.Open != 1 || got.Requests != 0 || got.Security != "plaintext" {
			t.Errorf("edge %v", got)
		}
		// Nothing new: no edges. Then only what changed, and from the start on.
		time.Sleep(3*reportEvery + reportEvery/2)
		p.recorder.record(a, &mesh.Exchange{Protocol: mesh.HTTP1, Outcome: mesh.Reset, Duration: 70 * time.Millisecond}) // neither bytes nor status
		time.Sleep(reportEvery)
		synctest.Wait()
		_, reports, _ = s.take()
		for _, r := range reports[:3] {
			if len(r.Edges) != 0 {
				t.Errorf("told again what had not changed: %v", r.Edges)
			}
		}
		if r := reports[3]; len(r.Edges) != 1 || r.Edges[0].Requests != 3 || r.Edges[0].Failures != 2 || r.Edges[0].Outcomes["reset"] != 1 {
			t.Errorf("report %v", r.Edges)
		} else if e := r.Edges[0]; e.Number != 1 || e.Service != "" || len(e.Latency.Bucket) != 1 || e.Latency.Count[0] != 2 {
			t.Errorf("the edge's key or unchanged buckets are told again: %v", e)
		}
	})
}

// A stream that broke loses nothing: the next one begins with everything.
func TestReportsSurviveTheControlPlane(t *testing.T) {
	telemetryTest(t, func(t *testing.T, p *Proxy, fake *fakeTelemetry) {
		p.recorder.record(p.recorder.edge(edgeKey{service: "a"}), &mesh.Exchange{})
		time.Sleep(reportEvery)
		s := fake.last()
		fake.mu.Lock()
		fake.loseNext = true
		fake.mu.Unlock()
		close(s.closed)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		s = fake.last()
		hellos, reports, _ := s.take()
		if len(hellos) != 1 || len(reports) == 0 || len(reports[0].Edges) != 1 || reports[0].Edges[0].Requests != 1 {
			t.Errorf("%v %v", hellos, reports)
		}
		fake.mu.Lock()
		defer fake.mu.Unlock()
		if n := len(fake.streams); n != 3 {
			t.Errorf("%d streams, want 3", n)
		}
	})
}

func TestLastReport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, fake := newQuietProxy(), &fakeTelemetry{}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); p.report(ctx, fake) }()
		synctest.Wait()
		time.Sleep(reportEvery / 2)
		p.recorder.record(p.recorder.edge(edgeKey{service: "a"}), &mesh.Exchange{})
		s := fake.last()
		s.take()
		cancel()
		<-done
		if _, reports, _ := s.take(); len(reports) != 1 || len(reports[0].Edges) != 1 {
			t.Errorf("the last half second is lost: %v", reports)
		}
	})
}

// A control plane that is there and takes nothing holds up neither taps nor the end.
func TestDeafControlPlane(t *testing.T) {
	telemetryTest(t, func(t *testing.T, p *Proxy, fake *fakeTelemetry) {
		s := fake.last()
		s.commands <- &tullev1.ControlMessage{Message: &tullev1.ControlMessage_TapStart{TapStart: &tullev1.TapStart{Id: 1, MaxPerSecond: 1 << 31}}}
		synctest.Wait()
		fake.mu.Lock()
		fake.deaf = true
		fake.mu.Unlock()
		e := p.recorder.edge(edgeKey{})
		for range 5 * tapQueue {
			p.recorder.record(e, &mesh.Exchange{})
		}
		time.Sleep(time.Minute)
	})
}

func TestLargeReportsAreCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newQuietProxy()
		random := rand.New(rand.NewPCG(1, 2))
		for i := range 2 * maxEdges {
			e := p.recorder.edge(edgeKey{protocol: mesh.HTTP1, service: strings.Repeat("s", 63), address: fmt.Sprint(i)})
			for range 100 {
				p.recorder.record(e, &mesh.Exchange{
					Protocol: mesh.HTTP1, Status: 100 + random.IntN(500), Duration: time.Duration(random.Int64N(int64(time.Hour))) >> random.IntN(40),
					Outcome: mesh.Outcome(random.IntN(outcomes)),
				})
			}
		}
		specs := make([]balance.Spec[endpointKey], 3*maxEndpoints)
		for i := range specs {
			specs[i].Key = endpointKey{addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 84, byte(i >> 8), byte(i)}), 80), workload: strings.Repeat("w", 63)}
		}
		p.directory.known = map[netip.AddrPort]*destination{{}: newTestDestination(p, strings.Repeat("s", 63), specs...)}
		a := &attachment{proxy: p, sent: map[*edge]edgeState{}}
		all := a.reports()
		edges := map[string]bool{}
		for i, r := range all {
			if n := proto.Size(r); n > 1<<20 {
				t.Errorf("report %d has %d bytes", i, n)
			}
			for _, e := range r.Edges {
				edges[e.PeerAddress] = true
			}
			if last := i == len(all)-1; (r.Proxy != nil) != last || (len(r.Endpoints) == maxEndpoints) != last {
				t.Errorf("report %d of %d: proxy %v, %d endpoints", i, len(all), r.Proxy, len(r.Endpoints))
			}
		}
		if len(all) < 2 || len(edges) < maxEdges {
			t.Errorf("%d edges in %d reports", len(edges), len(all))
		}
		if again := a.reports(); len(again) != 1 || len(again[0].Edges) != 0 {
			t.Error("told twice")
		}
	})
}

func TestReportTellsReadiness(t *testing.T) {
	p := newQuietProxy()
	up := balance.Spec[endpointKey]{Key: endpointKey{addr: netip.MustParseAddrPort("10.84.0.2:80"), workload: "web-1"}, Ready: true}
	notYet := balance.Spec[endpointKey]{Key: endpointKey{addr: netip.MustParseAddrPort("10.84.0.3:80"), workload: "web-2"}}
	p.directory.known = map[netip.AddrPort]*destination{{}: newTestDestination(p, "web", up, notYet)}
	r := (&attachment{proxy: p, sent: map[*edge]edgeState{}}).reports()[0]
	if r.Proxy.WatchedDestinations != 1 || len(r.Endpoints) != 2 || !r.Endpoints[0].Ready || r.Endpoints[1].Ready || r.Proxy.CertNotAfterUnix != 0 {
		t.Errorf("%v", r)
	}
}

// A report never shows more failures than requests, whenever it is made.
func TestReportsAreConsistent(t *testing.T) {
	p := newQuietProxy()
	e := p.recorder.edge(edgeKey{protocol: mesh.HTTP1})
	var group sync.WaitGroup
	stop := make(chan struct{})
	for range 2 {
		group.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					p.recorder.record(e, &mesh.Exchange{Protocol: mesh.HTTP1, Outcome: mesh.Reset})
				}
			}
		})
	}
	for range 2000 {
		if m := edgeMessage(e, edgeState{}, false); m.Failures != m.Requests || m.Outcomes["reset"] != m.Failures {
			t.Fatalf("%d failures of %d requests, all of which fail: %v", m.Failures, m.Requests, m.Outcomes)
		}
	}
	close(stop)
	group.Wait()
}

func tapStart(id uint64, limit uint32) *tullev1.ControlMessage {
	return &tullev1.ControlMessage{Message: &tullev1.ControlMessage_TapStart{TapStart: &tullev1.TapStart{Id: id, MaxPerSecond: limit}}}
}

func tapStop(id uint64) *tullev1.ControlMessage {
	return &tullev1.ControlMessage{Message: &tullev1.ControlMessage_TapStop{TapStop: &tullev1.TapStop{Id: id}}}
}

func TestTapOverTheStream(t *testing.T) {
	telemetryTest(t, func(t *testing.T, p *Proxy, fake *fakeTelemetry) {
		s := fake.last()
		e := p.recorder.edge(edgeKey{})
		x := &mesh.Exchange{
			Protocol: mesh.HTTP1, Status: 200, Method: "GET", Host: "bad\xff\xfehost", Path: strings.Repeat("é", 5000),
			Client: mesh.Peer{Addr: netip.MustParseAddrPort("10.0.0.1:1")}, Server: mesh.Peer{Service: "web", Workload: "web-1"},
			Duration: 3 * time.Millisecond, FirstByte: -1,
		}
		p.recorder.record(e, x)
		s.commands <- tapStart(7, 3)
		s.commands <- tapStart(7, 100) // the same again changes nothing
		synctest.Wait()
		for range 10 {
			p.recorder.record(e, x)
		}
		synctest.Wait()
		_, _, taps := s.take()
		if len(taps) != 3 {
			t.Fatalf("%d events, want 3 of 10", len(taps))
		}
		m := taps[0]
		if m.Method != "GET" || m.Status != 200 || m.Service != "web" || m.ServerWorkload != "web-1" || m.ClientAddress != "10.0.0.1:1" || m.DurationMicros != 3000 || m.FirstByteMicros != 0 {
			t.Errorf("event %v", m)
		}
		if !utf8.ValidString(m.Host) || !strings.HasPrefix(m.Host, "bad") || len(m.Path) > maxTapString+2 {
			t.Errorf("host %q, path of %d bytes", m.Host, len(m.Path))
		}
		if m.ServerAddress != "" {
			t.Errorf("server at %q, want nothing", m.ServerAddress)
		}
		time.Sleep(time.Second)
		p.recorder.record(e, x)
		synctest.Wait()
		_, _, more := s.take()
		var dropped uint64
		for _, m := range append(taps, more...) {
			dropped += m.Dropped
		}
		if len(more) != 1 || dropped != 7 {
			t.Errorf("%d more events, %d told to be dropped; want 1 and 7", len(more), dropped)
		}
		s.commands <- tapStop(8) // nobody's
		s.commands <- tapStop(7)
		synctest.Wait()
		if p.recorder.tapped() {
			t.Error("still tapped")
		}
		for id := range uint64(100) {
			s.commands <- tapStart(id, 1)
		}
		synctest.Wait()
		if n := len(*p.recorder.taps.Load()); n != maxTaps {
			t.Errorf("%d taps, want at most %d", n, maxTaps)
		}
	})
}

func TestTapsEndWithTheStream(t *testing.T) {
	telemetryTest(t, func(t *testing.T, p *Proxy, fake *fakeTelemetry) {
		s := fake.last()
		s.commands <- tapStart(1, 10)
		synctest.Wait()
		close(s.closed)
		time.Sleep(3 * time.Second)
		if fake.last() == s || p.recorder.tapped() {
			t.Error("the tap outlives who asked for it")
		}
	})
}

// Taps come and go while traffic is offered to them: nobody sends on a closed channel.
func TestTapsComeAndGo(t *testing.T) {
	p := newQuietProxy()
	a := &attachment{proxy: p, taps: map[uint64]*tap{}, events: make(chan *tullev1.ProxyMessage)}
	ctx, cancel := context.WithCancel(context.Background())
	var traffic, control sync.WaitGroup
	stop := make(chan struct{})
	e := p.recorder.edge(edgeKey{})
	traffic.Go(func() {
		for range a.events {
		}
	})
	var offering sync.WaitGroup
	for range 3 {
		offering.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					p.recorder.record(e, &mesh.Exchange{})
				}
			}
		})
	}
	for i := range uint64(2) {
		control.Go(func() {
			for range 500 {
				a.startTap(ctx, &tullev1.TapStart{Id: i, MaxPerSecond: 1 << 20})
				a.stopTap(i)
			}
		})
	}
	control.Wait()
	close(stop)
	offering.Wait()
	cancel()
	a.endTaps()
	a.forwarding.Wait()
	close(a.events)
	traffic.Wait()
	if p.recorder.tapped() {
		t.Error("a tap is left")
	}
}

func TestReportAgainstNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newQuietProxy()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		calls := 0
		p.report(ctx, attachFunc(func() error { calls++; return errors.New("nobody") }))
		if calls < 30 || calls > 130 {
			t.Errorf("tried %d times in a minute", calls)
		}
	})
}

type attachFunc func() error

func (f attachFunc) Attach(context.Context, ...grpc.CallOption) (grpc.BidiStreamingClient[tullev1.ProxyMessage, tullev1.ControlMessage], error) {
	return nil, f()
}

func TestRSS(t *testing.T) {
	if n := rss(); n < 1<<20 || n > 1<<40 {
		t.Errorf("%d bytes", n)
	}
}

// silentTelemetry takes everything and says nothing.
type silentTelemetry struct {
	tullev1.UnimplementedTelemetryServer
}

func (silentTelemetry) Attach(stream grpc.BidiStreamingServer[tullev1.ProxyMessage, tullev1.ControlMessage]) error {
	for {
		if _, err := stream.Recv(); err != nil {
			return err
		}
	}
}

// askedFor keeps the options of a call instead of making it.
type askedFor struct{ options []grpc.CallOption }

func (a *askedFor) Attach(_ context.Context, options ...grpc.CallOption) (grpc.BidiStreamingClient[tullev1.ProxyMessage, tullev1.ControlMessage], error) {
	a.options = options
	return nil, errors.New("not now")
}

// TestReportsAreNotKept: what has been sent is garbage, though the control plane
// has nothing to say.
func TestReportsAreNotKept(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	tullev1.RegisterTelemetryServer(server, silentTelemetry{})
	go func() { _ = server.Serve(ln) }()
	defer server.Stop()
	conn, err := grpc.NewClient("passthrough:///"+ln.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var asked askedFor
	if err := newQuietProxy().attach(t.Context(), &asked); err == nil {
		t.Fatal("it has a stream")
	}
	stream, err := tullev1.NewTelemetryClient(conn).Attach(t.Context(), asked.options...)
	if err != nil {
		t.Fatal(err)
	}
	const sent = 100
	var freed atomic.Int64
	for range sent {
		m := &tullev1.ProxyMessage{Message: &tullev1.ProxyMessage_Report{Report: make([]byte, 100)}}
		runtime.AddCleanup(m, func(struct{}) { freed.Add(1) }, struct{}{})
		if err := stream.Send(m); err != nil {
			t.Fatal(err)
		}
	}
	for end := time.Now().Add(30 * time.Second); freed.Load() < sent*9/10; runtime.GC() {
		if time.Now().After(end) {
			t.Fatalf("of %d reports, %d are kept", sent, sent-freed.Load())
		}
	}
}
