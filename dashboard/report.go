package dashboard

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/tulle-mesh/tulle/mesh"
)

// report is a checked tullev1.Report, decoded from where it lies: a thousand
// proxies send so many that messages made of them would be most of what the
// process does. Its memory is used again for the next one, so what is kept of a
// report is copied.
type report struct {
	edges     []reading
	proxy     proxyFigures
	endpoints []endpoint
	verdicts  []verdict

	cells    []cell
	outcomes []tallied[string]
	statuses []tallied[uint32]
	counts   []uint64 // of one histogram
	words    words
}

// reading is one edge of a report: cumulative since the proxy's start.
type reading struct {
	number   uint32 // that stands for the key on this stream; 0: none
	key      edgeKey
	counts   counts
	open     uint64
	latency  sparse // the buckets that changed
	outcomes tally[string]
	statuses tally[uint32]
}

// hasKey tells whether the edge came with its key: every key says how secure it is.
func (r *reading) hasKey() bool { return r.key.security != "" }

// proxyFigures is what a proxy says about itself.
type proxyFigures struct {
	stats
	said         bool // of several reports at once, only the last has it
	notAfterUnix int64
	authority    []byte // until the next read
}

// words holds each string only once, of the many proxies that say it.
type words map[string]string

const maxWords = 64 << 10

func (w words) of(b []byte) (string, error) {
	if len(b) > maxName {
		return "", fmt.Errorf("%q: a label is too long", cut(string(b), maxName))
	}
	if word, ok := w[string(b)]; ok { // does not allocate
		return word, nil
	}
	if !utf8.Valid(b) {
		return "", errors.New("a label is not UTF-8")
	}
	if len(w) >= maxWords { // who uses one goes on using it
		clear(w)
	}
	word := string(b)
	w[word] = word
	return word, nil
}

// identity is of for a SPIFFE ID, which may be longer. Those are rare, and not kept.
func (w words) identity(b []byte) (string, error) {
	if len(b) <= maxName {
		return w.of(b)
	}
	if len(b) > maxIdentity || !utf8.Valid(b) {
		return "", errors.New("an identity is too long, or not UTF-8")
	}
	return string(b), nil
}

var errMalformed = errors.New("a report is not encoded as it should be")

// field is one field of an encoded message: a number, or the bytes of a string,
// a message or packed numbers.
type field struct {
	number protowire.Number
	value  uint64
	bytes  []byte
}

// What is expected of the fields of each message, by their numbers: varints,
// bytes, doubles, numbers (packed or not).
const (
	reportFields    = "bbbb"
	edgeFields      = "vbbbbbbvvvvvbbbv"
	histogramFields = "nn"
	outcomeFields   = "bv"
	statusFields    = "vv"
	proxyFields     = "vvvvb"
	endpointFields  = "bbbdvv"
	verdictFields   = "bbbb"
)

// fields goes over an encoded message (protobuf.dev/programming-guides/encoding).
type fields struct {
	rest  []byte
	kinds string // what is beyond that is passed over
	field
	err error
}

func (f *fields) next() bool {
	for len(f.rest) > 0 && f.err == nil {
		number, kind, n := protowire.ConsumeTag(f.rest)
		if n < 0 {
			f.err = errMalformed
			break
		}
		f.rest, f.field = f.rest[n:], field{number: number}
		expected := byte('?')
		if int(number) <= len(f.kinds) {
			expected = f.kinds[number-1]
		}
		switch {
		case kind == protowire.VarintType && (expected == 'v' || expected == 'n'):
			f.value, n = protowire.ConsumeVarint(f.rest)
		case kind == protowire.BytesType && (expected == 'b' || expected == 'n'):
			f.bytes, n = protowire.ConsumeBytes(f.rest)
		case kind == protowire.Fixed64Type && expected == 'd':
			f.value, n = protowire.ConsumeFixed64(f.rest)
		case expected == '?': // of a newer proxy
			n = protowire.ConsumeFieldValue(number, kind, f.rest)
		default:
			n = -1
		}
		if n < 0 {
			f.err = errMalformed
			break
		}
		f.rest = f.rest[n:]
		if expected != '?' {
			return true
		}
	}
	return false
}

// read decodes a report; the last one is gone, even if this one is in error.
func (r *report) read(b []byte) error {
	if r.words == nil {
		r.words = words{}
	}
	r.edges, r.endpoints, r.verdicts, r.proxy = r.edges[:0], r.endpoints[:0], r.verdicts[:0], proxyFigures{}
	r.cells, r.outcomes, r.statuses = r.cells[:0], r.outcomes[:0], r.statuses[:0]
	all := fields{rest: b, kinds: reportFields}
	for all.next() {
		var err error
		switch all.number {
		case 1:
			err = r.readEdge(all.bytes)
		case 2:
			err = r.readProxy(all.bytes)
		case 3:
			err = r.readEndpoint(all.bytes)
		case 4:
			err = r.readVerdict(all.bytes)
		}
		if err != nil {
			return err
		}
	}
	return all.err
}

