package http1

import "math"

// Limits of a chunked body.
const (
	MaxChunkLine     = 256      // bytes of size and extensions
	MaxChunkOverhead = 16 << 10 // bytes of chunk lines beyond 16 and twice the content of each chunk
	MaxTrailers      = 64 << 10 // bytes of the trailer section
)

// Body follows a message body while its bytes stream by. It copies nothing.
// The zero value is a body that is not there.
type Body struct {
	framing  Framing
	state    chunkState
	open     bool   // more is to come
	left     uint64 // of Length, or of the present chunk
	digits   int    // of the chunk size
	line     int    // bytes of the present chunk line
	overhead int
	trailer  trailer
}

// chunkState is where in a chunked body the next byte stands:
//
//	size -> digits -> [extension ->] sizeLF -> data -> dataCR -> dataLF -> size
//	                                  | size 0
//	                                  v
//	                 trailerStart -> trailerName -> trailerValue -> trailerLF -> trailerStart
//	                      | CR
//	                      v
//	                    endLF -> done
type chunkState uint8

const (
	stateSize chunkState = iota
	stateDigits
	stateExtension
	stateSizeLF
	stateData
	stateDataCR
	stateDataLF
	stateTrailerStart
	stateTrailerName
	stateTrailerValue
	stateTrailerLF
	stateEndLF
)

// Reset starts a new body. length counts only if framing is Length.
func (b *Body) Reset(framing Framing, length int64) {
	*b = Body{framing: framing, open: framing != None}
	if framing == Length {
		b.left = uint64(max(length, 0))
		b.open = b.left > 0
	}
}

// Done tells whether the last byte of the message has been seen. A body framed
// by EOF is never done: it ends well when the connection does.
func (b *Body) Done() bool { return !b.open }

// EndsAtEOF tells whether the message is whole if the connection ends now.
func (b *Body) EndsAtEOF() bool { return !b.open || b.framing == EOF }

// Advance returns how many bytes at the start of p belong to this body, chunk
// framing and trailers included; done says that the last of them is the last
// one of the message. While it is not done, n is len(p). On an error, always an
// *Error, the n bytes before the offending one were fine.
func (b *Body) Advance(p []byte) (n int, done bool, err error) {
	for n < len(p) && b.open {
		used, _, s := b.step(p[n:])
		n += used
		if s != ok {
			return n, false, &requestErrors[s]
		}
	}
	return n, !b.open, nil
}

// step consumes a run of bytes that is either all payload or all framing.
// p is not empty and the body open.
func (b *Body) step(p []byte) (n int, payload bool, s shape) {
	switch {
	case b.framing == EOF:
		return len(p), true, ok
	case b.framing == Length:
		n = b.take(p)
		b.open = b.left > 0
		return n, true, ok
	case b.state == stateData:
		n = b.take(p)
		if b.left == 0 {
			b.state = stateDataCR
		}
		return n, true, ok
	}
	for n < len(p) && b.state != stateData && b.open {
		if b.state == stateTrailerValue {
			n += b.trailer.skipValue(p[n:])
			if n == len(p) {
				break
			}
		}
		if s = b.frame(p[n]); s != ok {
			return n, false, s
		}
		n++
	}
	return n, false, b.trailer.check()
}

func (b *Body) take(p []byte) int {
	n := int(min(b.left, uint64(len(p))))
	b.left -= uint64(n)
	return n
}

// frame moves the state by one byte of chunk framing (RFC 9112 section 7.1).
func (b *Body) frame(c byte) shape {
	switch b.state {
	case stateSize, stateDigits, stateExtension:
		return b.sizeLine(c)
	case stateSizeLF:
		if c != '\n' {
			return bareCR
		}
		return b.startChunk()
	case stateDataCR:
		if c != '\r' {
			return badChunkEnd
		}
		b.state = stateDataLF
	case stateDataLF:
		if c != '\n' {
			return badChunkEnd
		}
		b.state, b.digits, b.line = stateSize, 0, 0
	case stateEndLF:
		if c != '\n' {
			return bareCR
		}
		b.open = false
	default:
		return b.trailer.frame(&b.state, c)
	}
	return ok
}

// sizeLine takes a byte of "1*HEXDIG [; extensions] CR". White space around the
// size, which RFC 9112 calls bad, is refused.
func (b *Body) sizeLine(c byte) shape {
	if b.line++; b.line > MaxChunkLine {
		return chunkLineTooLong
	}
	switch {
	case b.state == stateExtension:
		if c == '\r' {
			b.state = stateSizeLF
			return ok
		}
		if c == '\n' {
			return bareLF
		}
		return checkTextByte(c)
	case b.state == stateDigits && c == '\r':
		b.state = stateSizeLF
		return ok
	case b.state == stateDigits && c == ';':
		b.state = stateExtension
		return ok
	case b.state == stateDigits && c == '\n':
		return bareLF
	}
	d, valid := hexDigit(c)
	if !valid {
		return badChunkSize
	}
	if b.digits++; b.digits > 16 || b.left > math.MaxInt64>>5 {
		return chunkTooLarge
	}
	b.left = b.left<<4 | uint64(d)
	b.state = stateDigits
	return ok
}

// startChunk ends the line of a chunk. A chunk of its own for every byte is
// slow but honest; long extensions on tiny chunks are not. Same sum as in Go's
// net/http.
func (b *Body) startChunk() shape {
	b.overhead += b.line + len("\n\r\n") - 16
	b.overhead -= int(2 * min(b.left, MaxChunkOverhead))
	if b.overhead = max(b.overhead, 0); b.overhead > MaxChunkOverhead {
		return chunkOverhead
	}
	b.state = stateData
	if b.left == 0 {
		b.state = stateTrailerStart
	}
	return ok
}

func hexDigit(c byte) (d byte, valid bool) {
	switch {
	case c-'0' < 10:
		return c - '0', true
	case lower(c)-'a' < 6:
		return lower(c) - 'a' + 10, true
	}
	return 0, false
}

func checkTextByte(c byte) shape {
	if c < 0x20 && c != '\t' || c == 0x7f {
		return controlByte
	}
	return ok
}
