package http1

import "bytes"

// Request is a parsed request head. The zero value is ready for Parse.
type Request struct {
	// Slices of the buffer given to Parse, valid until it changes.
	Raw    []byte // the head as it is to be forwarded, empty line included
	Method []byte
	Target []byte // as it stands in the request line
	Path   []byte // the target's path without query; "*" of OPTIONS *; empty for CONNECT
	Host   []byte // of Host field or target, as it came; empty if there is none

	Minor         uint8 // of HTTP/1.Minor: 0 or 1
	Body          Framing
	ContentLength int64 // if Body is Length

	Head       bool // the method is HEAD: the answer has no body
	Connect    bool // a tunnel is asked for; Target is host:port
	Upgrade    bool // another protocol is asked for by Upgrade and Connection: upgrade
	H2C        bool // that protocol is h2c
	Expect100  bool // the client waits for 100 (Continue) before it sends the body
	Close      bool // the client will not reuse the connection
	Idempotent bool // the method is: the request may be sent again (RFC 9110 section 9.2.2)

	head               head
	methodTo, targetTo int
}

// Asked is what has to be known of a request to read its answer.
type Asked struct{ Head, Connect, Upgrade bool }

// Asked returns what Response.Parse needs to know; it does not refer to the buffer.
func (r *Request) Asked() Asked { return Asked{r.Head, r.Connect, r.Upgrade} }

// Reset makes r ready for another message and lets go of the buffer. Parse
// does so by itself after a complete head or an error; call Reset before r
// rests, lest it keep a whole buffer alive.
func (r *Request) Reset() { *r = Request{} }

// Parse parses a request head at the start of b and returns its length, which
// includes one empty line before the request if there is one (RFC 9112 section
// 2.2; Raw does not include it). It returns 0 if the head is incomplete and is
// then called again with the same bytes and more behind them, which may have
// moved: bytes once looked at are not looked at again. After an error, always
// an *Error, the connection is good for nothing but an answer.
func (r *Request) Parse(b []byte) (n int, err error) {
	if r.head.done {
		r.Reset()
	}
	if s := r.parse(b); s != ok {
		r.head.done = true
		return 0, &requestErrors[s]
	}
	if !r.head.done {
		return 0, nil
	}
	return r.head.line, nil
}

func (r *Request) parse(b []byte) shape {
	h := &r.head
	for {
		from, to, found, s := h.next(b)
		if !found && !h.started {
			if bad := glance(b[h.start:]); bad != ok {
				return bad
			}
		}
		switch {
		case s != ok || !found:
			return s
		case !h.started && from == to:
			if h.start > 0 {
				return emptyStart
			}
			h.start = h.line
		case !h.started:
			s = r.requestLine(b[from:to])
			h.started = true
		case from == to:
			h.done = true
			return r.finish(b)
		default:
			s = h.field(b, from, to)
		}
		if s != ok {
			return s
		}
	}
}

// glance refuses an incomplete first line that cannot become a request line, so
// that nobody waits for the end of what is not HTTP.
func glance(line []byte) shape {
	n := tokenLen(line[:min(len(line), MaxMethod+1)])
	if n == len(line) && n <= MaxMethod || n == 0 && line[0] == '\r' && len(line) == 1 {
		return ok
	}
	if n == 0 || n > MaxMethod || line[n] != ' ' {
		return badMethod
	}
	return ok
}

// requestLine parses "method SP target SP version" (RFC 9112 section 3).
func (r *Request) requestLine(line []byte) shape {
	m := tokenLen(line[:min(len(line), MaxMethod+1)])
	if m == 0 || m > MaxMethod || m == len(line) || line[m] != ' ' {
		return badMethod
	}
	t := bytes.LastIndexByte(line, ' ')
	if t == m {
		return badVersion // HTTP/0.9
	}
	minor, s := version(line[t+1:])
	if s != ok {
		return s
	}
	target := line[m+1 : t]
	if len(target) == 0 {
		return badTarget
	}
	for _, c := range target {
		if class[c]&isTarget == 0 {
			return badTarget
		}
	}
	r.Minor = minor
	r.methodTo, r.targetTo = r.head.start+m, r.head.start+t
	return ok
}

// version parses an HTTP-version, which is case-sensitive (RFC 9112 section 2.3).
func version(p []byte) (minor uint8, s shape) {
	if len(p) != len("HTTP/1.1") || string(p[:5]) != "HTTP/" || p[6] != '.' || p[5]-'0' > 9 || p[7]-'0' > 9 {
		return 0, badVersion
	}
	if p[5] != '1' || p[7] > '1' {
		return 0, otherVersion
	}
	return p[7] - '0', ok
}

// finish draws conclusions from the whole head.
func (r *Request) finish(b []byte) shape {
	h := &r.head
	r.Raw = b[h.start:h.line]
	r.Method = b[h.start:r.methodTo]
	r.Target = b[r.methodTo+1 : r.targetTo]
	r.Host = b[h.hostFrom:h.hostTo]
	r.method()
	if s := r.target(h.hosts > 0); s != ok {
		return s
	}
	if h.hosts == 0 && r.Minor > 0 {
		return noHost
	}
	r.Close = !h.persists(r.Minor)
	// An HTTP/1.0 client knows neither (RFC 9110 sections 7.8 and 10.1.1).
	r.Upgrade = h.hasUpgrade && h.optUpgrade && r.Minor > 0 && !r.Connect
	r.H2C = h.h2c && r.Upgrade
	r.Expect100 = h.expect100 && r.Minor > 0
	return r.framing()
}

func (r *Request) framing() shape {
	h := &r.head
	switch {
	case h.coding != noCoding && h.lengths > 0:
		return lengthAndCoding
	case h.coding != noCoding && r.Minor == 0:
		return codingInHTTP10
	case r.Connect && (h.coding != noCoding || h.length > 0):
		return connectWithBody
	case h.coding != noCoding:
		r.Body = Chunked
	case h.length > 0:
		r.Body, r.ContentLength = Length, h.length
	}
	return ok
}

// method knows the methods of RFC 9110 section 9; others are neither HEAD nor
// CONNECT and not safe to repeat.
func (r *Request) method() {
	switch string(r.Method) {
	case "GET", "PUT", "DELETE", "OPTIONS", "TRACE":
		r.Idempotent = true
	case "HEAD":
		r.Head, r.Idempotent = true, true
	case "CONNECT":
		r.Connect = true
	}
}
