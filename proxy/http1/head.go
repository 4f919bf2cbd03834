package http1

import (
	"bytes"
	"math"
)

// Limits of a head, of requests and responses alike.
const (
	MaxHead   = 64 << 10 // bytes, from the start line to the empty line
	MaxFields = 1000
	MaxMethod = 32 // bytes
)

// Framing says how the end of a body is found (RFC 9112 section 6.3).
type Framing uint8

// Framings.
const (
	None    Framing = iota // there is no body
	Length                 // ContentLength bytes
	Chunked                // chunks and a trailer section
	EOF                    // responses only: all until the connection ends
)

// coding is what the Transfer-Encoding field says.
type coding uint8

const (
	noCoding coding = iota
	chunked
	layered // other codings below a final chunked
)

// head is what requests and responses have in common. Offsets, not slices,
// are kept between calls, because the caller may move the bytes to a larger
// buffer while the head is incomplete.
type head struct {
	start int // offset of the start line
	line  int // offset of the first line not yet parsed
	scan  int // everything before was searched for LF
	count int // field lines so far

	response  bool
	started   bool // the start line was parsed
	done      bool
	sawBareLF bool // responses only

	hosts            int
	hostFrom, hostTo int

	lengths      int
	lengthDigits int
	length       int64
	coding       coding

	optClose, optKeepAlive, optUpgrade bool // options of the Connection field
	hasUpgrade, h2c, expect100         bool
}

// next returns the bounds of the next line, without its end. found is false
// if it is not complete yet.
func (h *head) next(b []byte) (from, to int, found bool, s shape) {
	limit := h.start + MaxHead
	window := b[:min(len(b), limit)]
	i := bytes.IndexByte(window[h.scan:], '\n')
	if i < 0 {
		h.scan = len(window)
		switch {
		case h.scan < limit:
			return 0, 0, false, ok
		case h.started || h.response:
			return 0, 0, false, headTooLarge
		}
		return 0, 0, false, longTarget
	}
	from, to = h.line, h.scan+i
	h.line, h.scan = to+1, to+1
	switch {
	case to > from && b[to-1] == '\r':
		to--
	case h.response:
		h.sawBareLF = true
	default:
		return from, to, true, bareLF
	}
	return from, to, true, ok
}

// field parses the field line b[from:to].
func (h *head) field(b []byte, from, to int) shape {
	if h.count++; h.count > MaxFields {
		return tooManyFields
	}
	line := b[from:to]
	n := tokenLen(line)
	if n == 0 || n == len(line) || line[n] != ':' {
		return badField(line, n)
	}
	value := line[n+1:]
	if s := checkText(value); s != ok {
		return s
	}
	name := line[:n]
	switch n {
	case len("host"):
		if !h.response && is(name, "host") {
			return h.host(from+n+1, trim(value), value)
		}
	case len("expect"):
		if is(name, "expect") && is(trim(value), "100-continue") {
			h.expect100 = true
		}
	case len("upgrade"):
		if is(name, "upgrade") {
			h.upgrade(value)
		}
	case len("connection"):
		if is(name, "connection") {
			return h.connection(value)
		}
	case len("content-length"):
		if is(name, "content-length") {
			return h.contentLength(value)
		}
		if is(name, "content_length") {
			return underscoreName
		}
	case len("transfer-encoding"):
		if is(name, "transfer-encoding") {
			return h.transferEncoding(value)
		}
		if is(name, "transfer_encoding") {
			return underscoreName
		}
	}
	return ok
}

// badField names what is wrong with a line whose first n bytes are a token but
// that goes on with something else than a colon.
func badField(line []byte, n int) shape {
	switch {
	case isSpace(line[0]):
		return obsFold
	case n == 0 && line[0] == ':':
		return emptyName
	case n > 0 && n < len(line) && isSpace(line[n]):
		return spaceBeforeColon
	}
	return badName
}

// host takes the value of the Host field, whose untrimmed form starts at offset at.
func (h *head) host(at int, host, value []byte) shape {
	if h.hosts++; h.hosts > 1 {
		return twoHosts
	}
	if !validAuthority(host) {
		return badHost
	}
	for len(value) > 0 && isSpace(value[0]) {
		value = value[1:]
		at++
	}
	h.hostFrom, h.hostTo = at, at+len(host)
	return ok
}

func (h *head) upgrade(list []byte) {
	for len(list) > 0 {
		var protocol []byte
		protocol, list = element(list)
		h.hasUpgrade = h.hasUpgrade || len(protocol) > 0
		h.h2c = h.h2c || is(protocol, "h2c")
	}
}

// connection reads connection options (RFC 9110 section 7.6.1). An option that
// names a framing field would make the next hop drop that field.
func (h *head) connection(list []byte) shape {
	for len(list) > 0 {
		var option []byte
		option, list = element(list)
		switch {
		case is(option, "close"):
			h.optClose = true
		case is(option, "keep-alive"):
			h.optKeepAlive = true
		case is(option, "upgrade"):
			h.optUpgrade = true
		case is(option, "host"), is(option, "content-length"), is(option, "transfer-encoding"):
			return connectionNamesFraming
		}
	}
	return ok
}

// contentLength accepts digits after optional spaces. RFC 9110 would let tabs
// and trailing space pass, which only attackers send. The same digits again are
// forgiven in a response (RFC 9112 section 6.3).
func (h *head) contentLength(value []byte) shape {
	digits := skipSpaces(value)
	n, valid := decimal(digits, h.response)
	if !valid {
		return badLength
	}
	if h.lengths++; h.lengths > 1 && (!h.response || n != h.length || len(digits) != h.lengthDigits) {
		return twoLengths
	}
	h.length, h.lengthDigits = n, len(digits)
	return ok
}

// decimal reads 1*DIGIT. Leading zeros, which some parsers take for octal, are
// forgiven in responses only.
func decimal(p []byte, leadingZeros bool) (n int64, valid bool) {
	if len(p) == 0 || len(p) > 19 || p[0] == '0' && len(p) > 1 && !leadingZeros {
		return 0, false
	}
	for _, c := range p {
		d := int64(c) - '0'
		if d < 0 || d > 9 || n > (math.MaxInt64-d)/10 {
			return 0, false
		}
		n = n*10 + d
	}
	return n, true
}

func (h *head) transferEncoding(value []byte) shape {
	if h.coding != noCoding {
		return twoCodings
	}
	value = skipSpaces(value)
	if is(value, "chunked") {
		h.coding = chunked
		return ok
	}
	h.coding = layered
	if bytes.IndexByte(value, '\t') >= 0 || len(value) == 0 || isSpace(value[len(value)-1]) {
		return badCoding
	}
	for list := value; ; {
		var name []byte
		name, list = element(list)
		last := list == nil
		if len(name) == 0 || tokenLen(name) != len(name) || is(name, "chunked") != last {
			return badCoding
		}
		if last {
			break
		}
	}
	if !h.response {
		return unknownCoding
	}
	return ok
}

func skipSpaces(p []byte) []byte {
	for len(p) > 0 && p[0] == ' ' {
		p = p[1:]
	}
	return p
}

// persists tells what version and Connection field say about the connection
// (RFC 9112 section 9.3).
func (h *head) persists(minor uint8) bool {
	return !h.optClose && (minor > 0 || h.optKeepAlive)
}
