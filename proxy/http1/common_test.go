package http1

import (
	"errors"
	"strconv"
	"testing"
)

// wantCode fails the test unless err is the *Error of that code and status.
func wantCode(t *testing.T, err error, code string, status int) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("error = %v, want %s", err, code)
	}
	if e.Code != code || e.Status != status {
		t.Fatalf("error = %s (%d), want %s (%d)", e.Code, e.Status, code, status)
	}
}

func itoa(n int) string { return strconv.Itoa(n) }

func describeFraming(f Framing, length int64) string {
	if f == Length {
		return "length=" + strconv.FormatInt(length, 10)
	}
	return map[Framing]string{None: "none", Chunked: "chunked", EOF: "eof"}[f]
}
