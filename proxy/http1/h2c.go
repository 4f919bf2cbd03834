package http1

import "bytes"

// WithoutH2C takes out of a request head what asks for h2c (RFC 7540 section 3.2):
// the fields Upgrade and HTTP2-Settings. So the application answers in HTTP/1.1, as
// it may, and a connection whose messages are looked at does not become one whose
// messages are not. What stays is moved to the end of head, which Parse has
// accepted; the number of bytes that are free in front of it is returned.
func WithoutH2C(head []byte) int {
	w := len(head)
	for end := len(head); end > 0; {
		start := bytes.LastIndexByte(head[:end-1], '\n') + 1
		line := head[start:end]
		end = start
		name, _, _ := bytes.Cut(line, []byte(":"))
		if is(name, "upgrade") || is(name, "http2-settings") {
			continue
		}
		w -= len(line)
		copy(head[w:], line)
	}
	return w
}
