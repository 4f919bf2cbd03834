// Package http2 is one end of an HTTP/2 connection (RFC 9113) for a proxy that
// forwards streams: what is received is handed on at once, and the window of a
// stream opens only as its bytes have left on the other side.
//
//	c := http2.New(transport, http2.Config{Server: true, Owner: owner})
//	err := c.Run(nil)   // the reading goroutine: frames become calls of Handlers
//
//	read a batch ─▶ frame ─▶ Handler.Head, Data, Reset ─▶ SendHead, SendData, SendReset
//	                                                       of a stream of another Conn
//	end of batch ─▶ every Conn that was touched writes once
//
// A connection has one goroutine, which reads. Writing is done by whoever ends
// a batch, without waiting; a goroutine of its own exists only while the socket
// has no room. There is none per stream.
//
// Frames are parsed where they were read and payload is copied once, into the
// buffer of the other connection; golang.org/x/net/http2's Framer would copy it
// first and allocate for each frame but DATA. HPACK is golang.org/x/net's.
//
// No lock is held while a Handler or an Owner is called, and no two Conns are
// ever locked at once; so a Handler may call any method.
//
// Non-goals: server push, priorities, HTTP semantics beyond sections 8.1 to 8.3.
package http2
