package stream

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"testing"
)

// Frames are as short as the other side wants them, and their payload is whole.
func TestLimit(t *testing.T) {
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	c := New(near, func() {})
	c.Limit(FirstMaxPayload)
	sent := make([]byte, 3*FirstMaxPayload+17)
	for i := range sent {
		sent[i] = byte(i % 251)
	}
	done := make(chan error, 1)
	go func() {
		done <- c.WriteFramed(append(make([]byte, HeaderLen), sent...))
		near.Close()
	}()
	var got []byte
	for {
		var head [HeaderLen]byte
		if _, err := io.ReadFull(far, head[:]); err != nil {
			break
		}
		n := binary.BigEndian.Uint32(head[:]) & 0xffffff
		if frameType(head[0]) != frameData || n > FirstMaxPayload {
			t.Fatalf("frame %d of %d bytes", head[0], n)
		}
		payload := make([]byte, n)
		if _, err := io.ReadFull(far, payload); err != nil {
			t.Fatal(err)
		}
		got = append(got, payload...)
	}
	if err := <-done; err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d bytes of %d, %v", len(got), len(sent), err)
	}
}
