package proxy

import (
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// A relay of opaque bytes takes a goroutine for each direction, and most
// connections of databases and queues are idle most of the time. So a relay on
// which nothing has moved for a while is parked: its goroutines end, and what
// is left is what it takes to go on once one side has something to say.
//
//	        nothing moved for parkAfter          both flows agree
//	running ---------------------------> asked -----------------> parked
//	   ^                                   | one goes on             |
//	   +-----------------------------------+    bytes, end, reset    |
//	   ^                                                             |
//	   +-------------------------------------------------------------+
//
// Only relays whose one side is a stream of the mesh are parked. The others move
// their bytes by splice(2), which can't be told to let go at the right moment.

const (
	// agreeing is how long a flow that was asked to end waits for the other one.
	agreeing = 20 * time.Millisecond
)

var errParked = errors.New("parked")

// parking is what makes a relay parkable.
type parking struct {
	resume func() // goes on, in a goroutine of its own

	last  uint64        // bytes moved when it was looked at last; the sweep's
	still time.Duration // since when; the sweep's

	state atomic.Int32 // running…

	mu      sync.Mutex
	asked   bool
	stopped int           // flows that wait for the other one
	agreed  chan struct{} // closed once both have stopped or ended
}

const (
	running int32 = iota
	falling       // asleep
	called        // while it was falling asleep
	asleep
)

// parkable lets the relay be parked. resume is called, once for each time that
// run reports it as parked, when it has to go on: by calling run again.
func (r *relay) parkable(resume func()) {
	r.parking = &parking{resume: resume, agreed: make(chan struct{})}
	r.track.parks(r)
}

// sweep asks a relay to park that has been still for long enough: longer, if its
// naps have been short. It is called with track.mu held.
func (r *relay) sweep(now, enough time.Duration) bool {
	k := r.parking
	if k.state.Load() != running {
		k.still = 0
		return false
	}
	if moved := r.out.moved.Load() + r.back.moved.Load(); moved != k.last || k.still == 0 {
		k.last, k.still = moved, now
		return true
	}
	if !r.out.quiet() || !r.back.quiet() {
		return false
	}
	if now-k.still < min(enough<<r.track.naps, r.track.owner.parkAfter) {
		return true
	}
	k.still = now
	k.mu.Lock()
	defer k.mu.Unlock()
	k.asked = true
	r.deadlines(time.Unix(1, 0))
	return true
}

func (f *flow) quiet() bool { return f.ended.Load() || f.waiting.Load() }

func (r *relay) deadlines(t time.Time) {
	_ = r.out.src.under().SetReadDeadline(t)
	_ = r.back.src.under().SetReadDeadline(t)
}

// turn runs a flow until it ends or both agree to park.
func (r *relay) turn(f *flow) error {
	for {
		err := f.run()
		if err != errParked {
			f.ended.Store(true)
			r.agree(false)
			return err
		}
		if r.parking == nil {
			return f.finish(os.ErrDeadlineExceeded)
		}
		if r.agree(true) {
			return errParked
		}
	}
}

// agree is called by a flow that was asked to stop, or has ended. It reports
// whether the flow shall stop, because the other one has stopped or ended, too.
func (r *relay) agree(stop bool) bool {
	k := r.parking
	if k == nil {
		return false
	}
	k.mu.Lock()
	if !k.asked {
		if stop {
			r.deadlines(time.Time{})
		}
		k.mu.Unlock()
		return false
	}
	if stop {
		k.stopped++
	}
	agreed := k.agreed
	if k.stopped == r.alive() {
		select {
		case <-agreed: // a flow that has just ended comes after the one that has seen it end
		default:
			close(agreed)
		}
		k.mu.Unlock()
		return stop
	}
	k.mu.Unlock()
	if !stop {
		return false
	}
	patience := time.NewTimer(agreeing)
	defer patience.Stop()
	select {
	case <-agreed:
		return true
	case <-patience.C:
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	select {
	case <-agreed:
		return true
	default: // the other one has something to do: so go on
		k.asked, k.stopped = false, 0
		r.deadlines(time.Time{})
		return false
	}
}

// alive returns how many flows have not ended.
func (r *relay) alive() int {
	n := 0
	for _, f := range []*flow{r.out, r.back} {
		if !f.ended.Load() {
			n++
		}
	}
	return n
}

// park puts the relay to sleep if that is how its flows ended. From when it
// returns true, resume may be running.
func (r *relay) park(out, back error) bool {
	if out != errParked && back != errParked {
		return false
	}
	if err := errors.Join(notParked(out), notParked(back)); err != nil {
		// One was reset just when the other one stopped.
		r.out.src.reset()
		r.out.dst.reset()
		return false
	}
	k := r.parking
	k.mu.Lock()
	k.asked, k.stopped, k.agreed = false, 0, make(chan struct{})
	k.mu.Unlock()
	r.deadlines(time.Time{})
	near, far := r.out.src.under(), r.out.dst.under()
	r.proxy.hangups.forget(r.near)
	r.proxy.hangups.forget(r.far)
	r.proxy.rest(near)
	r.proxy.rest(far)
	r.near, r.far = r.proxy.hangups.note(r.ready), r.proxy.hangups.note(r.ready)
	r.proxy.serving.Add(1) // for resume
	r.proxy.parked.Add(1)
	r.track.slept()
	k.state.Store(falling)
	err1 := r.proxy.hangups.expect(near, r.near, r.out.awaited())
	err2 := r.proxy.hangups.expect(far, r.far, r.back.awaited())
	early := k.state.Swap(asleep) == called
	if early || err1 != nil || err2 != nil || r.proxy.conns.isOver() {
		r.wake()
	}
	return true
}

// awaited is what wakes a parked relay of the flow's source. Its end is one of
// those, but only once: it can be read for ever.
func (f *flow) awaited() uint32 {
	if f.ended.Load() {
		return unix.EPOLLONESHOT // and a reset, always
	}
	return parkedEvents
}

func notParked(err error) error {
	if err == errParked {
		return nil
	}
	return err
}

func (r *relay) ready(uint32) { r.wake() }

// wake makes a parked relay go on.
func (r *relay) wake() {
	k := r.parking
	if k.state.CompareAndSwap(falling, called) || !k.state.CompareAndSwap(asleep, running) {
		return
	}
	go func() {
		defer r.proxy.serving.Done()
		r.track.woke()
		r.track.mu.Lock()
		k.still = 0
		r.track.mu.Unlock()
		r.proxy.hangups.forget(r.near)
		r.proxy.hangups.forget(r.far)
		r.near, r.far = 0, 0
		k.resume()
	}()
}
