package dashboard

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
	"github.com/tulle-mesh/tulle/mesh"
)

// Collector serves tullev1.Telemetry and keeps what the proxies report, in
// bounded memory. Many goroutines may use it; it starts none that outlives an
// Attach.
type Collector struct {
	tullev1.UnimplementedTelemetryServer

	config Config
	began  time.Time
	taps   *taps

	mu       sync.Mutex
	records  map[recordKey]*record
	retired  map[mesh.ID]*record // totals of records let go, one per identity
	sessions uint64              // the last session's number
	swept    time.Time
}

type recordKey struct {
	id       mesh.ID
	workload string
}

// errReplaced ends the stream of a proxy that another took over from.
var errReplaced = status.Error(codes.Aborted, "another proxy of this workload has attached")

// NewCollector returns an empty Collector.
func NewCollector(config Config) (*Collector, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	return &Collector{
		config:  config.withDefaults(),
		began:   time.Now(),
		taps:    newTaps(),
		records: map[recordKey]*record{},
		retired: map[mesh.ID]*record{},
	}, nil
}

// Attach takes one proxy's reports until its stream ends.
func (c *Collector) Attach(stream tullev1.Telemetry_AttachServer) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	id, err := c.config.PeerID(ctx)
	if err != nil {
		return status.Error(codes.Unauthenticated, err.Error())
	}
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	hello := first.GetHello()
	if err := checkHello(hello); err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	s, err := c.attach(ctx, id, hello)
	if err != nil {
		return err
	}
	said := false
	defer func() { c.detach(s, said) }()

	var control sync.WaitGroup
	control.Go(func() { c.taps.instruct(ctx, stream.Send) })
	defer control.Wait()
	defer cancel()
	err = c.receive(stream, s)
	said = err == nil
	return err
}

// session is one Attach of a proxy.
type session struct {
	number uint64
	record *record
	client tapClient
}

func (c *Collector) receive(stream tullev1.Telemetry_AttachServer, s session) error {
	var pace pace
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch m := m.Message.(type) {
		case *tullev1.ProxyMessage_Report:
			if err := c.report(s, m.Report); err != nil {
				return err
			}
			if err := pace.wait(stream.Context()); err != nil {
				return err
			}
		case *tullev1.ProxyMessage_Tap:
			c.taps.publish(s.client, m.Tap, c.config.HostAddresses)
		case *tullev1.ProxyMessage_Hello:
			return status.Error(codes.InvalidArgument, "Hello may only be sent once")
		}
	}
}

const (
	reportEvery = 200 * time.Millisecond // proxies report each second
	reportBurst = 10 * reportEvery
)

// pace holds back a proxy that reports too often by not reading on; gRPC's
// flow control does the rest.
type pace struct{ due time.Time }

func (p *pace) wait(ctx context.Context) error {
	now := time.Now()
	if earliest := now.Add(-reportBurst); p.due.Before(earliest) {
		p.due = earliest
	}
	p.due = p.due.Add(reportEvery)
	if !p.due.After(now) {
		return nil
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(p.due.Sub(now)):
		return nil
	}
}

// attach begins a session for the proxy, on its old record if there is one.
func (c *Collector) attach(ctx context.Context, id mesh.ID, hello *tullev1.Hello) (session, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	c.sweepLocked(now)
	key := recordKey{id, hello.Workload}
	r := c.records[key]
	if r == nil {
		if len(c.records) >= c.config.MaxProxies && !c.retireOldestLocked() {
			return session{}, status.Error(codes.ResourceExhausted, fmt.Sprintf("%d proxies are attached already", len(c.records)))
		}
		r = newRecord(id, hello.Workload, now)
		c.records[key] = r
	}
	if r.start != hello.StartUnixMs {
		r.rebase()
	}
	c.sessions++
	r.session, r.start, r.version, r.redirect = c.sessions, hello.StartUnixMs, hello.Version, hello.Redirect
	r.attached, r.heard = now, time.Time{}
	r.address, r.cert = peerFacts(ctx, r.cert)
	c.config.Log.Info("proxy attached", "workload", r.workload, "identity", id.String(), "version", r.version)
	return session{c.sessions, r, tapClient{id: id, workload: r.workload}}, nil
}

