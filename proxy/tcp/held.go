package tcp

import (
	"context"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// What a process keeps for others is counted as a whole, as the pools are of the
// process: every buffer that somebody has, and what Hold is told of.
var held struct {
	bytes atomic.Int64
	limit atomic.Int64
	over  chan struct{} // has room for one: there is Much
	full  chan struct{} // has room for one: there is more than the limit

	mu      sync.Mutex
	holders map[Holder]struct{}
}

// defaultLimit suits a process that may take 64 MiB.
const defaultLimit = 32 << 20

func init() {
	held.limit.Store(defaultLimit)
	held.over, held.full = make(chan struct{}, 1), make(chan struct{}, 1)
	held.holders = map[Holder]struct{}{}
}

// Holder is what something is kept for: a connection that does not take it, or has
// sent a part only of what is awaited.
type Holder interface {
	// Still returns how long nothing has moved.
	Still() time.Duration
	// Reset ends it, upon which what is kept for it is given back.
	Reset()
}

// Held returns how many bytes are kept.
func Held() int64 { return held.bytes.Load() }

// Limit returns how many that shall be at most; SetLimit says so, once at the start.
func Limit() int64     { return held.limit.Load() }
func SetLimit(n int64) { held.limit.Store(n) }

// Much reports whether it is so much that those who have been still for a while
// should be let go. Scarce, earlier, that nobody should be promised more.
func Much() bool   { return Held() > Limit()/4*3 }
func Scarce() bool { return Held() > Limit()/2 }

// Hold counts n bytes that are kept, or with n < 0 are not any more.
func Hold(n int64) {
	now := held.bytes.Add(n)
	if now <= Limit()/4*3 || n < 0 {
		return
	}
	tell(held.over)
	if now > Limit() {
		tell(held.full)
	}
}

func tell(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Wait notes that h keeps something waiting; Done, that it does no more.
func Wait(h Holder) {
	held.mu.Lock()
	held.holders[h] = struct{}{}
	held.mu.Unlock()
}

// Done ends what Wait began; it may come more than once.
func Done(h Holder) {
	held.mu.Lock()
	delete(held.holders, h)
	held.mu.Unlock()
}

// Holders returns who keeps something waiting now.
func Holders() []Holder {
	held.mu.Lock()
	defer held.mu.Unlock()
	all := make([]Holder, 0, len(held.holders))
	for h := range held.holders {
		all = append(all, h)
	}
	return all
}

// unread is a connection whose peer does not take what is written; partial, one
// whose peer has not sent the rest of what is read.
type (
	unread  Conn
	partial Conn
)

func (u *unread) Still() time.Duration {
	return (*Conn)(u).still(func(i *unix.TCPInfo) uint32 { return i.Last_data_sent })
}
func (u *unread) Reset() { (*Conn)(u).Reset() }

func (p *partial) Still() time.Duration {
	return (*Conn)(p).still(func(i *unix.TCPInfo) uint32 { return i.Last_data_recv })
}
func (p *partial) Reset() { (*Conn)(p).Reset() }

// still asks the kernel (tcp(7), TCP_INFO): it knows what has left its own buffers.
func (t *Conn) still(since func(*unix.TCPInfo) uint32) time.Duration {
	var still time.Duration
	_ = t.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			still = time.Duration(since(info)) * time.Millisecond
		}
	})
	return still
}

const (
	patience = time.Second            // a peer is given, to go on
	shedding = 2 * time.Millisecond   // what Reset has freed is given back by then
	looking  = 100 * time.Millisecond // for whoever is still by now

	collecting = 10 * time.Second
)

// KeepBelow keeps what is held below the limit until ctx ends: beyond three quarters
// of it, it lets go of those who have been still for a second; beyond all of it, of
// anybody, whoever has been still for longest first.
func KeepBelow(ctx context.Context) {
	var collected time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-held.over:
		}
		for Much() {
			pause, full := looking, held.full
			switch any, left := shed(); {
			case any:
				pause, full = shedding, nil
			case !left && time.Since(collected) > collecting:
				go runtime.GC() // buffers may have been lost with connections that were torn down
				collected = time.Now()
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause):
			case <-full:
			}
		}
	}
}

// shed resets as many holders as make up what is too much if all keep alike. It
// reports whether it has reset any, and whether there are others.
func shed() (any, left bool) {
	type still struct {
		Holder
		since time.Duration
	}
	var all []still
	for _, h := range Holders() {
		all = append(all, still{h, h.Still()})
	}
	slices.SortFunc(all, func(a, b still) int { return int(b.since - a.since) })
	now := max(Held(), 1)
	n := (int64(len(all))*(now-Limit()/8*5) + now - 1) / now
	for _, h := range all[:max(0, min(n, int64(len(all))))] {
		if h.since < patience && now <= Limit() {
			break
		}
		h.Reset()
		any = true
	}
	return any, len(all) > 0
}
