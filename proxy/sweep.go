package proxy

import (
	"context"
	"time"
)

const sweepEvery = time.Second

// sweep does once a second what is not worth a timer of its own each: limits
// of time, idle sessions, unused watches, how many processors it takes, and memory
// once things have settled.
func (p *Proxy) sweep(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	memory := reclaim{changes: burst} // starting up is a burst, too
	processors := newProcessors(p.now())
	defer processors.close()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := p.now()
		processors.adjust(now)
		p.conns.tick(now)
		changes := p.conns.changes()
		for _, d := range p.directory.all() {
			for _, ep := range d.set.Endpoints() {
				changes += ep.Value.sweep(now)
			}
		}
		p.directory.sweep()
		if memory.due(changes, now, processors.used > busy) {
			p.hangups.shrink()
			trimMemory()
		}
	}
}

// sweepCrowds has connections parked soon while there are many: a burst of them
// would be over before the next sweep.
func (p *Proxy) sweepCrowds(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.conns.crowded:
		}
		for again := true; again; {
			select {
			case <-ctx.Done():
				return
			case <-time.After(parkAfterCrowded):
				again = p.conns.thin(p.now())
			}
		}
	}
}

const (
	settled   = 5 * time.Second  // without a connection coming or going
	trimEvery = 10 * time.Second // at most, unless there was a burst
	trimIdle  = time.Minute      // after nothing but reports
	burst     = 256              // connections that came or went
	busy      = 0.05             // processors used: requests would have to wait for a collection
)

// reclaim decides when memory goes back to the system at once: the runtime
// would keep for minutes what handshakes, and connections that have ended, took.
type reclaim struct {
	changes int           // since the last time
	changed time.Duration // when the last one was
	trimmed time.Duration
}

// due is told, each second, how many connections have come or gone since, and
// whether the proxy has much to do.
func (r *reclaim) due(changes int, now time.Duration, busy bool) bool {
	if changes > 0 {
		r.changes += changes
		r.changed = now
	}
	since := now - r.trimmed
	if busy || now-r.changed < settled || r.changes < burst && since < trimEvery || r.changes == 0 && since < trimIdle {
		return false
	}
	r.changes, r.trimmed = 0, now
	return true
}
