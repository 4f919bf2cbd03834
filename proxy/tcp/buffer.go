package tcp

import "sync"

// Sizes of pooled buffers: heads and small messages, one TLS record with what
// goes around it, and bulk or the largest HTTP head.
const (
	Small = 4 << 10
	Bulk  = 16<<10 + 512
	Large = 68 << 10
)

// Buffer is a slice from a pool. Whoever holds it calls Free once.
type Buffer struct {
	B    []byte
	pool *sync.Pool
}

var (
	smallBuffers = sync.Pool{New: func() any { return &Buffer{B: make([]byte, Small)} }}
	bulkBuffers  = sync.Pool{New: func() any { return &Buffer{B: make([]byte, Bulk)} }}
	largeBuffers = sync.Pool{New: func() any { return &Buffer{B: make([]byte, Large)} }}
)

// NewBuffer returns a buffer of at least n bytes, n <= Large.
func NewBuffer(n int) *Buffer {
	pool := &largeBuffers
	switch {
	case n <= Small:
		pool = &smallBuffers
	case n <= Bulk:
		pool = &bulkBuffers
	}
	buf := pool.Get().(*Buffer)
	buf.pool = pool
	return buf
}

// Free gives the buffer back; of nil it is no-op.
func (b *Buffer) Free() {
	if b != nil {
		b.pool.Put(b)
	}
}
