package http1

// Response is a parsed response head. The zero value is ready for Parse.
//
// Forgiven in responses, because real servers send it and it has one meaning
// only: lines that end with a bare LF, a missing reason phrase with or without
// its space, Content-Length repeated with the same value or with leading zeros,
// codings below a final chunked, content announced by a 204. The first and the
// last set Close, so that a peer who reads them differently gains nothing.
type Response struct {
	Raw []byte // the head to be forwarded; valid until the buffer given to Parse changes

	Status        int   // 100 to 999
	Minor         uint8 // of HTTP/1.Minor: 0 or 1
	Body          Framing
	ContentLength int64 // if Body is Length

	Close              bool // after this message the server's connection ends, and so must the client's
	Interim            bool // 1xx but 101: another head follows
	SwitchingProtocols bool // 101, as was asked for
	Tunnel             bool // that, or 2xx to a CONNECT: the bytes that follow are no longer HTTP

	head head
}

// Reset makes r ready for another message and lets go of the buffer. Parse
// does so by itself after a complete head or an error; call Reset before r
// rests, lest it keep a whole buffer alive.
func (r *Response) Reset() { *r = Response{} }

// Parse parses a response head at the start of b, the answer to a request that
// asked for asked. It returns the head's length, or 0 if it is incomplete and
// Parse is to be called again with more bytes, as with Request.Parse.
func (r *Response) Parse(b []byte, asked Asked) (n int, err error) {
	if r.head.done {
		r.Reset()
	}
	if s := r.parse(b, asked); s != ok {
		r.head.done = true
		return 0, &responseErrors[s]
	}
	if !r.head.done {
		return 0, nil
	}
	return r.head.line, nil
}

func (r *Response) parse(b []byte, asked Asked) shape {
	h := &r.head
	h.response = true
	for {
		from, to, found, s := h.next(b)
		switch {
		case !found && !h.started && !couldBeStatusLine(b):
			return badStatusLine
		case s != ok || !found:
			return s
		case !h.started:
			s = r.statusLine(b[from:to])
			h.started = true
		case from == to:
			h.done = true
			r.Raw = b[:h.line]
			return r.finish(asked)
		default:
			s = h.field(b, from, to)
		}
		if s != ok {
			return s
		}
	}
}

func couldBeStatusLine(b []byte) bool {
	const prefix = "HTTP/1."
	n := min(len(b), len(prefix))
	return string(b[:n]) == prefix[:n]
}

// statusLine parses "version SP code [SP reason]" (RFC 9112 section 4).
func (r *Response) statusLine(line []byte) shape {
	const codeAt, reasonAt = len("HTTP/1.1 "), len("HTTP/1.1 200")
	if len(line) < reasonAt || line[codeAt-1] != ' ' {
		return badStatusLine
	}
	minor, s := version(line[:codeAt-1])
	if s != ok {
		return badStatusLine
	}
	status := 0
	for _, c := range line[codeAt:reasonAt] {
		if c-'0' > 9 {
			return badStatusLine
		}
		status = status*10 + int(c-'0')
	}
	if status < 100 || len(line) > reasonAt && line[reasonAt] != ' ' {
		return badStatusLine
	}
	r.Minor, r.Status = minor, status
	return checkText(line[reasonAt:])
}

// finish draws conclusions from the whole head: RFC 9112 section 6.3, in its order.
func (r *Response) finish(asked Asked) shape {
	h := &r.head
	hasBody := h.coding != noCoding || h.length > 0
	r.Close = !h.persists(r.Minor) || h.sawBareLF
	switch {
	case r.Status < 200:
		return r.interim(asked, hasBody)
	case asked.Connect && r.Status < 300:
		r.Tunnel = true // its Content-Length and Transfer-Encoding mean nothing
		return ok
	case h.coding != noCoding && h.lengths > 0:
		return lengthAndCoding
	case h.coding != noCoding && r.Minor == 0:
		return codingInHTTP10
	case h.coding != noCoding && h.sawBareLF:
		return bareLF
	case asked.Head, r.Status == 304:
		return ok
	case r.Status == 204:
		r.Close = r.Close || hasBody
		return ok
	case h.coding != noCoding:
		r.Body = Chunked
	case h.length > 0:
		r.Body, r.ContentLength = Length, h.length
	case h.lengths == 0:
		r.Body, r.Close = EOF, true
	}
	return ok
}

// interim concludes a 1xx head. It cannot end the connection, as the final
// answer is still to come.
func (r *Response) interim(asked Asked, hasBody bool) shape {
	switch {
	case hasBody:
		return interimWithBody
	case r.head.sawBareLF:
		return bareLF
	case r.Status != 101:
		r.Interim, r.Close = true, false
		return ok
	case !asked.Upgrade || r.Minor == 0:
		return unaskedSwitch
	}
	r.SwitchingProtocols, r.Tunnel = true, true
	return ok
}
