package http2

import (
	"slices"
	"sync/atomic"
)

// What a peer does not read is kept, and a pod has 64 MiB. Three things bound it,
// each for where the one before does not do:
//
//   - A stream's window opens only as its bytes leave on the other side: one slow
//     reader keeps one window of bytes waiting.
//   - Where that adds up (many slow readers), the windows of all streams of the
//     connection that the bytes come from shrink, to what their number allows. The
//     connection's own window stays open for those who do read.
//   - Where bytes add up nevertheless, the streams that keep most are reset, with
//     ENHANCE_YOUR_CALM.
const (
	plenty     = 4 << 20  // bytes that a connection has brought and that are not read: its windows shrink
	plentyAll  = 16 << 20 // of all connections: then it is fewPlenty
	fewPlenty  = 256 << 10
	maxKept    = 24 << 20 // bytes kept for one peer; beyond, streams are reset
	maxKeptAll = 40 << 20 // for all; beyond, those of a peer that more than its share of half of it is kept for
	minWindow  = plenty / DefaultStreams
)

// Kept counts what all connections of a process keep for peers that do not read.
type Kept struct {
	bytes atomic.Int64
	peers atomic.Int64 // connections that something is kept for
}

// Bytes returns how much that is.
func (k *Kept) Bytes() int64 { return k.bytes.Load() }

func (k *Kept) scarce() bool { return k.bytes.Load() > plentyAll }

// most is how much may be kept for one peer now.
func (k *Kept) most() int64 {
	if k.bytes.Load() <= maxKeptAll {
		return maxKept
	}
	return max(maxKeptAll/2/max(k.peers.Load(), 1), maxFrame)
}

// keepLocked notes that n bytes more wait in s.pending, or fewer.
func (s *Stream) keepLocked(n int64) {
	c := s.conn
	before := c.kept
	c.kept += n
	c.config.Kept.bytes.Add(n)
	switch {
	case before == 0 && c.kept > 0:
		c.config.Kept.peers.Add(1)
	case before > 0 && c.kept == 0:
		c.config.Kept.peers.Add(-1)
	}
	if s.from != nil {
		s.from.fed.Add(n)
	}
}

// windows is what a connection's streams may send at first, by
// SETTINGS_INITIAL_WINDOW_SIZE. A change concerns open streams, too, once the
// peer has acknowledged it (RFC 9113 sections 6.5.3, 6.9.2).
type windows struct {
	base    int64   // announced last
	last    int64   // acknowledged last
	acked   int     // SETTINGS of ours that have an ACK
	pending []int64 // base with each of those that have none, in order
}

// newWindows is what holds after the first SETTINGS.
func newWindows() windows {
	return windows{base: initialWindow, last: initialWindow, pending: []int64{initialWindow}}
}

// sent notes that SETTINGS were appended.
func (w *windows) sent() { w.pending = append(w.pending, w.base) }

// openLocked adds a new stream, with the windows of now. Where we open it, that is
// what was announced; where the peer does, what it had heard of.
func (c *Conn) openLocked(s *Stream) {
	w := &c.windows
	s.base, s.settings = w.last, w.acked
	if !c.config.Server {
		s.base, s.settings = w.base, w.acked+len(w.pending)
	}
	s.recvWindow, s.target = s.base, s.base
	s.sendWindow = c.peerWindow
	c.streams[s.id] = s
}

// resizeLocked announces other windows where too much of what came is not read, or
// no more, one change at a time. It reports whether something is to be sent.
func (c *Conn) resizeLocked() bool {
	w := &c.windows
	waits := max(c.held, c.fed.Load())
	if waits <= fewPlenty && w.base == initialWindow || len(w.pending) > 0 {
		return false
	}
	limit := int64(plenty)
	if c.config.Kept.scarce() {
		limit = fewPlenty
	}
	base := w.base
	switch {
	case waits > limit:
		fits := limit / int64(max(len(c.streams), 1))
		for base >= minWindow && base > fits {
			base /= 2
		}
	case waits < limit/4:
		base = initialWindow
	}
	if base == w.base {
		return false
	}
	w.base = base
	c.out = appendSettings(c.out, setting{settingInitialWindow, uint32(base)})
	w.sent()
	return true
}

// resizedLocked applies what the peer has acknowledged. Windows may become negative.
func (c *Conn) resizedLocked() {
	w := &c.windows
	if len(w.pending) == 0 {
		return
	}
	before := w.last
	w.last, w.pending = w.pending[0], w.pending[1:]
	w.acked++
	if w.last == before {
		return
	}
	for _, s := range c.streams {
		if s.settings < w.acked {
			s.recvWindow += w.last - s.base
			s.target += w.last - s.base
			s.base, s.settings = w.last, w.acked
			s.creditLocked(0) // what was too little to announce may be all that the peer waits for
		}
	}
}

// shedLocked resets the streams that most is kept of where that is too much
// together, and returns them.
func (c *Conn) shedLocked() []*Stream {
	most := c.config.Kept.most()
	if c.kept <= most {
		return nil
	}
	var worst []*Stream
	for _, s := range c.streams {
		if len(s.pending) > 0 {
			worst = append(worst, s)
		}
	}
	slices.SortFunc(worst, func(a, b *Stream) int { return len(b.pending) - len(a.pending) })
	for i, s := range worst {
		if c.kept <= most-most/4 {
			worst = worst[:i]
			break
		}
		c.out = appendReset(c.out, s.id, EnhanceYourCalm)
		c.ring.add(s.id, true)
		c.removeLocked(s)
	}
	return worst
}