func (r *report) readEdge(b []byte) (err error) {
	if len(r.edges) == maxReportEdges {
		return fmt.Errorf("report with more than %d edges", maxReportEdges)
	}
	e := reading{}
	outcomes, statuses := len(r.outcomes), len(r.statuses)
	f := fields{rest: b, kinds: edgeFields}
	for f.next() && err == nil {
		switch f.number {
		case 1:
			e.key.inbound = f.value != 0
		case 2:
			e.key.service, err = r.words.of(f.bytes)
		case 3:
			e.key.peerIdentity, err = r.words.identity(f.bytes)
		case 4:
			e.key.peerWorkload, err = r.words.of(f.bytes)
		case 5:
			e.key.peerAddress, err = r.words.of(f.bytes)
		case 6:
			e.key.security, err = r.words.of(f.bytes)
		case 7:
			e.key.protocol, err = r.words.of(f.bytes)
		case 8:
			e.counts.requests = f.value
		case 9:
			e.counts.failures = f.value
		case 10:
			e.open = f.value
		case 11:
			e.counts.sent = f.value
		case 12:
			e.counts.received = f.value
		case 13:
			if e.latency != nil {
				err = errMalformed
				break
			}
			e.latency, err = r.readHistogram(f.bytes)
		case 14:
			if len(r.outcomes)-outcomes >= maxOutcomes {
				err = fmt.Errorf("more than %d outcomes", maxOutcomes)
				break
			}
			err = r.readOutcome(f.bytes)
		case 15:
			if len(r.statuses)-statuses >= maxReportCodes {
				err = fmt.Errorf("more than %d statuses", maxReportCodes)
				break
			}
			err = r.readStatus(f.bytes)
		case 16:
			e.number = uint32(f.value)
		}
	}
	if err = cmp.Or(err, f.err); err != nil {
		return fmt.Errorf("edge to %q: %w", e.key.service, err)
	}
	if e.outcomes, err = ascending(r.outcomes[outcomes:]); err == nil {
		e.statuses, err = ascending(r.statuses[statuses:])
	}
	if err = cmp.Or(err, e.check()); err != nil {
		return fmt.Errorf("edge to %q: %w", e.key.service, err)
	}
	r.edges = append(r.edges, e)
	return nil
}

func (r *reading) check() error {
	if max(r.counts.requests, r.counts.failures, r.counts.sent, r.counts.received, r.open) > maxCounter {
		return fmt.Errorf("a counter beyond %d", uint64(maxCounter))
	}
	if r.number > maxReportEdges {
		return fmt.Errorf("number %d; at most %d are allowed", r.number, maxReportEdges)
	}
	if !r.hasKey() && r.number > 0 {
		return nil // it came earlier
	}
	return r.key.check()
}

func (r *report) readOutcome(b []byte) error {
	outcome := tallied[string]{}
	f := fields{rest: b, kinds: outcomeFields}
	for f.next() {
		switch f.number {
		case 1:
			var err error
			if outcome.key, err = r.words.of(f.bytes); err != nil {
				return err
			}
		case 2:
			outcome.n = f.value
		}
	}
	if len(outcome.key) > maxWord || outcome.n > maxCounter {
		return fmt.Errorf("outcome %q out of bounds", cut(outcome.key, maxWord))
	}
	r.outcomes = append(r.outcomes, outcome)
	return f.err
}

func (r *report) readStatus(b []byte) error {
	var status, n uint64
	f := fields{rest: b, kinds: statusFields}
	for f.next() {
		switch f.number {
		case 1:
			status = f.value
		case 2:
			n = f.value
		}
	}
	if status > 999 || n > maxCounter {
		return fmt.Errorf("status %d out of bounds", status)
	}
	r.statuses = append(r.statuses, tallied[uint32]{uint32(status), n})
	return f.err
}

