package dashboard

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"slices"
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

	config    Config
	began     time.Time
	taps      *taps
	routes    *routes
	inventory mesh.Latest[tullev1.ListResponse] // the newest that anybody asked for

	mu       sync.Mutex
	records  map[recordKey]*record
	retired  map[mesh.ID]*record // totals of records let go, one per identity
	sessions uint64              // the last session's number
	open     openSlices
	heard    report // the last one, whose memory is used again
	history  *history
	sums     columnWriter
	order    []uint64 // of the parts that are being closed
	changes  changes
	pace     time.Duration // at which proxies are to report
	advanced time.Time
	swept    time.Time
	reports  uint64 // taken
	unsaved  []*column

	spool *spool // nil: the history is not kept; only save and its caller use it
}

type recordKey struct {
	id       mesh.ID
	workload string
}

// errReplaced ends the stream of a proxy that another took over from.
var errReplaced = status.Error(codes.Aborted, "another proxy of this workload has attached")

// NewCollector returns a Collector that has what Config.HistoryDir has, else
// nothing.
func NewCollector(config Config) (*Collector, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	config = config.withDefaults()
	c := &Collector{
		config:  config,
		began:   time.Now(),
		taps:    newTaps(),
		records: map[recordKey]*record{},
		retired: map[mesh.ID]*record{},
		history: newHistory(config.HistoryBytes, config.MaxSeries),
	}
	c.routes = newRoutes(c.taps)
	c.open.oldest, c.pace = sliceAt(c.began), usualPace
	if config.HistoryDir != "" {
		next, err := c.history.load(config.HistoryDir, c.open.oldest, config.Log)
		if err != nil {
			return nil, err
		}
		c.open.oldest = max(c.open.oldest, next)
		c.spool = &spool{dir: config.HistoryDir}
	}
	c.inventory.Store(&tullev1.ListResponse{})
	c.changes.add(c.began, Change{Kind: controlStarted, Good: true, Text: "the control plane has started"})
	return c, nil
}

// Attach takes one proxy's reports until its stream ends.
func (c *Collector) Attach(stream tullev1.Telemetry_AttachServer) error {
	ctx := stream.Context()
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

	defer c.taps.listen(stream.Send)()
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

// usualPace is how often proxies report; of a mesh with many, less often.
const usualPace = time.Second

var paces = []struct {
	proxies int // more than so many
	every   time.Duration
}{{500, 5 * time.Second}, {200, 2 * time.Second}, {0, usualPace}}

const (
	// longestGap is how far back a report may reach and still be taken to tell
	// of the slices that are open.
	longestGap = 15 * time.Second
)

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
	r.service = belongsTo(id, hello.Service)
	if r.start != hello.StartUnixMs {
		r.rebase()
		r.counted = now // unless it has run for a while, and nobody knows what it counted when
		if start := time.UnixMilli(hello.StartUnixMs); now.Sub(start) > longestGap {
			r.counted = time.Time{}
		} else if start.Before(now) {
			r.counted = start
		}
	}
	if r.session == 0 && r.connected() && r.start != hello.StartUnixMs {
		c.missLocked(now, r) // this is another process: the old one died
	}
	if r.missed {
		c.changes.add(now, Change{Kind: proxyBack, Good: true, Service: r.service, Workload: r.workload, Text: "the proxy of " + r.workload + " is back"})
	}
	r.missed = false
	c.sessions++
	r.session, r.start, r.version, r.redirect = c.sessions, hello.StartUnixMs, hello.Version, hello.Redirect
	r.attached, r.heard, r.numbered = now, time.Time{}, nil
	r.address, r.cert = peerFacts(ctx, r.cert)
	c.setPaceLocked()
	c.config.Log.Info("proxy attached", "workload", r.workload, "identity", r.name, "version", r.version)
	return session{c.sessions, r, tapClient{id: id, service: r.service, workload: r.workload}}, nil
}

// missLocked notes that a proxy has gone without having said so.
func (c *Collector) missLocked(now time.Time, r *record) {
	r.missed = true
	c.changes.add(now, Change{Kind: proxyLost, Service: r.service, Workload: r.workload, Text: "the proxy of " + r.workload + " is gone without a word"})
}

// detach ends a session; said tells whether the proxy said that it would go. One
// that did not is missed unless it is back soon: see sweepLocked.
func (c *Collector) detach(s session, said bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.record.session == s.number {
		s.record.end(time.Now(), said)
		c.config.Log.Info("proxy gone", "workload", s.record.workload, "said", said)
	}
}

// setPaceLocked asks all proxies to report as often as their number allows.
func (c *Collector) setPaceLocked() {
	for _, p := range paces {
		if len(c.records) > p.proxies {
			if c.pace != p.every {
				c.pace = p.every
				c.taps.setPace(p.every)
			}
			return
		}
	}
}

func (c *Collector) report(s session, encoded []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	report := &c.heard
	if err := report.read(encoded); err != nil {
		return c.refuse(s, err)
	}
	r := s.record
	if r.session != s.number {
		return errReplaced
	}
	now := time.Now()
	c.advanceLocked(now, false)
	c.reports++
	at := interval{from: r.counted, to: now, unplaced: r.counted.IsZero()}
	if at.from.After(now) { // the clock was set back
		at.from = now
	}
	r.take(report.edges, at, &c.open, c.config.MaxEdges)
	r.counted = now
	p := report.proxy
	if p.said || len(report.endpoints)+len(report.verdicts) > 0 {
		r.endpoints = append(r.endpoints[:0], report.endpoints...)
		r.verdicts = append(r.verdicts[:0], report.verdicts...)
	}
	if !p.said {
		return nil
	}
	r.stats = p.stats
	if r.cert.renew(p.notAfterUnix, p.authority) {
		c.changes.add(now, certificateRenewed(r))
	}
	return nil
}

