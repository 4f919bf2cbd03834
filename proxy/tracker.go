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

	mu   sync.Mutex
	all  map[*tracked]struct{}
	over bool // the drain has ended
}

// accepted is a connection that came to the proxy: TCP, or a stream of a link.
type accepted interface {
	byteConn
	Reset()
	SetReadDeadline(t time.Time) error
}

// tracked is one accepted connection.
type tracked struct {
	conn   accepted
	owner  *tracker
	far    atomic.Pointer[tcp.Conn]   // what is dialled for it; goes down with it
	stream atomic.Pointer[mux.Stream] // the same where it is a stream
	relay  atomic.Pointer[relay]      // one that may be parked

	mu          sync.Mutex
	deadline    int64 // of the tracker's clock; 0: none
	idle        bool  // nothing is under way: may be closed at any time
	interrupted bool
}

func (t *tracker) add(c accepted) *tracked {
	tr := &tracked{conn: c, owner: t}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over {
		c.Reset() // accepted just before the listeners were closed
	}
	if t.all == nil {
		t.all = map[*tracked]struct{}{}
	}
	t.all[tr] = struct{}{}
	t.count.Add(1)
	t.turnover.Add(1)
	return tr
}

func (t *tracker) remove(tr *tracked) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.all, tr)
	t.count.Add(-1)
	t.turnover.Add(1)
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
	case !idle && t.interrupted: // something came just before the interruption
		t.interrupted = false
		_ = t.conn.SetReadDeadline(time.Time{})
	}
}

// interruptLocked makes what reads from the connection see a timeout.
func (t *tracked) interruptLocked() {
	t.interrupted = true
	_ = t.conn.SetReadDeadline(time.Unix(1, 0))
}

// tick advances the clock to now and interrupts what is overdue.
func (t *tracker) tick(now time.Duration) {
	seconds := int64(now / time.Second)
	t.clock.Store(seconds)
	t.each(func(tr *tracked) {
		tr.mu.Lock()
		defer tr.mu.Unlock()
		if tr.deadline != 0 && tr.deadline <= seconds {
			tr.interruptLocked()
		}
		if r := tr.relay.Load(); r != nil {
			r.sweep(now)
		}
	})
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
	t.each(func(tr *tracked) {
		tr.conn.Reset()
		if far := tr.far.Load(); far != nil {
			far.Reset()
		}
		if s := tr.stream.Load(); s != nil {
			s.Reset()
		}
		if r := tr.relay.Load(); r != nil {
			r.wake()
		}
	})
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
	for tr := range t.all {
		f(tr)
	}
}

func (p *Proxy) draining() bool { return p.conns.draining.Load() }