// readHistogram takes buckets in any order but each only once.
func (r *report) readHistogram(b []byte) (sparse, error) {
	start := len(r.cells)
	r.counts = r.counts[:0]
	f := fields{rest: b, kinds: histogramFields}
	for f.next() {
		var err error
		switch f.number {
		case 1:
			err = numbers(f.field, func(bucket uint64) error {
				if bucket >= mesh.Buckets || len(r.cells)-start == mesh.Buckets {
					return fmt.Errorf("histogram bucket %d: out of bounds", bucket)
				}
				r.cells = append(r.cells, cell{bucket: uint16(bucket)})
				return nil
			})
		case 2:
			err = numbers(f.field, func(count uint64) error {
				if count > maxCounter || len(r.counts) == mesh.Buckets {
					return fmt.Errorf("histogram count %d: out of bounds", count)
				}
				r.counts = append(r.counts, count)
				return nil
			})
		}
		if err != nil {
			return nil, err
		}
	}
	cells := sparse(r.cells[start:len(r.cells):len(r.cells)])
	if len(cells) != len(r.counts) {
		return nil, fmt.Errorf("histogram with %d buckets and %d counts", len(cells), len(r.counts))
	}
	for i, n := range r.counts {
		cells[i].count = n
	}
	byBucket := func(a, b cell) int { return int(a.bucket) - int(b.bucket) }
	if !slices.IsSortedFunc(cells, byBucket) {
		slices.SortFunc(cells, byBucket)
	}
	for i := 1; i < len(cells); i++ {
		if cells[i].bucket == cells[i-1].bucket {
			return nil, fmt.Errorf("histogram bucket %d is there twice", cells[i].bucket)
		}
	}
	return cells, f.err
}

// numbers calls do for each of a repeated field's numbers, packed or not.
func numbers(f field, do func(uint64) error) error {
	if f.bytes == nil {
		return do(f.value)
	}
	for b := f.bytes; len(b) > 0; {
		v, n := protowire.ConsumeVarint(b)
		if n < 0 {
			return errMalformed
		}
		if err := do(v); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// ascending sorts what came in any order; each key may come only once.
func ascending[K interface{ ~string | ~uint32 }](list []tallied[K]) (tally[K], error) {
	t := tally[K](list[:len(list):len(list)])
	slices.SortFunc(t, tallied[K].compare)
	for i := 1; i < len(t); i++ {
		if t[i].key == t[i-1].key {
			return nil, fmt.Errorf("%v is counted twice", t[i].key)
		}
	}
	return t, nil
}

func (r *report) readProxy(b []byte) error {
	p := proxyFigures{said: true}
	f := fields{rest: b, kinds: proxyFields}
	for f.next() {
		switch f.number {
		case 1:
			p.notAfterUnix = int64(f.value)
		case 2:
			p.rss = f.value
		case 3:
			p.connections = uint32(f.value)
		case 4:
			p.watched = uint32(f.value)
		case 5:
			p.authority = f.bytes
		}
	}
	r.proxy = p
	return f.err
}

// endpoint is the balancer's view of one replica, as one proxy has it.
type endpoint struct {
	service, workload, address string
	ewmaMicros                 float64
	inFlight                   uint32
	ready                      bool
}

func (r *report) readEndpoint(b []byte) (err error) {
	if len(r.endpoints) == maxEndpoints {
		return fmt.Errorf("report with more than %d endpoints", maxEndpoints)
	}
	e := endpoint{}
	f := fields{rest: b, kinds: endpointFields}
	for f.next() && err == nil {
		switch f.number {
		case 1:
			e.service, err = r.words.of(f.bytes)
		case 2:
			e.workload, err = r.words.of(f.bytes)
		case 3:
			e.address, err = r.words.of(f.bytes)
		case 4:
			e.ewmaMicros = math.Float64frombits(f.value)
		case 5:
			e.inFlight = uint32(f.value)
		case 6:
			e.ready = f.value != 0
		}
	}
	switch err = cmp.Or(err, f.err); {
	case err != nil:
	case len(e.address) > maxAddress:
		err = errors.New("a label is too long")
	case !(e.ewmaMicros >= 0 && e.ewmaMicros <= maxCounter): // also refuses NaN, which JSON cannot say
		err = fmt.Errorf("ewma %g out of bounds", e.ewmaMicros)
	}
	if err != nil {
		return fmt.Errorf("endpoint of %q: %w", e.service, err)
	}
	r.endpoints = append(r.endpoints, e)
	return nil
}

// verdict is what a proxy takes a destination's connections to speak.
type verdict struct{ address, service, protocol, reason string }

func (r *report) readVerdict(b []byte) (err error) {
	if len(r.verdicts) == maxVerdicts {
		return fmt.Errorf("report with more than %d verdicts", maxVerdicts)
	}
	v := verdict{}
	f := fields{rest: b, kinds: verdictFields}
	for f.next() && err == nil {
		switch f.number {
		case 1:
			v.address, err = r.words.of(f.bytes)
		case 2:
			v.service, err = r.words.of(f.bytes)
		case 3:
			v.protocol, err = r.words.of(f.bytes)
		case 4:
			v.reason, err = r.words.of(f.bytes)
		}
	}
	if err = cmp.Or(err, f.err); err == nil && (len(v.address) > maxAddress || len(v.protocol) > maxWord) {
		err = errors.New("a label is too long")
	}
	if err != nil {
		return fmt.Errorf("verdict on %q: %w", v.service, err)
	}
	r.verdicts = append(r.verdicts, v)
	return nil
}