// advanceLocked closes the slices that no report will add to any more. It is
// called with every report, and looks a few times a second at most, or now.
func (c *Collector) advanceLocked(now time.Time, must bool) {
	if since := now.Sub(c.advanced); !must && since >= 0 && since < 250*time.Millisecond {
		return
	}
	c.advanced = now
	c.sweepLocked(now)
	c.routes.expire(now)
	if oldest := sliceAt(now) - keepSlices; c.open.oldest < oldest { // nobody has looked for more than an hour
		c.open.skip(oldest)
	}
	for c.open.oldest < sliceAt(now) && c.completeLocked(c.open.oldest, now) {
		c.closeLocked()
	}
}

// completeLocked tells whether all that is to come has come in for a slice.
func (c *Collector) completeLocked(n int64, now time.Time) bool {
	end := sliceStart(n + 1)
	for _, r := range c.records {
		if r.session != 0 && r.heard.Before(end) && now.Sub(end) < 2*c.pace+time.Second {
			return false
		}
	}
	return true
}

// closeLocked makes a column of what is pending of the oldest slice.
func (c *Collector) closeLocked() {
	p := c.open.take()
	t := newTeller(c.allLocked(), c.config.HostAddresses, c.inventory.Load())
	services := map[string]counts{}
	c.order = c.order[:0]
	for i, part := range p.parts {
		told := c.seriesLocked(t, part.row.living(), p.slice)
		if told.service != "" {
			services[told.service] = services[told.service].plus(p.amount(i).counts)
		}
		for _, id := range told.ids[:told.n] {
			c.order = append(c.order, uint64(id)<<32|uint64(i))
		}
	}
	slices.Sort(c.order)
	for i, o := range c.order {
		id := uint32(o >> 32)
		c.sums.sum.add(p.amount(int(uint32(o))))
		if i+1 == len(c.order) || uint32(c.order[i+1]>>32) != id {
			c.sums.add(id)
		}
	}
	column := c.sums.column(p.slice, 1)
	c.history.push(column)
	if c.spool != nil {
		c.unsaved = append(c.unsaved, column)
	}
	c.changes.seeSlice(p.slice, services)
}

// seriesLocked returns what a row counts for in the slice that is being closed.
func (c *Collector) seriesLocked(t *teller, row *row, slice int64) *closing {
	told := &row.told
	if told.slice == slice {
		return told
	}
	*told = closing{slice: slice}
	f, ok := t.tell(row)
	if !ok {
		return told
	}
	if f.edge.serviceKind == kindService {
		told.service = f.edge.service
	}
	told.ids[0], told.n = c.history.id(seriesKey{edge: f.edge}, slice), 1
	if f.place != (replicaPlace{}) {
		told.ids[1], told.n = c.history.id(seriesKey{replica: f.place}, slice), 2
	}
	return told
}

// save appends to the files what is not in them yet. One goroutine at a time
// may call it.
func (c *Collector) save() {
	if c.spool == nil {
		return
	}
	c.mu.Lock()
	columns, keys := c.unsaved, slices.Clone(c.history.keys)
	c.unsaved = nil
	c.mu.Unlock()
	if err := c.spool.write(columns, keys, time.Now()); err != nil {
		c.config.Log.Warn("the history is not kept", "reason", err)
		_ = c.spool.close() // another file may go better
	}
}

func (c *Collector) endSaving() error {
	if c.spool == nil {
		return nil
	}
	c.Observe(nil, nil) // closes the slices that are whole
	c.save()
	return c.spool.close()
}

// allLocked returns the records, also those of which only totals are left.
func (c *Collector) allLocked() []*record {
	all := make([]*record, 0, len(c.records)+len(c.retired))
	for _, r := range c.records {
		all = append(all, r)
	}
	for _, r := range c.retired {
		all = append(all, r)
	}
	return all
}

func (c *Collector) refuse(s session, err error) error {
	c.config.Log.Warn("report refused", "workload", s.record.workload, "err", err)
	return status.Error(codes.InvalidArgument, err.Error())
}

// sweepLocked notes which proxies are missed, and folds records whose proxy has
// been gone for longer than the window into their identity's totals, at most once
// a second.
func (c *Collector) sweepLocked(now time.Time) {
	if now.Sub(c.swept) < time.Second {
		return
	}
	c.swept = now
	for key, r := range c.records {
		if r.session == 0 && r.connected() && now.Sub(r.gone) >= comeBack {
			c.missLocked(now, r)
		}
		if r.session == 0 && now.Sub(r.gone) > keepGone {
			c.retireLocked(key, r)
			c.setPaceLocked()
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
	authority string // key id of the root that signed it
	serial    string
	notBefore time.Time // of the one it attached with
	notAfter  time.Time
	renewals  int
}

// renew notes the expiry and the root that a proxy reports, and tells whether
// they are of another certificate.
func (c *certificate) renew(notAfterUnix int64, authority []byte) bool {
	if notAfterUnix <= 0 || notAfterUnix > maxUnix {
		return false
	}
	if len(authority) > 0 && len(authority) <= maxWord && c.authority != string(authority) {
		c.authority = string(authority)
	}
	notAfter := time.Unix(notAfterUnix, 0)
	renewed := !c.notAfter.IsZero() && notAfter.After(c.notAfter)
	if renewed {
		c.renewals++
		c.serial, c.notBefore = "", time.Time{} // of the old one
	}
	c.notAfter = notAfter
	return renewed
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
		authority: string(leaf.AuthorityKeyId),
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
