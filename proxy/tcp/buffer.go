package tcp

import (
	"sync"
	"sync/atomic"
)

// Sizes of pooled buffers: heads and small messages, one TLS record with what
// goes around it, the largest HTTP head or some records, and bulk that comes
// without a pause: a thread that was woken for it shall find much to do.
const (
	Small = 4 << 10
	Bulk  = 16<<10 + 512
	Large = 68 << 10
	Huge  = 264 << 10
)

// hugeMost is how many Huge buffers a proxy has in use at a time: a peer that
// does not read keeps those in which something waits for it.
const hugeMost = 32

// Buffer is a slice from a pool. Whoever holds it calls Free once.
type Buffer struct {
	B    []byte
	pool *sync.Pool
}

var (
	smallBuffers = sync.Pool{New: func() any { return &Buffer{B: make([]byte, Small)} }}
	bulkBuffers  = sync.Pool{New: func() any { return &Buffer{B: make([]byte, Bulk)} }}
	largeBuffers = sync.Pool{New: func() any { return &Buffer{B: make([]byte, Large)} }}
	hugeBuffers  = sync.Pool{New: func() any { return &Buffer{B: make([]byte, Huge)} }}
	hugeUsed     atomic.Int32
)

// NewBuffer returns a buffer of at least n bytes, n <= Huge. Whoever asks for
// more than Large has to make do with that when there are many such already.
func NewBuffer(n int) *Buffer {
	pool := &largeBuffers
	switch {
	case n <= Small:
		pool = &smallBuffers
	case n <= Bulk:
		pool = &bulkBuffers
	case n > Large:
		if hugeUsed.Add(1) <= hugeMost {
			pool = &hugeBuffers
		} else {
			hugeUsed.Add(-1)
		}
	}
	buf := pool.Get().(*Buffer)
	buf.pool = pool
	return buf
}

// upTo returns B[from:to], or what there is of it.
func (b *Buffer) upTo(from, to int) []byte { return b.B[from:min(to, len(b.B))] }

// Free gives the buffer back; of nil it is no-op.
func (b *Buffer) Free() {
	if b == nil {
		return
	}
	if b.pool == &hugeBuffers {
		hugeUsed.Add(-1)
	}
	b.pool.Put(b)
}
