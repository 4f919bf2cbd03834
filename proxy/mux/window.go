package mux

import (
	"sync/atomic"
	"time"
)

// The window of a stream is how much of it its reader takes ahead. It begins
// small, and doubles where the path is what the stream waits for: the peer had
// used all of it up, everything was read, and the next bytes came only a round
// trip after they had been asked for. A reader that is slow gets no more, nor does
// a path so short that the window does for fastEnough.
const (
	window     = 128 << 10
	maxWindow  = 4 << 20
	linkGrowth = 8 << 20   // of all windows of a link together
	fastEnough = 128 << 20 // bytes per second
)

// Growth is the memory that windows may promise beyond what they begin with: of
// one link, or of all links of a process. It comes back as streams end.
type Growth struct{ left atomic.Int64 }

// NewGrowth returns a Growth of n bytes.
func NewGrowth(n int64) *Growth {
	g := &Growth{}
	g.left.Store(n)
	return g
}

// take reports whether there were n bytes, which are taken then.
func (g *Growth) take(n int64) bool {
	if g == nil {
		return false
	}
	if g.left.Add(-n) < 0 {
		g.left.Add(n)
		return false
	}
	return true
}

func (g *Growth) give(n int64) {
	if g != nil {
		g.left.Add(n)
	}
}

// intake is the receiving half of a stream's flow control.
//
//	read    received    edge            ahead
//	-----|-----------|-----|--------------|
//	        unread      a limit,       the limit
//	                    earlier      that it has now
//
// A sender cuts its data where it must stop. So a frame that ends exactly at the
// edge was the last one that the peer could send before it heard of more.
type intake struct {
	window  int       // unread + unacked + ahead
	ahead   int       // bytes that the peer may still send
	unacked int       // read and not given back to ahead
	edge    int       // bytes up to a limit that the peer has, or had
	asked   time.Time // when it was first allowed to go beyond the edge; zero: not yet
	stopped bool      // it has reached an edge, and nothing has come since
	since   time.Time // when it was first allowed to go on from there; zero: not yet
	grown   atomic.Int64
}

func newIntake() intake { return intake{window: window, ahead: window, edge: window} }

// receive takes note of n bytes. It returns how long the peer had been kept from
// sending them by the path alone, if it had; drained says that all was read before
// they came. It reports false if the peer may not send them.
func (in *intake) receive(n int, drained bool) (kept time.Duration, ok bool) {
	if in.ahead -= n; in.ahead < 0 {
		return 0, false
	}
	if in.stopped {
		if drained && !in.since.IsZero() {
			kept = time.Since(in.since)
		}
		in.stopped, in.since = false, time.Time{}
	}
	if in.edge -= n; in.edge <= 0 {
		if in.edge == 0 {
			in.stopped, in.since = true, in.asked
		}
		in.edge, in.asked = in.ahead, time.Time{}
	}
	return kept, true
}

// read takes note of n bytes that were read, and returns how many more the peer is
// to be told it may send; 0: nothing yet.
func (in *intake) read(n int) int {
	in.unacked += n
	if in.unacked < in.window/2 {
		return 0
	}
	grant := in.unacked
	in.unacked = 0
	in.ahead += grant
	switch {
	case in.stopped && in.since.IsZero():
		in.since = time.Now()
		if in.edge == 0 { // there was no limit beyond the one it has reached
			in.edge = in.ahead
		}
	case in.asked.IsZero():
		in.asked = time.Now()
	}
	return grant
}

// grow doubles the window if the path is long enough for that and there is room.
// What it grows by is given to the peer with what is read next.
func (in *intake) grow(kept time.Duration, link, process *Growth) {
	more := min(in.window, maxWindow-in.window)
	if more == 0 || int64(kept)*(fastEnough>>20) < int64(in.window)*int64(time.Second)>>20 || !link.take(int64(more)) {
		return
	}
	if !process.take(int64(more)) {
		link.give(int64(more))
		return
	}
	in.window += more
	in.unacked += more
	in.grown.Add(int64(more))
}

// release gives back what the window has grown by: the stream is over.
func (in *intake) release(link, process *Growth) {
	n := in.grown.Swap(0)
	link.give(n)
	process.give(n)
}
