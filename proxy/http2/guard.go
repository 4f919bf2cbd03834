package http2

import "time"

// Limits of what a peer may ask for without getting anything done. Useful
// frames pay for useless ones, so that what is proportionate never counts.
const (
	meterWindow = 10 * time.Second
	maxNoise    = 10_000 // frames that do nothing, in ten seconds
	noisePaid   = 4      // by each frame that does something
	walkNoise   = 64     // streams that SETTINGS change the windows of are as much work as such a frame
	ringSize    = 512
)

// meter counts events in windows of time.
type meter struct {
	level int
	since time.Time
}

// add counts n and reports whether that is more than most in a window.
func (m *meter) add(n, most int) bool {
	if m.level += n; m.level <= most {
		return false
	}
	now := time.Now()
	if now.Sub(m.since) < meterWindow {
		return true
	}
	m.level, m.since = n, now
	return false
}

// pay takes useless frames off the bill.
func (m *meter) pay() { m.level = max(0, m.level-noisePaid) }

// closedRing remembers the last streams that were closed, and by whom: frames
// that were under way when we reset a stream are no fault of the peer.
type closedRing struct {
	ids  []uint32 // as id<<1 | reset by us
	next int
}

func (r *closedRing) add(id uint32, byUs bool) {
	v := id << 1
	if byUs {
		v |= 1
	}
	if len(r.ids) < ringSize {
		r.ids = append(r.ids, v)
		return
	}
	r.ids[r.next] = v
	r.next = (r.next + 1) % ringSize
}

func (r *closedRing) find(id uint32) (found, byUs bool) {
	for _, v := range r.ids {
		if v>>1 == id {
			found, byUs = true, byUs || v&1 == 1
		}
	}
	return found, byUs
}
