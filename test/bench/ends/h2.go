package ends

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

const (
	unaryPath  = "/bench.Bench/Unary"
	streamPath = "/bench.Bench/Stream"

	unaryMessage  = 256  // bytes, in each direction
	streamMessage = 1024 // bytes
	messagePrefix = 5    // of gRPC: flags and length

	streamWindow = 1 << 20  // bytes that a client takes before it must open a stream's window
	connWindow   = 16 << 20 // and its connection's
)

// message is one of gRPC, uncompressed.
func message(size int) []byte {
	m := make([]byte, messagePrefix+size)
	binary.BigEndian.PutUint32(m[1:], uint32(size))
	return m
}

// h2conn is one end of an HTTP/2 connection. What it writes leaves when it has
// read all that there is, in as few system calls as it takes.
type h2conn struct {
	*http2.Framer
	out    *bufio.Writer
	encode *hpack.Encoder
	block  bytes.Buffer // what encode has written
	decode *hpack.Decoder
	fields map[string]string // that the last header block held
	unread int               // bytes of DATA for which no window was given back
}

func newH2Conn(conn net.Conn) *h2conn {
	c := &h2conn{out: bufio.NewWriterSize(conn, 32<<10), fields: map[string]string{}}
	c.Framer = http2.NewFramer(c.out, bufio.NewReaderSize(flusher{conn, c.out}, 64<<10))
	c.SetReuseFrames()
	c.encode = hpack.NewEncoder(&c.block)
	c.decode = hpack.NewDecoder(4096, func(f hpack.HeaderField) { c.fields[f.Name] = f.Value })
	return c
}

// flusher flushes before it waits.
type flusher struct {
	from io.Reader
	out  *bufio.Writer
}

func (f flusher) Read(p []byte) (int, error) {
	if err := f.out.Flush(); err != nil {
		return 0, err
	}
	return f.from.Read(p)
}

// headers writes a header block, given as names and values in turn.
func (c *h2conn) headers(stream uint32, end bool, fields ...string) error {
	c.block.Reset()
	for i := 0; i < len(fields); i += 2 {
		if err := c.encode.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}); err != nil {
			return err
		}
	}
	return c.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: c.block.Bytes(), EndHeaders: true, EndStream: end})
}

// received reads a header block into c.fields.
func (c *h2conn) received(f *http2.HeadersFrame) error {
	if !f.HeadersEnded() {
		return errors.New("a header block in more than one frame")
	}
	clear(c.fields)
	if _, err := c.decode.Write(f.HeaderBlockFragment()); err != nil {
		return err
	}
	return c.decode.Close()
}

// consume gives the connection's window back, half of it at a time.
func (c *h2conn) consume(f *http2.DataFrame) error {
	c.unread += int(f.Length)
	if c.unread < connWindow/2 {
		return nil
	}
	n := c.unread
	c.unread = 0
	return c.WriteWindowUpdate(0, uint32(n))
}

// housekeep answers what has nothing to do with a stream.
func (c *h2conn) housekeep(f http2.Frame) error {
	switch f := f.(type) {
	case *http2.SettingsFrame:
		if f.IsAck() {
			return nil
		}
		if size, ok := f.Value(http2.SettingHeaderTableSize); ok {
			c.encode.SetMaxDynamicTableSize(min(size, 4096))
		}
		return c.WriteSettingsAck()
	case *http2.PingFrame:
		if !f.IsAck() {
			return c.WritePing(true, f.Data)
		}
	case *http2.GoAwayFrame:
		return fmt.Errorf("the connection is being closed: %v %q", f.ErrCode, f.DebugData())
	}
	return nil
}
