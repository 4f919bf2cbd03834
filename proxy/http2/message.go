package http2

import (
	"errors"
	"strconv"
	"strings"

	"golang.org/x/net/http2/hpack"
)

// MaxHeaderList bounds a header list as section 6.5.2 counts it: names, values
// and 32 bytes for each field, so that many tiny ones are no way around it.
const MaxHeaderList = 64 << 10

const fieldOverhead = 32

// kind is what a header list begins or ends.
type kind uint8

const (
	requestHead kind = iota
	responseHead
	trailer
)

// Message is a header list and the facts in it. Fields and what points into
// them are valid until the Handler returns; the strings stay.
type Message struct {
	Fields []hpack.HeaderField

	Method, Scheme, Authority, Path, Protocol string // of a request

	Status        int   // of a response
	ContentLength int64 // -1: none
	GRPC          bool  // its content-type is application/grpc
	GRPCStatus    int   // -1: none

	TooLarge bool // Fields were more than MaxHeaderList and are not all here
	Trailer  bool // the list ends a message

	size                                             int
	hasMethod, hasScheme, hasAuthority, hasPath, has bool // has: :protocol
	hasStatus, regular                               bool
	host                                             string
	hasHost                                          bool
	oddLength                                        bool // content-length repeated, or with leading zeros
	early                                            bool // has a field that only a head may have
	bad                                              error
}

// reset prepares m for another list.
func (m *Message) reset() {
	clear(m.Fields)
	*m = Message{Fields: m.Fields[:0], ContentLength: -1, GRPCStatus: -1}
}

// Interim reports whether m is a 1xx answer: another one follows.
func (m *Message) Interim() bool { return m.Status >= 100 && m.Status < 200 }

// Host returns the host field of a request, "" if there was none.
func (m *Message) Host() string { return m.host }

// add takes one field. Errors are kept for check, since the whole block has to
// be decoded in any case.
func (m *Message) add(f hpack.HeaderField) {
	m.size += len(f.Name) + len(f.Value) + fieldOverhead
	if f.Name == "content-type" {
		m.GRPC = strings.HasPrefix(f.Value, "application/grpc")
	}
	if m.size > MaxHeaderList {
		m.TooLarge = true
		return
	}
	m.Fields = append(m.Fields, f)
	if m.bad == nil {
		m.bad = m.note(f)
	}
}

// Errors of sections 8.2 and 8.3: a message that has one is malformed.
var (
	errEmptyName    = errors.New("field without a name")
	errName         = errors.New("field name with a character that is not allowed")
	errUpper        = errors.New("field name with a capital letter")
	errValue        = errors.New("field value with CR, LF or NUL, or with space around it")
	errConnSpecific = errors.New("field of one connection")
	errTE           = errors.New("te other than trailers")
	errPseudoOrder  = errors.New("pseudo-header field behind a regular one")
	errPseudoTwice  = errors.New("pseudo-header field twice")
	errPseudo       = errors.New("pseudo-header field that does not belong here")
	errMissing      = errors.New("pseudo-header field missing")
	errAuthority    = errors.New("host differs from :authority")
	errLength       = errors.New("content-length is not one number")
	errHost         = errors.New("host twice")
	errUnderscore   = errors.New("field that some read as the one that frames a message")
	errTrailer      = errors.New("field that does not belong into a trailer")
	errConnectBody  = errors.New("content-length of a tunnel")
	errStatus       = errors.New(":status is not three digits")
	errTarget       = errors.New("the pseudo-header fields make no request target")
	errSwitching    = errors.New("101 does not exist in HTTP/2")
)

// note checks a field by itself and keeps what it says.
func (m *Message) note(f hpack.HeaderField) error {
	if !validValue(f.Value) {
		return errValue
	}
	if f.Name == "" {
		return errEmptyName
	}
	if f.Name[0] == ':' {
		return m.notePseudo(f)
	}
	m.regular = true
	for i := range len(f.Name) {
		if c := f.Name[i]; !nameBytes[c] {
			if c >= 'A' && c <= 'Z' {
				return errUpper
			}
			return errName
		}
	}
	switch f.Name {
	case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
		return errConnSpecific
	case "content_length", "transfer_encoding":
		return errUnderscore // as http1 refuses them
	case "te":
		m.early = true
		if f.Value != "trailers" {
			return errTE
		}
	case "expect", "trailer":
		m.early = true
	case "host":
		if m.early = true; m.hasHost {
			return errHost
		}
		m.host, m.hasHost = f.Value, true
	case "content-length":
		m.early = true
		return m.noteLength(f.Value)
	case "grpc-status":
		if n, err := strconv.ParseUint(f.Value, 10, 16); err == nil {
			m.GRPCStatus = int(n)
		}
	}
	return nil
}

func (m *Message) noteLength(v string) error {
	if v == "" || v[0] < '0' || v[0] > '9' {
		return errLength
	}
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil || m.ContentLength >= 0 && m.ContentLength != n {
		return errLength
	}
	m.oddLength = m.oddLength || m.ContentLength >= 0 || v[0] == '0' && len(v) > 1
	m.ContentLength = n
	return nil
}

