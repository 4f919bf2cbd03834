package proxy

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
	"github.com/tulle-mesh/tulle/mesh"
	"github.com/tulle-mesh/tulle/proxy/sniff"
)

const (
	reportEvery   = time.Second
	slowestReport = 10 * time.Second
	reportAgain   = time.Second // after the stream broke
	goodbyeWithin = 500 * time.Millisecond
	tapQueue      = 256
	maxTaps       = 16
	maxTapRate    = 10_000 // events per second
	maxTapString  = 2048   // bytes of a path or host that a tap shows
	maxTapWord    = 32     // bytes of a method

	// The control plane takes messages of 1 MiB, and 4096 endpoints in one.
	reportBytes  = 512 << 10
	maxEndpoints = 2048
	maxVerdicts  = 256
)

// report streams figures to the control plane until ctx ends. Losing the
// stream loses nothing: what is reported is cumulative.
func (p *Proxy) report(ctx context.Context, client tullev1.TelemetryClient) {
	for ctx.Err() == nil {
		if err := p.attach(ctx, client); ctx.Err() == nil {
			p.log.Debug("telemetry stream ended", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(reportAgain/2 + rand.N(reportAgain)):
		}
	}
}

// attachment is one telemetry stream. Only its own goroutine sends.
type attachment struct {
	proxy  *Proxy
	stream grpc.BidiStreamingClient[tullev1.ProxyMessage, tullev1.ControlMessage]
	sent   map[*edge]edgeState // what was reported last

	mu   sync.Mutex
	taps map[uint64]*tap

	pace       chan time.Duration // how often to report, once the control plane has said so
	events     chan *tullev1.ProxyMessage
	forwarding sync.WaitGroup // a goroutine for each tap
}

// edgeState is what changes about an edge when anything does.
type edgeState struct {
	requests, bytes, open uint64
	number                uint32 // of the edge on this stream
}

func (p *Proxy) attach(ctx context.Context, client tullev1.TelemetryClient) error {
	life, end := context.WithCancelCause(context.WithoutCancel(ctx)) // outlives ctx for the last report
	cancel := func() { end(nil) }
	defer cancel()
	unbind := context.AfterFunc(ctx, cancel)
	// Until the control plane says something, which it may never do, gRPC would keep
	// what is sent for another attempt: 1.3 MB. report makes that attempt.
	stream, err := client.Attach(life, grpc.WaitForReady(true), grpc.MaxRetryRPCBufferSize(0))
	if err != nil {
		return err
	}
	if !unbind() {
		return ctx.Err()
	}
	// A control plane that takes nothing must not hold up the end.
	defer context.AfterFunc(ctx, func() { time.AfterFunc(goodbyeWithin, cancel) })()
	a := &attachment{proxy: p, stream: stream, sent: map[*edge]edgeState{}, taps: map[uint64]*tap{}, pace: make(chan time.Duration, 1), events: make(chan *tullev1.ProxyMessage, tapQueue)}
	var commands sync.WaitGroup
	commands.Go(func() { end(a.obey(life)) })
	defer a.forwarding.Wait()
	defer a.endTaps() // only now: nothing starts one any more
	defer commands.Wait()
	defer cancel()
	err = stream.Send(&tullev1.ProxyMessage{Message: &tullev1.ProxyMessage_Hello{Hello: &tullev1.Hello{
		Workload: p.config.Workload, Service: p.config.Service, Version: p.config.Version, Redirect: p.config.Redirect, StartUnixMs: p.start.UnixMilli(),
	}}})
	if err != nil {
		return err
	}
	tick := time.NewTicker(reportEvery)
	defer tick.Stop()
	for {
		for _, r := range a.reports() {
			encoded, err := proto.Marshal(r)
			if err != nil {
				return err
			}
			if err := stream.Send(&tullev1.ProxyMessage{Message: &tullev1.ProxyMessage_Report{Report: encoded}}); err != nil {
				return err
			}
		}
		if ctx.Err() != nil {
			return a.sayGoodbye(life)
		}
		if err := a.forwardEvents(ctx, life, tick); err != nil {
			return err
		}
	}
}

// sayGoodbye waits until the control plane has taken the last report, so that
// what a workload did in its last second counts, even if it lived no longer.
func (a *attachment) sayGoodbye(life context.Context) error {
	if err := a.stream.CloseSend(); err != nil {
		return err
	}
	<-life.Done() // the control plane ended the stream in return, or its time is over
	return nil
}

// forwardEvents sends tap events until the next report is due, or the last one
// because ctx ends.
func (a *attachment) forwardEvents(ctx, life context.Context, tick *time.Ticker) error {
	for {
		select {
		case <-life.Done():
			return context.Cause(life)
		case <-ctx.Done():
			return nil
		case m := <-a.events:
			if err := a.stream.Send(m); err != nil {
				return err
			}
		case d := <-a.pace:
			tick.Reset(d)
		case <-tick.C:
			return nil
		}
	}
}

// obey follows the control plane's wishes until the stream ends, and returns why.
func (a *attachment) obey(ctx context.Context) error {
	for {
		m, err := a.stream.Recv()
		if err != nil {
			return err
		}
		switch m := m.GetMessage().(type) {
		case *tullev1.ControlMessage_TapStart:
			a.startTap(ctx, m.TapStart)
		case *tullev1.ControlMessage_TapStop:
			a.stopTap(m.TapStop.GetId())
		case *tullev1.ControlMessage_Pace:
			a.setPace(time.Duration(m.Pace.GetReportEveryMs()) * time.Millisecond)
		}
	}
}

// setPace hands the newest wish to the goroutine that reports.
func (a *attachment) setPace(every time.Duration) {
	select {
	case <-a.pace:
	default:
	}
	a.pace <- min(max(every, reportEvery), slowestReport) // nobody else sends
}

func (a *attachment) startTap(ctx context.Context, m *tullev1.TapStart) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.taps[m.GetId()] != nil || len(a.taps) >= maxTaps {
		return
	}
	t := &tap{id: m.GetId(), max: min(m.GetMaxPerSecond(), maxTapRate), events: make(chan mesh.Exchange, tapQueue)}
	a.taps[t.id] = t
	a.proxy.recorder.addTap(t)
	a.forwarding.Go(func() { a.forwardTap(ctx, t) })
}

