package dashboard

import (
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
	"github.com/tulle-mesh/tulle/mesh"
)

const (
	maxTaps       = 32
	tapQueue      = 256  // events that wait for one slow reader; more are counted as dropped
	tapRate       = 50   // events per second that a reader gets if it does not say
	maxTapRate    = 1000 // and at most
	tapRateFactor = 10   // proxies send this much more than wanted, since they do not know the filters
)

// Event is one exchange as tap shows it.
type Event struct {
	Time           time.Time `json:"time"`
	Source         string    `json:"source"`
	SourceWorkload string    `json:"source_workload,omitempty"`
	SourceIdentity string    `json:"source_identity,omitempty"`
	SourceAddress  string    `json:"source_address,omitempty"`
	Service        string    `json:"service"`
	Workload       string    `json:"workload,omitempty"`
	Address        string    `json:"address,omitempty"`
	Identity       string    `json:"identity,omitempty"`
	Protocol       string    `json:"protocol"`
	Security       string    `json:"security"`
	Outcome        string    `json:"outcome"`
	Status         uint32    `json:"status,omitempty"`
	Method         string    `json:"method,omitempty"`
	Host           string    `json:"host,omitempty"`
	Path           string    `json:"path,omitempty"`
	FirstByte      float64   `json:"first_byte_s"`
	Duration       float64   `json:"duration_s"`
	Sent           uint64    `json:"bytes_sent"`
	Received       uint64    `json:"bytes_received"`
	Dropped        uint64    `json:"dropped,omitempty"` // events left out before this one
}

// Filter says which events a reader wants. The zero Filter wants all.
type Filter struct {
	Service    string        // or workload, called or calling
	Client     string        // calling service, identity or address
	Method     string        // any case
	PathPrefix string        //
	Status     string        // "503", "5xx", or "failed": every outcome but success
	SlowerThan time.Duration //
	MaxRate    int           // events per second; 0: 50
}

func (f Filter) wants(e *Event) bool {
	return (f.Service == "" || means(f.Service, e.Service, e.Source, e.Workload, e.SourceWorkload)) &&
		(f.Client == "" || means(f.Client, e.Source, e.SourceIdentity, e.SourceAddress, e.SourceWorkload)) &&
		(f.Method == "" || strings.EqualFold(f.Method, e.Method)) &&
		strings.HasPrefix(e.Path, f.PathPrefix) &&
		f.wantsStatus(e) &&
		e.Duration >= f.SlowerThan.Seconds()
}

func (f Filter) wantsStatus(e *Event) bool {
	switch {
	case f.Status == "":
		return true
	case f.Status == "failed":
		return e.Outcome != mesh.Success.String()
	case strings.HasSuffix(f.Status, "xx"):
		return strconv.Itoa(int(e.Status/100)) == f.Status[:1]
	}
	return strconv.Itoa(int(e.Status)) == f.Status
}

// Validate reports why the filter makes no sense.
func (f Filter) Validate() error {
	if f.Status != "" && f.Status != "failed" && !statusPattern.MatchString(f.Status) {
		return fmt.Errorf("status=%s: must be a status like 503, a class like 5xx, or failed", cut(f.Status, maxWord))
	}
	if f.MaxRate < 0 || f.MaxRate > maxTapRate {
		return fmt.Errorf("max=%d: must be between 1 and %d events per second", f.MaxRate, maxTapRate)
	}
	if f.SlowerThan < 0 {
		return fmt.Errorf("min_ms: must not be negative")
	}
	return nil
}

var statusPattern = regexp.MustCompile(`^[1-9]([0-9]{2}|xx)$`)

// taps fans the proxies' tap events out to readers, and keeps the proxies
// sending only while there is a reader.
type taps struct {
	mu        sync.Mutex
	readers   map[*tap]struct{}
	listeners map[*listener]struct{}
	wanted    instruction
	pace      time.Duration // at which proxies are to report
}

// instruction is what every proxy should be doing; rate 0 is nothing.
type instruction struct {
	id   uint64
	rate uint32
}

// tap is one reader's.
type tap struct {
	filter  Filter
	take    func(*Event) // instead of events
	events  chan Event
	second  int64 // guarded by taps.mu, as all below
	sent    int
	dropped uint64
}

// tapClient is the proxy an event came from.
type tapClient struct {
	id       mesh.ID
	service  string // what it belongs to
	workload string
}

// listener is a proxy that is told what to do. There is a goroutine for it only
// while there is something to tell: of a thousand, waiting would cost memory.
type listener struct {
	send func(*tullev1.ControlMessage) error

	busy    bool // guarded by taps.mu
	telling sync.WaitGroup

	doing instruction   // what it was told; only the goroutine that tells uses these
	pace  time.Duration //
}

func newTaps() *taps {
	return &taps{readers: map[*tap]struct{}{}, listeners: map[*listener]struct{}{}, pace: usualPace}
}

// listen tells a proxy what to do, now and whenever that changes, until the
// caller ends it, which waits until nothing is sent any more: sends must fail by then.
func (t *taps) listen(send func(*tullev1.ControlMessage) error) (end func()) {
	l := &listener{send: send, pace: usualPace}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.listeners[l] = struct{}{}
	t.wakeLocked(l)
	return func() {
		t.mu.Lock()
		delete(t.listeners, l)
		t.mu.Unlock()
		l.telling.Wait()
	}
}

func (t *taps) wakeLocked(l *listener) {
	if !l.busy {
		l.busy = true
		l.telling.Go(func() { t.tell(l) })
	}
}

func (t *taps) wakeAllLocked() {
	for l := range t.listeners {
		t.wakeLocked(l)
	}
}

