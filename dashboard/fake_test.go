package dashboard

import (
	"context"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
	"github.com/tulle-mesh/tulle/mesh"
)

type idKey struct{}

func testID(account string) mesh.ID {
	return mesh.ID{TrustDomain: "tulle.local", Namespace: "default", Account: account}
}

func newTestCollector(t testing.TB, change func(*Config)) *Collector {
	t.Helper()
	config := Config{
		PeerID: func(ctx context.Context) (mesh.ID, error) {
			id, ok := ctx.Value(idKey{}).(mesh.ID)
			if !ok {
				return mesh.ID{}, io.ErrUnexpectedEOF
			}
			return id, nil
		},
		HostAddresses: []netip.Addr{netip.MustParseAddr("10.84.0.1")},
	}
	if change != nil {
		change(&config)
	}
	c, err := NewCollector(config)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// fakeProxy is the proxy's end of an Attach, without a network, so that it
// works on fake time.
type fakeProxy struct {
	grpc.ServerStream
	ctx     context.Context
	cancel  context.CancelFunc
	up      chan *tullev1.ProxyMessage
	control chan *tullev1.ControlMessage
	result  chan error
}

func (f *fakeProxy) Context() context.Context { return f.ctx }

func (f *fakeProxy) Recv() (*tullev1.ProxyMessage, error) {
	select {
	case m, ok := <-f.up:
		if !ok {
			return nil, io.EOF
		}
		return m, nil
	case <-f.ctx.Done():
		return nil, f.ctx.Err()
	}
}

func (f *fakeProxy) Send(m *tullev1.ControlMessage) error {
	select {
	case f.control <- m:
		return nil
	case <-f.ctx.Done():
		return f.ctx.Err()
	}
}

func dial(t testing.TB, c *Collector, id any, address string) *fakeProxy {
	t.Helper()
	ctx := context.WithValue(context.Background(), idKey{}, id)
	ctx = peer.NewContext(ctx, &peer.Peer{Addr: net.TCPAddrFromAddrPort(netip.MustParseAddrPort(address + ":40000"))})
	ctx, cancel := context.WithCancel(ctx)
	f := &fakeProxy{
		ctx: ctx, cancel: cancel,
		up: make(chan *tullev1.ProxyMessage), control: make(chan *tullev1.ControlMessage, 16), result: make(chan error, 1),
	}
	t.Cleanup(cancel)
	go func() {
		f.result <- c.Attach(f)
		cancel()
	}()
	return f
}

// send returns false once the collector has ended the stream.
func (f *fakeProxy) send(m *tullev1.ProxyMessage) bool {
	select {
	case f.up <- m:
		return true
	case <-f.ctx.Done():
		return false
	}
}

func (f *fakeProxy) hello(workload string, start time.Time) *fakeProxy {
	f.send(&tullev1.ProxyMessage{Message: &tullev1.ProxyMessage_Hello{Hello: &tullev1.Hello{
		Workload: workload, Version: "0.1", Redirect: "nftables", StartUnixMs: start.UnixMilli(),
	}}})
	return f
}

func (f *fakeProxy) report(edges ...*tullev1.Edge) bool {
	return f.reportAll(&tullev1.Report{Edges: edges})
}

func (f *fakeProxy) reportAll(r *tullev1.Report) bool {
	return f.send(reportMessage(r))
}

func reportMessage(r *tullev1.Report) *tullev1.ProxyMessage {
	encoded, err := proto.Marshal(r)
	if err != nil {
		panic(err)
	}
	return &tullev1.ProxyMessage{Message: &tullev1.ProxyMessage_Report{Report: encoded}}
}

func (f *fakeProxy) tap(e *tullev1.TapEvent) bool {
	return f.send(&tullev1.ProxyMessage{Message: &tullev1.ProxyMessage_Tap{Tap: e}})
}

// end closes the stream as a proxy does that stops.
func (f *fakeProxy) end() error {
	close(f.up)
	return <-f.result
}

// traffic is a proxy's cumulative edge that a test adds requests to.
type traffic struct {
	edge    *tullev1.Edge
	samples []time.Duration
	counts  [mesh.Buckets]uint64
}

func outbound(service, replica string) *traffic {
	return &traffic{edge: &tullev1.Edge{
		Service: service, PeerIdentity: testID(service).String(), PeerWorkload: replica, PeerAddress: "10.84.0.9:8080",
		Security: "mtls", Protocol: "http/1", Outcomes: map[string]uint64{}, Statuses: map[uint32]uint64{},
	}}
}

func (tr *traffic) add(latencies ...time.Duration) *traffic {
	for _, d := range latencies {
		tr.samples = append(tr.samples, d)
		tr.counts[mesh.BucketOf(d)]++
		tr.edge.Requests++
		tr.edge.Statuses[200]++
	}
	return tr
}

func (tr *traffic) addFailures(n uint64) *traffic {
	tr.edge.Requests += n
	tr.edge.Failures += n
	tr.edge.Outcomes["reset"] += n
	return tr
}

// message is the edge as a proxy would send it now.
func (tr *traffic) message() *tullev1.Edge {
	e := &tullev1.Edge{
		Inbound: tr.edge.Inbound, Service: tr.edge.Service, PeerIdentity: tr.edge.PeerIdentity, PeerWorkload: tr.edge.PeerWorkload,
		PeerAddress: tr.edge.PeerAddress, Security: tr.edge.Security, Protocol: tr.edge.Protocol, Requests: tr.edge.Requests,
		Failures: tr.edge.Failures, Open: tr.edge.Open, BytesSent: tr.edge.BytesSent, BytesReceived: tr.edge.BytesReceived,
		Latency: &tullev1.Histogram{}, Outcomes: map[string]uint64{}, Statuses: map[uint32]uint64{},
	}
	for k, v := range tr.edge.Outcomes {
		e.Outcomes[k] = v
	}
	for k, v := range tr.edge.Statuses {
		e.Statuses[k] = v
	}
	for i, n := range tr.counts {
		if n > 0 {
			e.Latency.Bucket = append(e.Latency.Bucket, uint32(i))
			e.Latency.Count = append(e.Latency.Count, n)
		}
	}
	return e
}

func randomLatency(r *rand.Rand) time.Duration {
	return time.Duration(r.ExpFloat64()*float64(4*time.Millisecond)) + 200*time.Microsecond
}
