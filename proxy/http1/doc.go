// Package http1 reads HTTP/1.x messages (RFC 9110, RFC 9112) for a proxy that
// forwards them byte for byte.
//
//	n, err := req.Parse(buf)            // 0, nil: read more and call again
//	...forward req.Raw, then the body:
//	body.Reset(req.Body, req.ContentLength)
//	n, done, err := body.Advance(buf)   // how many bytes belong to the message
//
// The codec works on buffers of the caller. It does no I/O, starts no goroutine
// and allocates nothing. A parsed head points into the buffer and is valid until
// the buffer changes; what must live longer is copied as small values (Asked).
//
// Since heads are forwarded as they came, whatever two programs could read
// differently has to be refused rather than repaired: every shape of request
// smuggling that we know of ends as an *Error and is never forwarded. Of
// responses the codec accepts what real servers send, as long as it has one
// meaning only; what it forgives is listed at Response.
//
// Non-goals: header maps, rewriting, content codings, HTTP/2.
package http1
