package http1

import "bytes"

// target checks the form of the request target (RFC 9112 section 3.2) and that
// it does not contradict the Host field; it fills Path, and Host if that field
// is missing.
func (r *Request) target(hasHost bool) shape {
	t := r.Target
	switch {
	case r.Connect:
		return r.authorityForm(hasHost)
	case t[0] == '/':
		r.Path = path(t)
		return ok
	case len(t) == 1 && t[0] == '*':
		if string(r.Method) != "OPTIONS" {
			return badTarget
		}
		r.Path = t
		return ok
	}
	return r.absoluteForm(hasHost)
}

// authorityForm is the host:port of CONNECT. Old clients leave the port out of
// their Host field.
func (r *Request) authorityForm(hasHost bool) shape {
	host, port := splitPort(r.Target)
	if len(host) == 0 || len(port) < 2 || !validAuthority(r.Target) {
		return badTarget
	}
	switch {
	case !hasHost:
		r.Host = r.Target
	case !sameFold(r.Host, r.Target) && !sameFold(r.Host, host):
		return hostMismatch
	}
	return ok
}

// absoluteForm is scheme://authority/path?query, as sent to a forward proxy.
func (r *Request) absoluteForm(hasHost bool) shape {
	scheme, rest, found := bytes.Cut(r.Target, []byte("://"))
	if !found || !validScheme(scheme) {
		return badTarget
	}
	end := bytes.IndexAny(rest, "/?")
	if end < 0 {
		end = len(rest)
	}
	authority := rest[:end]
	// User information before an "@" is refused, too (RFC 9110 section 4.2.4).
	if len(authority) == 0 || !validAuthority(authority) {
		return badTarget
	}
	if !hasHost {
		r.Host = authority
	} else if !sameFold(cutDefaultPort(scheme, authority), cutDefaultPort(scheme, r.Host)) {
		return hostMismatch
	}
	r.Path = path(rest[end:])
	return ok
}

func path(p []byte) []byte {
	if i := bytes.IndexByte(p, '?'); i >= 0 {
		return p[:i]
	}
	return p
}

// validScheme: RFC 3986 section 3.1.
func validScheme(p []byte) bool {
	for i, c := range p {
		letter := lower(c)-'a' < 26
		if !letter && (i == 0 || c-'0' > 9 && c != '+' && c != '-' && c != '.') {
			return false
		}
	}
	return len(p) > 0
}

// validAuthority accepts a name or address with an optional port, or nothing.
// The sub-delims of RFC 3986 ("a,b", "a;b") are left out: no host has them, and
// programs disagree on them.
func validAuthority(p []byte) bool {
	host, port := splitPort(p)
	if len(port) > 6 || len(host) == 0 && len(port) > 0 {
		return false
	}
	for _, c := range port[min(1, len(port)):] {
		if c-'0' > 9 {
			return false
		}
	}
	if len(host) > 0 && host[0] == '[' {
		return validLiteral(host)
	}
	for _, c := range host {
		if class[c]&isHost == 0 {
			return false
		}
	}
	return true
}

// validLiteral checks the bytes of "[" address "]"; it may carry a zone.
func validLiteral(p []byte) bool {
	if len(p) < len("[::]") || p[len(p)-1] != ']' {
		return false
	}
	for _, c := range p[1 : len(p)-1] {
		if c != ':' && class[c]&isHost == 0 {
			return false
		}
	}
	return true
}

// splitPort cuts ":port" off the end; a port that is not there is empty.
func splitPort(p []byte) (host, port []byte) {
	i := bytes.LastIndexByte(p, ':')
	if i < 0 || bytes.LastIndexByte(p, ']') > i {
		return p, nil
	}
	return p[:i], p[i:]
}

func cutDefaultPort(scheme, authority []byte) []byte {
	host, port := splitPort(authority)
	if is(scheme, "http") && string(port) == ":80" || is(scheme, "https") && string(port) == ":443" || string(port) == ":" {
		return host
	}
	return authority
}
