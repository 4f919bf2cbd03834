package ends

import (
	"flag"
	"fmt"
	"net"
	"time"

	"golang.org/x/net/http2"
)

// runCalls makes gRPC calls as fast as they are answered: over each connection,
// so many at a time.
func runCalls(args []string) error {
	flags := flag.NewFlagSet("calls", flag.ContinueOnError)
	connections := flags.Int("connections", 1, "how many")
	streams := flags.Int("streams", 1, "calls at a time over each connection")
	stream := flags.Bool("stream", false, "calls that are answered with messages without end; those are counted")
	long := flags.Duration("long", time.Second, "how long")
	if err := flags.Parse(args); err != nil {
		return err
	}
	return together(*connections, *long, func(until time.Time, report *Report) error {
		conn, err := net.DialTimeout("tcp", flags.Arg(0), 10*time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		c := newCaller(conn, *stream)
		if err := c.run(*streams, until); err != nil {
			return err
		}
		if *stream {
			c.Count = int(c.Bytes / int64(messagePrefix+streamMessage))
		}
		report.add(&c.Report)
		return nil
	})
}

// caller is the client's end of one connection.
type caller struct {
	*h2conn
	conn      net.Conn
	endless   bool
	authority string
	next      uint32 // stream
	request   []byte
	began     map[uint32]time.Time
	unread    map[uint32]int // bytes of endless streams for which no window was given back
	until     time.Time      // when calls are no longer made
	Report
}

func newCaller(conn net.Conn, endless bool) *caller {
	return &caller{h2conn: newH2Conn(conn), conn: conn, endless: endless, authority: conn.RemoteAddr().String(), next: 1,
		request: message(unaryMessage), began: map[uint32]time.Time{}, unread: map[uint32]int{}}
}

// run returns at the given time: with unary calls when those under way have
// been answered, with endless ones at once.
func (c *caller) run(streams int, until time.Time) error {
	c.until = until
	_ = c.conn.SetDeadline(until.Add(20 * time.Second)) // an answer that never comes is an error
	if err := c.greet(); err != nil {
		return err
	}
	for range streams {
		if err := c.call(); err != nil {
			return err
		}
	}
	for len(c.began) > 0 {
		f, err := c.ReadFrame()
		if err != nil {
			return err
		}
		if err := c.take(f); err != nil {
			return err
		}
		if c.endless && time.Now().After(until) {
			break
		}
	}
	return c.out.Flush()
}

func (c *caller) greet() error {
	if _, err := c.out.WriteString(http2.ClientPreface); err != nil {
		return err
	}
	err := c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: streamWindow}, http2.Setting{ID: http2.SettingEnablePush})
	if err != nil {
		return err
	}
	return c.WriteWindowUpdate(0, connWindow-65535)
}

func (c *caller) call() error {
	id, path := c.next, unaryPath
	if c.endless {
		path = streamPath
	}
	c.next += 2
	c.began[id] = time.Now()
	err := c.headers(id, false, ":method", "POST", ":scheme", "http", ":path", path, ":authority", c.authority,
		"content-type", "application/grpc", "te", "trailers")
	if err != nil {
		return err
	}
	return c.WriteData(id, true, c.request)
}

func (c *caller) take(f http2.Frame) error {
	switch f := f.(type) {
	case *http2.HeadersFrame:
		if err := c.received(f); err != nil {
			return err
		}
		if f.StreamEnded() {
			return c.ended(f.StreamID)
		}
	case *http2.DataFrame:
		c.Bytes += int64(len(f.Data()))
		if err := c.consume(f); err != nil {
			return err
		}
		if c.endless {
			return c.reopen(f)
		}
	case *http2.RSTStreamFrame:
		return fmt.Errorf("stream %d was reset: %v", f.StreamID, f.ErrCode)
	default:
		return c.housekeep(f)
	}
	return nil
}

// reopen gives an endless stream's window back, half of it at a time.
func (c *caller) reopen(f *http2.DataFrame) error {
	n := c.unread[f.StreamID] + int(f.Length)
	if n >= streamWindow/2 {
		if err := c.WriteWindowUpdate(f.StreamID, uint32(n)); err != nil {
			return err
		}
		n = 0
	}
	c.unread[f.StreamID] = n
	return nil
}

// ended takes note of a call's end, and makes the next.
func (c *caller) ended(id uint32) error {
	if status := c.fields["grpc-status"]; status != "0" {
		return fmt.Errorf("a call ended with %v", c.fields)
	}
	now := time.Now()
	c.latencies = append(c.latencies, now.Sub(c.began[id]))
	delete(c.began, id)
	c.Count++
	if now.After(c.until) {
		return nil
	}
	return c.call()
}

// useGRPC makes one call and leaves the connection open.
func useGRPC(conn net.Conn) error {
	if err := newCaller(conn, false).run(1, time.Now()); err != nil {
		return err
	}
	return conn.SetDeadline(time.Time{})
}