// setPace asks all proxies to report that often.
func (t *taps) setPace(pace time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pace = pace
	t.wakeAllLocked()
}

// tell sends what the listener does not know yet.
func (t *taps) tell(l *listener) {
	for {
		t.mu.Lock()
		wanted, pace := t.wanted, t.pace
		if wanted.id == l.doing.id && pace == l.pace {
			l.busy = false
			t.mu.Unlock()
			return
		}
		t.mu.Unlock()
		for _, m := range l.messages(wanted, pace) {
			if l.send(m) != nil {
				return // busy for ever: it is gone
			}
		}
		l.doing, l.pace = wanted, pace
	}
}

// messages ask for what is wanted. A new tap starts before the old one stops, so
// that nothing is missed between.
func (l *listener) messages(wanted instruction, pace time.Duration) (list []*tullev1.ControlMessage) {
	if pace != l.pace {
		list = append(list, &tullev1.ControlMessage{Message: &tullev1.ControlMessage_Pace{Pace: &tullev1.Pace{ReportEveryMs: uint32(pace.Milliseconds())}}})
	}
	if wanted.id == l.doing.id {
		return list
	}
	if wanted.rate > 0 {
		start := &tullev1.TapStart{Id: wanted.id, MaxPerSecond: wanted.rate}
		list = append(list, &tullev1.ControlMessage{Message: &tullev1.ControlMessage_TapStart{TapStart: start}})
	}
	if l.doing.rate > 0 {
		list = append(list, &tullev1.ControlMessage{Message: &tullev1.ControlMessage_TapStop{TapStop: &tullev1.TapStop{Id: l.doing.id}}})
	}
	return list
}

// open adds a reader; false when there are too many.
func (t *taps) open(filter Filter) (*tap, bool) {
	if filter.MaxRate <= 0 {
		filter.MaxRate = tapRate
	}
	filter.MaxRate = min(filter.MaxRate, maxTapRate)
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.readers) >= maxTaps {
		return nil, false
	}
	reader := &tap{filter: filter, events: make(chan Event, tapQueue)}
	t.readers[reader] = struct{}{}
	t.instructLocked()
	return reader, true
}

// follow adds a reader that takes each event while t is locked.
func (t *taps) follow(filter Filter, take func(*Event)) *tap {
	t.mu.Lock()
	defer t.mu.Unlock()
	reader := &tap{filter: filter, take: take}
	t.readers[reader] = struct{}{}
	t.instructLocked()
	return reader
}

func (t *taps) close(reader *tap) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.readers, reader)
	t.instructLocked()
}

// instructLocked publishes a new instruction if the readers need one.
func (t *taps) instructLocked() {
	rate := 0
	for r := range t.readers {
		rate = max(rate, r.filter.MaxRate*tapRateFactor)
	}
	rate = min(rate, maxTapRate)
	if t.wanted.rate != uint32(rate) {
		t.wanted = instruction{id: t.wanted.id + 1, rate: uint32(rate)}
		t.wakeAllLocked()
	}
}

// publish hands a proxy's event to the readers that want it. An exchange
// between two meshed workloads is seen by both proxies and shown once, as its
// client's saw it.
func (t *taps) publish(from tapClient, m *tullev1.TapEvent, hosts []netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.readers) == 0 {
		return
	}
	show := !m.Inbound || m.ClientIdentity == ""
	var e Event
	if show {
		e = eventOf(from, m, hosts)
	}
	now := time.Now().Unix()
	for r := range t.readers {
		r.dropped = add(r.dropped, min(m.Dropped, maxCounter))
		switch {
		case !show || !r.filter.wants(&e):
		case r.take != nil:
			seen := e
			seen.Dropped, r.dropped = r.dropped, 0
			r.take(&seen)
		default:
			r.offer(e, now)
		}
	}
}

// offer queues the event unless the reader had its share of this second.
func (r *tap) offer(e Event, second int64) {
	if r.second != second {
		r.second, r.sent = second, 0
	}
	e.Dropped = r.dropped
	if r.sent < r.filter.MaxRate {
		select {
		case r.events <- e:
			r.sent++
			r.dropped = 0
			return
		default:
		}
	}
	r.dropped++
}

func eventOf(from tapClient, m *tullev1.TapEvent, hosts []netip.Addr) Event {
	e := Event{
		Time:          time.UnixMicro(min(max(m.StartUnixMicros, 0), maxUnix*1e6)).UTC(),
		SourceAddress: cut(m.ClientAddress, maxAddress),
		Service:       cut(m.Service, maxName), Workload: cut(m.ServerWorkload, maxName),
		Address: cut(m.ServerAddress, maxAddress), Identity: cut(m.ServerIdentity, maxName),
		Protocol: cut(m.Protocol, maxWord), Security: cut(m.Security, maxWord), Outcome: cut(m.Outcome, maxWord),
		Status: m.Status, Method: cut(m.Method, maxWord), Host: cut(m.Host, maxName), Path: cut(m.Path, maxPath),
		FirstByte: float64(min(m.FirstByteMicros, maxCounter)) / 1e6, Duration: float64(min(m.DurationMicros, maxCounter)) / 1e6,
		Sent: min(m.BytesSent, maxCounter), Received: min(m.BytesReceived, maxCounter),
	}
	if m.Inbound {
		e.Source, _ = callerName(m.ClientAddress, hosts)
		e.Workload, e.Identity = from.workload, from.id.String()
	} else {
		e.Source, e.SourceWorkload, e.SourceIdentity = from.service, from.workload, from.id.String()
	}
	if e.Service == "" {
		e.Service = e.Address
	}
	return e
}
