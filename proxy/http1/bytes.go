package http1

import "encoding/binary"

// Classes of bytes.
const (
	isToken  = 1 << iota // tchar, RFC 9110 5.6.2
	isTarget             // what we let pass in a request target
	isHost               // of a registered name or IPv4 address, RFC 3986 3.2.2 without sub-delims
)

var class = func() (t [256]uint8) {
	const (
		digits = "0123456789"
		alphas = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	)
	for _, c := range []byte(digits + alphas + "!#$%&'*+-.^_`|~") {
		t[c] |= isToken
	}
	for _, c := range []byte(digits + alphas + "-._~%") {
		t[c] |= isHost
	}
	// Browsers and curl send some of what RFC 3986 forbids ("|", "{", raw
	// UTF-8), and it has no second meaning. A fragment has: some servers cut it.
	for c := 0x21; c < 0x100; c++ {
		if c != 0x7f && c != '#' {
			t[c] |= isTarget
		}
	}
	return t
}()

// tokenLen returns the number of token bytes that p starts with.
func tokenLen(p []byte) int {
	for i, c := range p {
		if class[c]&isToken == 0 {
			return i
		}
	}
	return len(p)
}

// checkText finds control bytes in a field value or reason phrase:
// HTAB, SP, VCHAR and obs-text may stand there (RFC 9110 5.5).
func checkText(p []byte) shape {
	const (
		ones  = 0x0101010101010101
		highs = 0x80 * ones
	)
	for len(p) >= 8 {
		w := binary.LittleEndian.Uint64(p)
		d := w ^ 0x7f*ones
		// Non-zero exactly if some byte is below 0x20, or is DEL.
		if (w-0x20*ones)&^w&highs|(d-ones)&^d&highs != 0 {
			if s := checkTextSlow(p[:8]); s != ok {
				return s
			}
		}
		p = p[8:]
	}
	return checkTextSlow(p)
}

func checkTextSlow(p []byte) shape {
	for _, c := range p {
		if c < 0x20 && c != '\t' || c == 0x7f {
			if c == '\r' {
				return bareCR
			}
			return controlByte
		}
	}
	return ok
}

// trim cuts optional white space (SP, HTAB) off both ends.
func trim(p []byte) []byte {
	for len(p) > 0 && isSpace(p[0]) {
		p = p[1:]
	}
	for len(p) > 0 && isSpace(p[len(p)-1]) {
		p = p[:len(p)-1]
	}
	return p
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' }

// is tells whether p equals the lower-case word, regardless of ASCII case.
func is(p []byte, word string) bool {
	if len(p) != len(word) {
		return false
	}
	for i := range len(word) {
		if lower(p[i]) != word[i] {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if c-'A' < 26 {
		c |= 0x20
	}
	return c
}

func sameFold(p, q []byte) bool {
	if len(p) != len(q) {
		return false
	}
	for i := range p {
		if lower(p[i]) != lower(q[i]) {
			return false
		}
	}
	return true
}

// element cuts the first element off a comma-separated list (RFC 9110 5.6.1).
func element(list []byte) (first, rest []byte) {
	for i, c := range list {
		if c == ',' {
			return trim(list[:i]), list[i+1:]
		}
	}
	return trim(list), nil
}
