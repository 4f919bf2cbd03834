package tcp

import "time"

// Transport is what carries a protocol of many streams: a Conn, or TLS over one.
// One goroutine reads and one writes at a time; Close and Reset may be called
// by anybody.
type Transport interface {
	// Next waits for bytes, without a buffer while there are none, and returns
	// at most size-room of them behind room free ones. The caller frees it.
	Next(room, size int) (*Buffer, int, error)
	Read(p []byte) (int, error)
	// Offer takes as much of p as there is room for, without waiting. Unless
	// all of it has been sent, Write has to come next.
	Offer(p []byte) (n int, sent bool, err error)
	// Write sends what Offer could not, then the whole of p.
	Write(p []byte) (int, error)
	CloseWrite() error
	Close() error
	Reset()
	SetReadDeadline(t time.Time) error
	SetWriteDeadline(t time.Time) error
}