func (a *attachment) stopTap(id uint64) {
	a.mu.Lock()
	t := a.taps[id]
	delete(a.taps, id)
	a.mu.Unlock()
	if t != nil {
		a.proxy.recorder.removeTap(id)
		t.mu.Lock()
		t.max = 0 // an offer under way finds no room
		t.mu.Unlock()
		close(t.events)
	}
}

func (a *attachment) endTaps() {
	a.mu.Lock()
	ids := make([]uint64, 0, len(a.taps))
	for id := range a.taps {
		ids = append(ids, id)
	}
	a.mu.Unlock()
	for _, id := range ids {
		a.stopTap(id)
	}
}

func (a *attachment) forwardTap(ctx context.Context, t *tap) {
	for x := range t.events {
		m := &tullev1.ProxyMessage{Message: &tullev1.ProxyMessage_Tap{Tap: tapEvent(&x, t.takeDropped())}}
		select {
		case a.events <- m:
		case <-ctx.Done():
			return
		}
	}
}

func tapEvent(x *mesh.Exchange, dropped uint64) *tullev1.TapEvent {
	return &tullev1.TapEvent{
		Dropped: dropped, Inbound: x.Direction == mesh.Inbound,
		Protocol: x.Protocol.String(), Security: x.Security.String(), Outcome: x.Outcome.String(), Service: x.Server.Service,
		ClientIdentity: x.Client.ID.String(), ClientAddress: address(x.Client.Addr),
		ServerIdentity: x.Server.ID.String(), ServerAddress: address(x.Server.Addr), ServerWorkload: x.Server.Workload,
		StartUnixMicros: x.Start.UnixMicro(), FirstByteMicros: micros(x.FirstByte), DurationMicros: micros(x.Duration),
		BytesSent: x.BytesSent, BytesReceived: x.BytesReceived, Status: uint32(x.Status),
		Method: valid(x.Method, maxTapWord), Host: valid(x.Host, maxTapString), Path: valid(x.Path, maxTapString),
	}
}

