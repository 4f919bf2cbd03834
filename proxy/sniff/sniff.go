// Package sniff tells from the first bytes of a connection what it speaks.
// It is pure: it looks at what has been read so far and says whether that is
// enough, so it works on segments of a single byte and never waits by itself.
package sniff

import (
	"bytes"
	"encoding/binary"
	"strings"

	"github.com/tulle-mesh/tulle/mesh"
)

// Verdict is what the bytes are.
type Verdict uint8

// Verdicts.
const (
	More    Verdict = iota // a proper prefix of something we know; read on
	HTTP1                  // a request line of HTTP/1.x
	HTTP2                  // HTTP/2 with prior knowledge
	TLS                    // a ClientHello that is not of the mesh
	MeshTLS                // a ClientHello that offers the mesh's ALPN
	Opaque                 // anything else
)

// MaxBytes bounds what a sniffer has to keep: a ClientHello or a request line
// that is longer is Opaque.
const MaxBytes = 16 << 10

const (
	preface   = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" // RFC 9113 section 3.4
	maxMethod = 32
)

// Client judges b, the first bytes that a client sent. It returns More only
// while b is shorter than MaxBytes.
func Client(b []byte) Verdict {
	v := client(b)
	if v == More && len(b) >= MaxBytes {
		return Opaque
	}
	return v
}

func client(b []byte) Verdict {
	switch {
	case len(b) == 0:
		return More
	case Handshake(b):
		return hello(b)
	case b[0] == preface[0]:
		n := min(len(b), len(preface))
		if string(b[:n]) == preface[:n] {
			// POST, PUT and PATCH part from the preface at the second or third byte.
			if n == len(preface) {
				return HTTP2
			}
			return More
		}
	}
	return requestLine(b)
}

// Handshake reports whether b, of at least one byte, may begin a ClientHello.
func Handshake(b []byte) bool { return b[0] == recordHandshake }

// requestLine recognises METHOD SP TARGET SP "HTTP/1." (RFC 9112 section 3).
// It demands the whole line, since binary protocols start with letters, too.
func requestLine(b []byte) Verdict {
	// Servers should ignore an empty line before the request (RFC 9112 section 2.2).
	if b[0] == '\r' {
		if len(b) == 1 {
			return More
		}
		if b[1] != '\n' {
			return Opaque
		}
		if b = b[2:]; len(b) == 0 {
			return More
		}
	}
	sp := bytes.IndexByte(b, ' ')
	method := b
	if sp >= 0 {
		method = b[:sp]
	}
	if len(method) == 0 || len(method) > maxMethod {
		return Opaque
	}
	for _, c := range method {
		if !methodByte(c) {
			return Opaque
		}
	}
	if sp < 0 {
		return More
	}
	line, _, whole := bytes.Cut(b[sp+1:], []byte{'\n'})
	for _, c := range line { // whether the rest has come or not: segments make no difference
		if c < ' ' && c != '\r' || c == 0x7f {
			return Opaque
		}
	}
	if !whole {
		return More
	}
	line = bytes.TrimSuffix(line, []byte{'\r'})
	if i := bytes.LastIndexByte(line, ' '); i > 0 && bytes.HasPrefix(line[i+1:], []byte("HTTP/")) {
		return HTTP1
	}
	return Opaque
}

// methodByte accepts what real methods are made of: capital letters, and '-'
// or '_' as in M-SEARCH. A stricter set than RFC 9110 tokens on purpose: it
// keeps text protocols such as "get foo" (memcached) out.
func methodByte(c byte) bool { return c >= 'A' && c <= 'Z' || c == '-' || c == '_' }

const (
	recordHandshake   = 22 // RFC 8446 section 5.1
	messageHello      = 1  // RFC 8446 section 4
	extensionALPN     = 16 // RFC 7301
	maxRecord         = 1<<14 + 256
	recordHeaderLen   = 5
	messageHeaderLen  = 4
	helloFixedLen     = 2 + 32 // legacy_version, random
	meshProtocolStart = "tulle-"
)

// hello judges bytes that begin as a TLS handshake record.
func hello(b []byte) Verdict {
	var message []byte
	for rest := b; ; {
		if len(rest) < recordHeaderLen {
			if len(rest) > 1 && rest[1] != 3 || len(rest) > 0 && rest[0] != recordHandshake {
				return Opaque
			}
			return More
		}
		n := int(binary.BigEndian.Uint16(rest[3:]))
		if rest[0] != recordHandshake || rest[1] != 3 || n == 0 || n > maxRecord {
			return Opaque
		}
		body := rest[recordHeaderLen:]
		whole := len(body) >= n
		if whole {
			body = body[:n]
		}
		if message == nil {
			message = body // the usual case: one record, no copy
		} else {
			message = append(message[:len(message):len(message)], body...)
		}
		if len(message) > 0 && message[0] != messageHello {
			return Opaque
		}
		if len(message) >= messageHeaderLen {
			size := int(message[1])<<16 | int(message[2])<<8 | int(message[3])
			if size > MaxBytes {
				return Opaque
			}
			if len(message) >= messageHeaderLen+size {
				return helloVerdict(message[messageHeaderLen : messageHeaderLen+size])
			}
		}
		if !whole {
			return More
		}
		rest = rest[recordHeaderLen+n:]
	}
}

// helloVerdict looks for the mesh's ALPN in the body of a ClientHello. A
// malformed one is TLS all the same: the application shall answer it.
func helloVerdict(b []byte) Verdict {
	r := reader(b)
	r.skip(helloFixedLen)
	r.vector(1) // legacy_session_id
	r.vector(2) // cipher_suites
	r.vector(1) // legacy_compression_methods
	extensions := reader(r.vector(2))
	for len(extensions) > 0 {
		kind := extensions.uint(2)
		data := reader(extensions.vector(2))
		if kind != extensionALPN {
			continue
		}
		names := reader(data.vector(2))
		for len(names) > 0 {
			if strings.HasPrefix(string(names.vector(1)), meshProtocolStart) {
				return MeshTLS
			}
		}
	}
	return TLS
}

// reader takes values off the front of a slice; once it runs short it is empty.
type reader []byte

func (r *reader) skip(n int) []byte {
	if n > len(*r) {
		*r = nil
		return nil
	}
	b := (*r)[:n]
	*r = (*r)[n:]
	return b
}

func (r *reader) uint(size int) int {
	n := 0
	for _, c := range r.skip(size) {
		n = n<<8 | int(c)
	}
	return n
}

func (r *reader) vector(size int) []byte { return r.skip(r.uint(size)) }

// Protocol returns the name under which a verdict is recorded.
func (v Verdict) Protocol() mesh.Protocol {
	switch v {
	case HTTP1:
		return mesh.HTTP1
	case HTTP2:
		return mesh.HTTP2
	case TLS:
		return mesh.TLS
	case Opaque:
		return mesh.TCP
	}
	return mesh.Unknown
}