func (m *Message) notePseudo(f hpack.HeaderField) error {
	if m.regular {
		return errPseudoOrder
	}
	var into *string
	var seen *bool
	switch f.Name {
	case ":method":
		into, seen = &m.Method, &m.hasMethod
	case ":scheme":
		into, seen = &m.Scheme, &m.hasScheme
	case ":authority":
		into, seen = &m.Authority, &m.hasAuthority
	case ":path":
		into, seen = &m.Path, &m.hasPath
	case ":protocol":
		into, seen = &m.Protocol, &m.has
	case ":status":
		if m.hasStatus {
			return errPseudoTwice
		}
		m.hasStatus = true
		if len(f.Value) != 3 || f.Value[0] < '1' || f.Value[0] > '9' {
			return errStatus
		}
		n, err := strconv.ParseUint(f.Value, 10, 16)
		if err != nil {
			return errStatus
		}
		m.Status = int(n)
		return nil
	default:
		return errPseudo
	}
	if *seen {
		return errPseudoTwice
	}
	*into, *seen = f.Value, true
	return nil
}

// check judges the whole list as one of kind k. connect says whether extended
// CONNECT (RFC 8441) was agreed on.
func (m *Message) check(k kind, connect bool) error {
	if m.bad != nil {
		return m.bad
	}
	asked := m.hasMethod || m.hasScheme || m.hasAuthority || m.hasPath || m.has
	switch k {
	case trailer:
		switch {
		case asked || m.hasStatus:
			return errPseudo
		case m.early: // who merges it into the head would believe it (RFC 9110 section 6.5.1)
			return errTrailer
		}
		return nil
	case responseHead:
		switch {
		case asked:
			return errPseudo
		case !m.hasStatus:
			return errMissing
		case m.Status == 101:
			return errSwitching
		}
		return nil // its content-length may be odd: real servers' are, and it means one thing only
	}
	if m.hasStatus || m.has && !connect {
		return errPseudo
	}
	if m.oddLength {
		return errLength
	}
	if m.hasHost && m.hasAuthority && !strings.EqualFold(m.host, m.Authority) {
		return errAuthority
	}
	if m.Method == "CONNECT" && !m.has {
		if m.hasScheme || m.hasPath {
			return errPseudo
		}
		switch {
		case m.Authority == "":
			return errMissing
		case m.ContentLength >= 0:
			return errConnectBody
		}
		return m.checkTarget()
	}
	if m.Method == "" || m.Scheme == "" || m.Path == "" || m.has && m.Method != "CONNECT" {
		return errMissing
	}
	return m.checkTarget()
}

// checkTarget refuses what an application could read in two ways that puts these
// together again to a URL or to a request line of HTTP/1.
func (m *Message) checkTarget() error {
	for i := range len(m.Method) {
		if c := m.Method[i]; !nameBytes[c] && (c < 'A' || c > 'Z') { // a token
			return errName
		}
	}
	if !only(m.Path, &pathBytes) || !only(m.Authority, &hostBytes) || !only(m.host, &hostBytes) || !only(m.Protocol, &pathBytes) {
		return errTarget
	}
	switch {
	case m.Method == "CONNECT" && !m.has: // has neither scheme nor path
		return nil
	case !validScheme(m.Scheme):
		return errTarget
	case m.Path[0] != '/' && !(m.Path == "*" && m.Method == "OPTIONS"):
		return errTarget
	}
	return nil
}

// validScheme implements RFC 3986 section 3.1.
func validScheme(s string) bool {
	for i := range len(s) {
		c := s[i]
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !letter && (i == 0 || (c < '0' || c > '9') && c != '+' && c != '-' && c != '.') {
			return false
		}
	}
	return true
}

// validValue implements section 8.2.1.
func validValue(v string) bool {
	if v == "" {
		return true
	}
	if blank(v[0]) || blank(v[len(v)-1]) {
		return false
	}
	for i := range len(v) {
		if c := v[i]; c == 0 || c == '\r' || c == '\n' {
			return false
		}
	}
	return true
}

func blank(c byte) bool { return c == ' ' || c == '\t' }

func only(s string, ok *[256]bool) bool {
	for i := range len(s) {
		if !ok[s[i]] {
			return false
		}
	}
	return true
}

// nameBytes are the bytes of a field name: those of a token (RFC 9110 section
// 5.6.2) but for capital letters. In a path nothing is invisible and nothing begins
// a fragment; in an authority nothing begins what stands before or behind it in a URL.
var (
	nameBytes = bytesOf("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz")
	pathBytes = visibleBut("#")
	hostBytes = visibleBut(`/\?#@`)
)

func bytesOf(set string) (ok [256]bool) {
	for _, c := range []byte(set) {
		ok[c] = true
	}
	return ok
}

func visibleBut(set string) (ok [256]bool) {
	for c := range ok {
		ok[c] = c > ' ' && c != 0x7f && strings.IndexByte(set, byte(c)) < 0
	}
	return ok
}