// detach ends a session; said tells whether the proxy said that it would go.
func (c *Collector) detach(s session, said bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.record.session == s.number {
		s.record.end(time.Now(), said)
		c.config.Log.Info("proxy gone", "workload", s.record.workload, "said", said)
	}
}

func (c *Collector) report(s session, report *tullev1.Report) error {
	readings, err := readReport(report)
	if err != nil {
		return c.refuse(s, err)
	}
	endpoints, err := readEndpoints(report.Endpoints)
	if err != nil {
		return c.refuse(s, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	r := s.record
	if r.session != s.number {
		return errReplaced
	}
	now := time.Now()
	c.sweepLocked(now)
	r.take(readings, now, c.config.MaxEdges)
	r.endpoints = endpoints
	if p := report.Proxy; p != nil {
		r.stats = stats{rss: p.RssBytes, connections: p.OpenConnections, watched: p.WatchedDestinations}
		r.cert.renew(p.CertNotAfterUnix)
	}
	return nil
}

func (c *Collector) refuse(s session, err error) error {
	c.config.Log.Warn("report refused", "workload", s.record.workload, "err", err)
	return status.Error(codes.InvalidArgument, err.Error())
}

// sweepLocked folds records whose proxy has been gone for longer than the
// window into their identity's totals, at most once a second.
func (c *Collector) sweepLocked(now time.Time) {
	if now.Sub(c.swept) < time.Second {
		return
	}
	c.swept = now
	for key, r := range c.records {
		if r.session == 0 && now.Sub(r.gone) > keep {
			c.retireLocked(key, r)
		}
	}
}

// retireOldestLocked makes room; it fails while every proxy is attached.
func (c *Collector) retireOldestLocked() bool {
	var oldest *record
	for _, r := range c.records {
		if r.session == 0 && (oldest == nil || r.gone.Before(oldest.gone)) {
			oldest = r
		}
	}
	if oldest == nil {
		return false
	}
	c.retireLocked(recordKey{oldest.id, oldest.workload}, oldest)
	return true
}

func (c *Collector) retireLocked(key recordKey, r *record) {
	delete(c.records, key)
	id := r.id
	if c.retired[id] == nil && len(c.retired) >= c.config.MaxProxies {
		id = mesh.ID{TrustDomain: id.TrustDomain, Namespace: "default", Account: other}
	}
	if c.retired[id] == nil {
		c.retired[id] = newRecord(id, "", r.created)
	}
	c.retired[id].fold(r, c.config.MaxEdges)
}

// certificate is what is known of the one a proxy holds.
type certificate struct {
	issuer    string
	serial    string
	notBefore time.Time // of the one it attached with
	notAfter  time.Time
	renewals  int
}

// renew notes the expiry that a proxy reports; a later one is a renewal.
func (c *certificate) renew(notAfterUnix int64) {
	if notAfterUnix <= 0 || notAfterUnix > maxUnix {
		return
	}
	notAfter := time.Unix(notAfterUnix, 0)
	if !c.notAfter.IsZero() && notAfter.After(c.notAfter) {
		c.renewals++
		c.serial, c.notBefore = "", time.Time{} // of the old one
	}
	c.notAfter = notAfter
}

// maxUnix is the year 9999, beyond which RFC 3339 cannot say a time.
const maxUnix = 253402300799

// peerFacts reads the caller's address and certificate from its connection.
func peerFacts(ctx context.Context, before certificate) (address string, cert certificate) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return "", before
	}
	address = hostOf(p.Addr.String())
	if info, ok := p.AuthInfo.(credentials.TLSInfo); ok && len(info.State.PeerCertificates) > 0 {
		return address, factsOf(info.State.PeerCertificates[0], before)
	}
	return address, before
}

func factsOf(leaf *x509.Certificate, before certificate) certificate {
	facts := certificate{
		issuer:    leaf.Issuer.String(),
		serial:    fmt.Sprintf("%x", leaf.SerialNumber),
		notBefore: leaf.NotBefore,
		notAfter:  leaf.NotAfter,
		renewals:  before.renewals,
	}
	if !before.notAfter.IsZero() && leaf.NotAfter.After(before.notAfter) {
		facts.renewals++
	}
	return facts
}
