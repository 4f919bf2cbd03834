package proxy

import (
	"context"
	"time"
)

const (
	sweepEvery   = time.Second
	burst        = 256              // connections that make a burst worth cleaning up after
	burstSettled = 10 * time.Second // how long after it
)

// sweep does once a second what is not worth a timer of its own each: limits
// of time, idle sessions, unused watches, and memory after a burst.
func (p *Proxy) sweep(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	memory := reclaim{peak: burst, falling: true, since: p.now() - sessionIdle} // starting up is a burst, too
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := p.now()
		p.conns.tick(now)
		for _, d := range p.directory.all() {
			for _, ep := range d.set.Endpoints() {
				ep.Value.sweep(now)
			}
		}
		p.directory.sweep()
		if memory.due(p.conns.len(), now) {
			trimMemory()
		}
	}
}

// reclaim decides when memory goes back to the system at once: the runtime
// would keep the peak's for minutes.
type reclaim struct {
	peak    int
	since   time.Duration // when the number of connections fell below half the peak
	falling bool
}

// due is told the number of connections each second.
func (r *reclaim) due(conns int, now time.Duration) bool {
	if conns > r.peak {
		r.peak, r.falling = conns, false
		return false
	}
	if r.peak < burst || conns > r.peak/2 {
		r.falling = false
		return false
	}
	if !r.falling {
		r.falling, r.since = true, now
	}
	// Sessions to endpoints end a little after the connections that used them.
	if now-r.since < burstSettled+sessionIdle {
		return false
	}
	r.peak, r.falling = conns, false
	return true
}