// address is empty where there is none: nobody was dialled.
func address(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// valid makes a string of a client fit for protobuf, and at most n bytes of it
// (more where those are not UTF-8).
func valid(s string, n int) string { return strings.ToValidUTF8(s[:min(len(s), n)], "\uFFFD") }

func micros(d time.Duration) uint64 { return uint64(max(d, 0) / time.Microsecond) }

// reports describes all edges that changed since the last call, in as many
// messages as it takes. The last one has the figures of the proxy itself.
func (a *attachment) reports() []*tullev1.Report {
	p := a.proxy
	var all []*tullev1.Report
	r, size := &tullev1.Report{}, 0
	for _, e := range p.recorder.all() {
		last, told := a.sent[e]
		state := edgeState{e.requests.Load(), e.sent.Load() + e.received.Load(), uint64(max(e.open.Load(), 0)), last.number}
		if !told {
			state.number = uint32(len(a.sent) + 1)
		}
		if last == state {
			continue
		}
		a.sent[e] = state
		m := edgeMessage(e, state, told)
		if n := proto.Size(m); size+n > reportBytes && size > 0 {
			all = append(all, r)
			r, size = &tullev1.Report{}, n
		} else {
			size += n
		}
		r.Edges = append(r.Edges, m)
	}
	if len(all) > 0 && size+maxEndpoints*128 > reportBytes {
		all = append(all, r)
		r = &tullev1.Report{}
	}
	p.describe(r)
	return append(all, r)
}

// describe puts the figures of the proxy itself into r.
func (p *Proxy) describe(r *tullev1.Report) {
	now, known := p.now(), p.directory.all()
	r.Proxy = &tullev1.ProxyStats{
		RssBytes: rss(), OpenConnections: uint32(p.conns.len()), WatchedDestinations: uint32(len(known)),
	}
	if c := p.creds.Load(); c != nil {
		r.Proxy.CertNotAfterUnix, r.Proxy.CertAuthorityKeyId = c.Leaf.Leaf.NotAfter.Unix(), c.Leaf.Leaf.AuthorityKeyId
	}
	for _, d := range known {
		if v := d.verdict(); v != nil && len(r.Verdicts) < maxVerdicts {
			r.Verdicts = append(r.Verdicts, v)
		}
		for _, ep := range d.set.Endpoints() {
			if len(r.Endpoints) == maxEndpoints {
				return
			}
			r.Endpoints = append(r.Endpoints, &tullev1.EndpointStats{
				Service: ep.Value.service, Workload: ep.Key.workload, Address: ep.Key.addr.String(),
				EwmaMicros: float64(ep.Estimate(now)) / float64(time.Microsecond), InFlight: uint32(ep.InFlight()), Ready: ep.Ready(),
			})
		}
	}
}

// verdict says what connections to the destination are taken to speak; nil
// where nothing is known beforehand.
func (d *destination) verdict() *tullev1.Verdict {
	facts := d.facts.Load()
	if facts == nil || facts.service == "" {
		return nil
	}
	v := &tullev1.Verdict{Address: d.addr.String(), Service: facts.service}
	spoken, reason := d.hint(), "declared for the service"
	if spoken == sniff.More {
		switch spoken = sniff.Verdict(d.learned.Load()); spoken {
		case sniff.More:
			return nil
		case sniff.Opaque:
			reason = "the server speaks first"
		default:
			reason = "the first bytes of the last client"
		}
	}
	v.Protocol, v.Reason = spoken.Protocol().String(), reason
	return v
}

// edgeMessage describes one edge; of one that the stream was told of before,
// without its key and with what of its latency changed since. Its requests are
// the sum of their outcomes, so that there are never more failures than requests.
func edgeMessage(e *edge, state edgeState, told bool) *tullev1.Edge {
	m := &tullev1.Edge{
		Number: state.number, Open: state.open, BytesSent: e.sent.Load(), BytesReceived: e.received.Load(), Latency: &tullev1.Histogram{},
	}
	if k := e.key; !told {
		m.Inbound, m.Service, m.PeerIdentity, m.PeerWorkload = k.direction == mesh.Inbound, k.service, k.peer.String(), k.workload
		m.PeerAddress, m.Security, m.Protocol = k.address, k.security.String(), k.protocol.String()
	}
	e.latency.EachChanged(!told, func(bucket int, n uint64) {
		m.Latency.Bucket = append(m.Latency.Bucket, uint32(bucket))
		m.Latency.Count = append(m.Latency.Count, n)
	})
	for i := range e.outcomes {
		n := e.outcomes[i].Load()
		m.Requests += n
		if n == 0 || mesh.Outcome(i) == mesh.Success {
			continue
		}
		m.Failures += n
		if m.Outcomes == nil {
			m.Outcomes = map[string]uint64{}
		}
		m.Outcomes[mesh.Outcome(i).String()] = n
	}
	e.eachStatus(func(code int, n uint64) {
		if m.Statuses == nil {
			m.Statuses = map[uint32]uint64{}
		}
		m.Statuses[uint32(code)] = n
	})
	return m
}

// rss returns the resident memory of the process in bytes (proc_pid_statm(5)).
func rss() uint64 {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(b))
	if len(fields) < 2 {
		return 0
	}
	pages, err := strconv.ParseUint(fields[1], 10, 64)
	if err != nil {
		return 0
	}
	return pages * uint64(os.Getpagesize())
}
