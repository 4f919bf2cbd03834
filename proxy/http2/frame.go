package http2

import "encoding/binary"

// Preface is what a client sends first (RFC 9113 section 3.4).
const Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// frameType is the type of a frame (section 6).
type frameType byte

const (
	frameData frameType = iota
	frameHeaders
	framePriority
	frameReset
	frameSettings
	framePushPromise
	framePing
	frameGoAway
	frameWindowUpdate
	frameContinuation
)

const (
	flagEndStream  = 0x1 // DATA, HEADERS
	flagAck        = 0x1 // SETTINGS, PING
	flagEndHeaders = 0x4
	flagPadded     = 0x8
	flagPriority   = 0x20
)

const (
	headerLen     = 9
	maxFrame      = 16 << 10 // SETTINGS_MAX_FRAME_SIZE's initial value; what is sent and taken: a TLS record holds no more
	initialWindow = 1<<16 - 1
	maxWindow     = 1<<31 - 1
	maxStreamID   = 1<<31 - 1
)

// Settings (section 6.5.2; RFC 8441 section 3).
const (
	settingHeaderTableSize = 1
	settingEnablePush      = 2
	settingMaxStreams      = 3
	settingInitialWindow   = 4
	settingMaxFrame        = 5
	settingMaxHeaderList   = 6
	settingConnect         = 8
)

// frameHeader is the fixed part of a frame (section 4.1).
type frameHeader struct {
	length int
	kind   frameType
	flags  byte
	id     uint32
}

// parseHeader parses b[:headerLen].
func parseHeader(b []byte) frameHeader {
	return frameHeader{
		length: int(b[0])<<16 | int(b[1])<<8 | int(b[2]),
		kind:   frameType(b[3]),
		flags:  b[4],
		id:     binary.BigEndian.Uint32(b[5:]) & maxStreamID,
	}
}

func appendHeader(b []byte, length int, kind frameType, flags byte, id uint32) []byte {
	b = append(b, byte(length>>16), byte(length>>8), byte(length), byte(kind), flags)
	return binary.BigEndian.AppendUint32(b, id)
}

func appendReset(b []byte, id uint32, code Code) []byte {
	b = appendHeader(b, 4, frameReset, 0, id)
	return binary.BigEndian.AppendUint32(b, uint32(code))
}

func appendWindowUpdate(b []byte, id, n uint32) []byte {
	b = appendHeader(b, 4, frameWindowUpdate, 0, id)
	return binary.BigEndian.AppendUint32(b, n)
}

func appendGoAway(b []byte, last uint32, code Code, debug string) []byte {
	b = appendHeader(b, 8+len(debug), frameGoAway, 0, 0)
	b = binary.BigEndian.AppendUint32(b, last)
	b = binary.BigEndian.AppendUint32(b, uint32(code))
	return append(b, debug...)
}

// setting is one parameter of a SETTINGS frame.
type setting struct {
	id    uint16
	value uint32
}

func appendSettings(b []byte, list ...setting) []byte {
	b = appendHeader(b, 6*len(list), frameSettings, 0, 0)
	for _, s := range list {
		b = binary.BigEndian.AppendUint16(b, s.id)
		b = binary.BigEndian.AppendUint32(b, s.value)
	}
	return b
}

// appendBlock appends a header block as HEADERS and as many CONTINUATION as it takes.
func appendBlock(b []byte, id uint32, block []byte, end bool) []byte {
	kind, flags := frameHeaders, byte(0)
	if end {
		flags = flagEndStream
	}
	for {
		n := min(len(block), maxFrame)
		if n == len(block) {
			flags |= flagEndHeaders
		}
		b = appendHeader(b, n, kind, flags, id)
		b = append(b, block[:n]...)
		if block = block[n:]; len(block) == 0 {
			return b
		}
		kind, flags = frameContinuation, 0
	}
}

// unpad strips the padding of a DATA or HEADERS payload (sections 6.1, 6.2).
func unpad(h frameHeader, p []byte) ([]byte, error) {
	if h.flags&flagPadded == 0 {
		return p, nil
	}
	if len(p) == 0 {
		return nil, &ConnError{FrameSizeError, "padded frame without a pad length"}
	}
	pad := int(p[0])
	if p = p[1:]; pad > len(p) {
		return nil, &ConnError{ProtocolError, "padding longer than the frame"}
	}
	return p[:len(p)-pad], nil
}
