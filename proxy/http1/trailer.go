package http1

// trailer follows a trailer section, which has the rules of a head (RFC 9112
// section 7.1.2) but arrives while nothing is kept.
type trailer struct {
	bytes   int
	fields  int
	name    [len("transfer-encoding")]byte // the present name in lower case, cut
	nameLen int
}

// frame moves the state by one byte of the trailer section.
func (t *trailer) frame(state *chunkState, c byte) shape {
	t.bytes++
	switch *state {
	case stateTrailerStart:
		return t.startLine(state, c)
	case stateTrailerName:
		switch {
		case c == ':':
			*state = stateTrailerValue
			return t.checkName()
		case isSpace(c):
			return spaceBeforeColon
		case class[c]&isToken == 0:
			return badName
		}
		t.addName(c)
	case stateTrailerValue:
		switch c {
		case '\r':
			*state = stateTrailerLF
		case '\n':
			return bareLF
		default:
			return checkTextByte(c)
		}
	case stateTrailerLF:
		if c != '\n' {
			return bareCR
		}
		*state = stateTrailerStart
	}
	return ok
}

func (t *trailer) startLine(state *chunkState, c byte) shape {
	switch {
	case c == '\r':
		*state = stateEndLF
		return ok
	case c == '\n':
		return bareLF
	case c == ':':
		return emptyName
	case isSpace(c):
		return obsFold
	case class[c]&isToken == 0:
		return badName
	}
	t.fields++
	t.nameLen = 0
	t.addName(c)
	*state = stateTrailerName
	return ok
}

func (t *trailer) addName(c byte) {
	if t.nameLen < len(t.name) {
		t.name[t.nameLen] = lower(c)
	}
	t.nameLen++
}

// checkName refuses trailers that frame or route a message or belong to the
// connection: a recipient that merges trailers into the head would take them
// for real (RFC 9110 section 6.5.1).
func (t *trailer) checkName() shape {
	if t.nameLen > len(t.name) {
		return ok
	}
	switch string(t.name[:t.nameLen]) {
	case "host", "content-length", "transfer-encoding", "content_length", "transfer_encoding",
		"connection", "upgrade", "expect", "te", "trailer":
		return forbiddenTrailer
	}
	return ok
}

// skipValue returns the number of plain bytes at the start of p.
func (t *trailer) skipValue(p []byte) (n int) {
	for n < len(p) && (p[n] >= 0x20 && p[n] != 0x7f || p[n] == '\t') {
		n++
	}
	t.bytes += n
	return n
}

// check keeps the trailer section within its limits.
func (t *trailer) check() shape {
	if t.bytes > MaxTrailers || t.fields > MaxFields {
		return trailerTooLarge
	}
	return ok
}
