package http2

import "fmt"

// Code is an error code (RFC 9113 section 7). Unknown ones are passed on.
type Code uint32

// Error codes.
const (
	NoError Code = iota
	ProtocolError
	InternalError
	FlowControlError
	SettingsTimeout
	StreamClosed
	FrameSizeError
	RefusedStream
	Cancel
	CompressionError
	ConnectError
	EnhanceYourCalm
	InadequateSecurity
	HTTP11Required
)

var codeNames = [...]string{
	"NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED", "FRAME_SIZE_ERROR",
	"REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM", "INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED",
}

// String returns the name in the RFC.
func (c Code) String() string {
	if int(c) < len(codeNames) {
		return codeNames[c]
	}
	return fmt.Sprintf("error code %d", uint32(c))
}

// ConnError ends the connection: the peer was sent GOAWAY with this code.
type ConnError struct {
	Code   Code
	Reason string
}

func (e *ConnError) Error() string { return "http2: " + e.Code.String() + ": " + e.Reason }

// GoAwayError is what streams end with that the peer's GOAWAY says it has not
// seen, and connections that the peer closed after a GOAWAY with an error.
type GoAwayError struct {
	Code  Code
	Debug string
}

func (e *GoAwayError) Error() string {
	return fmt.Sprintf("http2: the peer sent GOAWAY %s %q", e.Code, e.Debug)
}

// streamError ends one stream.
type streamError struct {
	id     uint32
	code   Code
	reason string
}

func (e *streamError) Error() string {
	return fmt.Sprintf("http2: stream %d: %s: %s", e.id, e.code, e.reason)
}
