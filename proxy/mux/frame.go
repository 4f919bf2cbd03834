package mux

import "encoding/binary"

type frameType byte

const (
	frameData   frameType = iota + 1 // bytes of a stream, at least one; the first one opens it
	frameFIN                         // the sender of a stream sends no more
	frameReset                       // the stream is over; 1 byte: why
	frameWindow                      // 4 bytes: how many more the sender takes
	frameLeave                       // of stream 0: open no more streams
)

// Reasons of a RESET.
const (
	reasonReset   = 0 // the application or the client tore its connection down
	reasonRefused = 1 // nobody has seen a byte of what came behind the sender's last one
	reasonUnread  = 2 // the sender reads no more; what it has sent stands
)

const (
	headerLen = 8
	// maxPayload fills, with its header, one TLS record (RFC 8446 section 5.1).
	maxPayload = 16<<10 - headerLen
	maxID      = 1<<32 - 1
)

type frameHeader struct {
	kind   frameType
	length int
	id     uint32
}

// parseHeader parses b[:headerLen].
func parseHeader(b []byte) frameHeader {
	return frameHeader{
		kind:   frameType(b[0]),
		length: int(b[1])<<16 | int(b[2])<<8 | int(b[3]),
		id:     binary.BigEndian.Uint32(b[4:]),
	}
}

// fits reports whether a frame of this type may have this length.
func (h frameHeader) fits() bool {
	switch h.kind {
	case frameData:
		return 0 < h.length && h.length <= maxPayload
	case frameFIN:
		return h.length == 0
	case frameReset:
		return h.length == 1
	case frameWindow:
		return h.length == 4
	case frameLeave:
		return h.length == 0 && h.id == 0
	}
	return false
}

func appendHeader(b []byte, kind frameType, length int, id uint32) []byte {
	b = append(b, byte(kind), byte(length>>16), byte(length>>8), byte(length))
	return binary.BigEndian.AppendUint32(b, id)
}
