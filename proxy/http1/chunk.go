package http1

// What follows the payload of a chunk, and what ends a chunked body without
// trailers.
const (
	ChunkEnd  = "\r\n"
	LastChunk = "0\r\n\r\n"
)

// MaxChunkHeader is the most that AppendChunkHeader appends.
const MaxChunkHeader = 16 + len("\r\n")

// AppendChunkHeader appends the line that starts a chunk of n > 0 bytes; the
// payload and ChunkEnd follow.
func AppendChunkHeader(dst []byte, n int) []byte {
	const hex = "0123456789abcdef"
	shift := 0
	for uint64(n)>>shift > 15 {
		shift += 4
	}
	for ; shift >= 0; shift -= 4 {
		dst = append(dst, hex[uint64(n)>>shift&15])
	}
	return append(dst, "\r\n"...)
}

// AppendChunk appends payload, which is not empty, as one chunk.
func AppendChunk(dst, payload []byte) []byte {
	dst = AppendChunkHeader(dst, len(payload))
	dst = append(dst, payload...)
	return append(dst, ChunkEnd...)
}

// Dechunker takes a chunked body apart. Trailers are checked and dropped.
type Dechunker struct{ body Body }

// Reset starts a new body; a Dechunker must be reset before its first use.
func (d *Dechunker) Reset() { d.body.Reset(Chunked, 0) }

// Next consumes n bytes at the start of p and returns the payload among them, a
// slice of p, which may be empty. It is called again with p[n:] until that is
// empty or done says that the body has ended. Errors are *Error.
func (d *Dechunker) Next(p []byte) (payload []byte, n int, done bool, err error) {
	for n < len(p) && d.body.open {
		used, isPayload, s := d.body.step(p[n:])
		from := n
		n += used
		switch {
		case s != ok:
			return nil, n, false, &requestErrors[s]
		case isPayload:
			return p[from:n], n, !d.body.open, nil
		}
	}
	return nil, n, !d.body.open, nil
}
