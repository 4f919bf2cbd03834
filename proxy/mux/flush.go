package mux

import (
	"encoding/binary"
	"net"
	"runtime"
	"sync"
)

// Buffers of what is to be sent. A link has one only while there is something.
const (
	outSize = 16 << 10
	outMost = 256 << 10 // larger ones are left to the collector
)

// outBuffer stays the same object as b grows, so that giving it back allocates
// nothing.
type outBuffer struct{ b []byte }

var outBuffers = sync.Pool{New: func() any { return &outBuffer{make([]byte, 0, outSize)} }}

func (o *outBuffer) free() {
	if cap(o.b) <= outMost {
		o.b = o.b[:0]
		outBuffers.Put(o)
	}
}

// appendLocked appends a frame, to be sent by the next flush.
func (l *Link) appendLocked(kind frameType, id uint32, payload ...byte) {
	if l.out == nil {
		l.out = outBuffers.Get().(*outBuffer)
	}
	l.out.b = append(appendHeader(l.out.b, kind, len(payload), id), payload...)
}

// send sends a frame of a stream, unless the peer knows nothing of that.
func (l *Link) send(kind frameType, s *Stream, payload ...byte) {
	l.mu.Lock()
	if l.dead == nil && s.id != 0 && !s.over {
		l.appendLocked(kind, s.id, payload...)
	}
	l.mu.Unlock()
	l.flush(false)
}

// sendWindow lets the peer send n bytes more.
func (l *Link) sendWindow(s *Stream, n int) {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], uint32(n))
	l.send(frameWindow, s, b[:]...)
}

// sendData sends p, at most maxPayload. It waits while too much is unsent.
func (l *Link) sendData(s *Stream, p []byte) error {
	l.mu.Lock()
	for l.out != nil && len(l.out.b) > maxOut && l.dead == nil && !s.over && !s.finished {
		l.room.Wait()
	}
	l.room.Signal() // the next one, while there is room
	err := l.dead
	switch {
	case s.over, s.finished: // while it waited here
		err = net.ErrClosed
	case s.id == 0 && (err != nil || l.leaving || l.left):
		err = ErrRefused // too late to be opened
	}
	if err != nil {
		l.mu.Unlock()
		switch err {
		case net.ErrClosed:
			return s.why()
		case ErrRefused:
			s.lost(err) // nobody else knows of it, to tell its reader
		}
		return err
	}
	if s.id == 0 { // only now: the peer wants them in order
		l.last++
		s.id = l.last
		l.streams[s.id] = s
	}
	crowded := l.asking > 1
	l.turnLocked(s, true)
	l.appendLocked(frameData, s.id, p...)
	l.mu.Unlock()
	l.flush(crowded)
	return nil
}

// flush sends what has been appended. It does not wait for the peer: what the
// socket has no room for is sent by a goroutine that lives as long as it takes.
//
// Where others are busy, too, it lets those go first who are ready to: what
// they append meanwhile leaves in the same write.
func (l *Link) flush(crowded bool) {
	l.mu.Lock()
	if crowded && !l.writing && l.out != nil && len(l.out.b) < enoughOut {
		if l.soon {
			l.mu.Unlock()
			return
		}
		l.soon = true
		l.mu.Unlock()
		runtime.Gosched()
		l.mu.Lock()
		l.soon = false
	}
	if l.writing || l.out == nil {
		if l.out != nil && len(l.out.b) > maxControl {
			l.failLocked(errFull) // whoever writes has been waiting all this time
		}
		l.mu.Unlock()
		return
	}
	l.writing = true
	l.flushLocked()
}

// flushLocked writes until nothing is left or there is no more room. It is
// called with l.writing set by the caller, and unlocks.
func (l *Link) flushLocked() {
	for l.out != nil && l.dead == nil {
		out := l.out
		l.out = nil
		if len(out.b) > maxControl {
			l.failLocked(errFull)
			break
		}
		l.mu.Unlock()
		n, sent, err := l.t.Offer(out.b)
		if err == nil && !sent {
			go l.sendRest(out, n)
			return
		}
		l.mu.Lock()
		l.wroteLocked(out, err)
	}
	l.writing = false
	leaving := l.leaving
	l.mu.Unlock()
	if leaving {
		l.closeIfDone()
	}
}

// sendRest waits for room, in a goroutine of its own.
func (l *Link) sendRest(out *outBuffer, n int) {
	_, err := l.t.Write(out.b[n:])
	l.mu.Lock()
	l.wroteLocked(out, err)
	l.flushLocked()
}

// wroteLocked takes the buffer back, and ends a link that can't be written to.
func (l *Link) wroteLocked(out *outBuffer, err error) {
	if err != nil {
		l.failLocked(err)
	}
	out.free()
	l.room.Signal()
}

// failLocked ends the link; its reader notices and tells the streams.
func (l *Link) failLocked(err error) {
	if l.dead == nil {
		l.dead = err
		l.room.Broadcast()
		l.t.Reset()
	}
}
