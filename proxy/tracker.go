package proxy

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/tulle-mesh/tulle/proxy/mux"
	"github.com/tulle-mesh/tulle/proxy/tcp"
)

// tracker knows every accepted connection: for coarse limits of time, which
// need no timer of their own, and for draining.
type tracker struct {
	clock    atomic.Int64 // seconds since the start, advanced by tick
	count    atomic.Int64
	turnover atomic.Int64 // connections that came or went since changes was asked
	draining atomic.Bool
	crowded  chan struct{} // has room for one; told when there is a crowd
	// parkAfter is how long a connection has to be still to be parked.
	parkAfter time.Duration

	mu     sync.Mutex
	awake  trackedList
	parked trackedList
	over   bool // the drain has ended
}

// accepted is a connection that came to the proxy: TCP, or a stream of a link.
type accepted interface {
	byteConn
	Reset()
	SetReadDeadline(t time.Time) error
}

// trackedList is a list without a node of its own for each connection, and which
// keeps no room for those that are over.
type trackedList struct {
	first *tracked
	n     int
}

func (l *trackedList) add(tr *tracked) {
	if tr.next, tr.prev = l.first, nil; tr.next != nil {
		tr.next.prev = tr
	}
	l.first = tr
	l.n++
}

func (l *trackedList) remove(tr *tracked) {
	if tr.prev != nil {
		tr.prev.next = tr.next
	} else {
		l.first = tr.next
	}
	if tr.next != nil {
		tr.next.prev = tr.prev
	}
	l.n--
}

func (l *trackedList) each(f func(*tracked)) {
	for tr := l.first; tr != nil; tr = tr.next {
		f(tr)
	}
}

// tracked is one accepted connection.
type tracked struct {
	conn   accepted
	owner  *tracker
	far    atomic.Pointer[tcp.Conn]   // what is dialled for it; goes down with it
	stream atomic.Pointer[mux.Stream] // the same where it is a stream

	mu          sync.Mutex
	deadline    int64 // of the tracker's clock; 0: none
	idle        bool  // nothing is under way: may be closed at any time
	interrupted bool
	asked       bool          // to park
	turns       uint32        // how often it became idle
	seen        uint32        // turns, when it was looked at last
	still       time.Duration // since when turns is seen
	naps        uint8         // short ones in a row
	since       int64         // of the tracker's clock: when it was parked
	parker      parker        // nil: it can't be parked
	guest       bool          // without an identity, in a workload that policy has let it into

	next, prev *tracked // in the list of those that are awake, or parked
	isParked   bool     // which of them
}

// init is called before anything else.
func (t *tracker) init(parkAfter time.Duration) {
	t.parkAfter = parkAfter
	t.crowded = make(chan struct{}, 1)
}

func (t *tracker) add(c accepted) *tracked {
	tr := &tracked{conn: c, owner: t}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over {
		c.Reset() // accepted just before the listeners were closed
	}
	t.awake.add(tr)
	t.crowdedLocked()
	t.count.Add(1)
	t.turnover.Add(1)
	return tr
}

func (t *tracker) remove(tr *tracked) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.listLocked(tr).remove(tr)
	t.count.Add(-1)
	t.turnover.Add(1)
}

func (t *tracker) listLocked(tr *tracked) *trackedList {
	if tr.isParked {
		return &t.parked
	}
	return &t.awake
}

// move notes whether the connection is parked.
func (t *tracker) move(tr *tracked, parked bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if tr.isParked == parked {
		return
	}
	t.listLocked(tr).remove(tr)
	tr.isParked = parked
	t.listLocked(tr).add(tr)
	t.crowdedLocked()
}

// crowdedLocked says so if there is a crowd.
func (t *tracker) crowdedLocked() {
	if t.awake.n > crowd {
		select {
		case t.crowded <- struct{}{}:
		default:
		}
	}
}

// changes returns how many connections came or went since it was called last.
func (t *tracker) changes() int { return int(t.turnover.Swap(0)) }

func (t *tracker) len() int { return int(t.count.Load()) }

// expect sets how long the connection may go on without another call, rounded
// up to seconds; 0 is for ever. idle says that nothing is under way on it.
func (t *tracked) expect(d time.Duration, idle bool) {
	at := int64(0)
	if d > 0 {
		at = t.owner.clock.Load() + int64(d/time.Second) + 1
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.deadline, t.idle = at, idle
	switch {
	case idle && t.owner.draining.Load():
		t.interruptLocked()
	case idle:
		t.turns++
	case t.interrupted || t.asked: // something came just before that
		t.interrupted, t.asked = false, false
		_ = t.conn.SetReadDeadline(time.Time{})
	}
}

// interruptLocked makes what reads from the connection see a timeout.
func (t *tracked) interruptLocked() {
	t.interrupted = true
	if k, ok := t.parker.(*idleConn); ok {
		k.wake()
		return
	}
	_ = t.conn.SetReadDeadline(time.Unix(1, 0))
}

// parks says who can park the connection from now on.
func (t *tracked) parks(p parker) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.parker = p
}

// askLocked makes whoever waits for the next request see a timeout, and be wasAsked,
// once it has waited for long enough: longer, if its naps have been short.
// It reports whether that may be soon.
func (t *tracked) askLocked(now, enough time.Duration) bool {
	switch {
	case !t.idle || t.asked || t.interrupted:
		return false
	case t.turns != t.seen:
		t.seen, t.still = t.turns, now
	case now-t.still >= min(enough<<t.naps, t.owner.parkAfter):
		t.asked = true
		_ = t.conn.SetReadDeadline(time.Unix(1, 0))
	}
	return true
}

// wasAsked reports, once, whether a timeout asks for the connection to be parked.
func (t *tracked) wasAsked() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	asked := t.asked && !t.interrupted
	if t.asked = false; asked {
		_ = t.conn.SetReadDeadline(time.Time{})
	}
	return asked
}

// park makes k the connection's parker, unless it has been interrupted.
func (t *tracked) park(k *idleConn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.interrupted {
		t.interruptLocked() // again: k has lost the deadline
		return false
	}
	t.far.Store(nil) // somebody else's by now
	t.stream.Store(nil)
	t.parker = k
	return true
}

// unpark undoes park. The next read sees what interruption there has been.
func (t *tracked) unpark() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.parker = nil
	if t.interrupted {
		t.interruptLocked()
	}
}

// slept notes that the connection takes no goroutine any more; woke, that it does.
func (t *tracked) slept() {
	t.mu.Lock()
	t.since = t.owner.clock.Load()
	t.mu.Unlock()
	t.owner.move(t, true)
}

func (t *tracked) woke() {
	t.owner.move(t, false)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.napped(t.owner.clock.Load()-t.since <= 1)
}

// stayed notes that the connection could not be parked.
func (t *tracked) stayed() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.napped(true)
}

// napped makes the connection stay awake for longer if to park it was not worth it.
func (t *tracked) napped(short bool) {
	if short {
		t.naps = min(t.naps+1, maxNaps)
	} else {
		t.naps = 0
	}
}

func (t *tracked) isInterrupted() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.interrupted
}

// tick advances the clock to now, interrupts what is overdue, and has parked what
// has been still for long enough.
func (t *tracker) tick(now time.Duration) {
	seconds := int64(now / time.Second)
	t.clock.Store(seconds)
	t.each(func(tr *tracked) {
		tr.mu.Lock()
		defer tr.mu.Unlock()
		if tr.deadline != 0 && tr.deadline <= seconds {
			tr.interruptLocked()
		}
		if tr.parker != nil {
			tr.parker.sweep(now, t.parkAfter)
		}
	})
}

// thin has parked what has been still for a moment if there is a crowd, and reports
// whether it has to look again.
func (t *tracker) thin(now time.Duration) (again bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.awake.n <= crowd {
		return false
	}
	t.awake.each(func(tr *tracked) {
		tr.mu.Lock()
		defer tr.mu.Unlock()
		if tr.parker != nil && tr.parker.sweep(now, min(parkAfterCrowded, t.parkAfter)) {
			again = true
		}
	})
	return again
}

// drain lets exchanges finish for at most patience, then resets what is left.
func (t *tracker) drain(patience time.Duration) {
	t.draining.Store(true)
	t.each(func(tr *tracked) {
		tr.mu.Lock()
		defer tr.mu.Unlock()
		if tr.idle {
			tr.interruptLocked()
		}
	})
	poll := time.NewTicker(10 * time.Millisecond)
	defer poll.Stop()
	for end := time.Now().Add(patience); t.len() > 0 && time.Now().Before(end); {
		<-poll.C
	}
	t.mu.Lock()
	t.over = true
	t.mu.Unlock()
	t.each((*tracked).cut)
}

// cut ends the connection at once, whatever is under way on it.
func (t *tracked) cut() {
	t.conn.Reset()
	if far := t.far.Load(); far != nil {
		far.Reset()
	}
	if s := t.stream.Load(); s != nil {
		s.Reset()
	}
	t.mu.Lock()
	parker := t.parker
	t.mu.Unlock()
	if parker != nil {
		parker.wake()
	}
}

// invite notes whether the connection is that of a client without an identity,
// which lasts no longer than policy lets such clients in.
func (t *tracked) invite(guest bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.guest = guest
}

// shutOut ends the connections of all guests, and returns how many these were.
func (t *tracker) shutOut() int {
	var guests []*tracked
	t.each(func(tr *tracked) {
		tr.mu.Lock()
		defer tr.mu.Unlock()
		if tr.guest {
			guests = append(guests, tr)
		}
	})
	for _, tr := range guests {
		tr.cut()
	}
	return len(guests)
}

// isOver reports whether the drain has ended: nothing goes on from then.
func (t *tracker) isOver() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.over
}

func (t *tracker) each(f func(*tracked)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.awake.each(f)
	t.parked.each(f)
}

func (p *Proxy) draining() bool { return p.conns.draining.Load() }
