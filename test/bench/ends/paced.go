package ends

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// runPaced sends HTTP requests at fixed times, whether or not earlier ones have
// been answered, and takes each one's latency from the time at which it was
// meant to be sent. A server that stalls so is charged for all the requests that
// should have been made meanwhile (no "coordinated omission").
func runPaced(args []string) error {
	flags := flag.NewFlagSet("paced", flag.ContinueOnError)
	rate := flags.Int("rate", 1000, "requests a second")
	connections := flags.Int("connections", 64, "at most so many requests are under way; further ones wait, and their time counts")
	long := flags.Duration("long", time.Second, "how long")
	if err := flags.Parse(args); err != nil {
		return err
	}
	p, err := newPacer(flags.Arg(0), *connections, timetable{every: time.Second / time.Duration(*rate), count: int(long.Seconds() * float64(*rate))})
	if err != nil {
		return err
	}
	if err := p.run(); err != nil {
		return err
	}
	p.rankTenths(*rate / 10)
	return p.print()
}

// timetable says when each of a number of requests is meant to be sent, from a
// beginning on.
type timetable struct {
	every time.Duration
	count int
}

// due returns how many should have been sent by then.
func (t timetable) due(since time.Duration) int { return min(int(since/t.every)+1, t.count) }

// lateness is how long request i has taken if it is answered then.
func (t timetable) lateness(i int, since time.Duration) time.Duration {
	return since - time.Duration(i)*t.every
}

// pacer is one thread with an epoll: Go's own timers may be a millisecond late.
type pacer struct {
	Report
	timetable
	began   time.Time
	epoll   int
	clock   int // timerfd
	request []byte
	idle    []*pacedConn
	conns   map[int]*pacedConn
	sent    int
	buffer  [8192]byte
}

// pacedConn is one connection, with at most one request under way.
type pacedConn struct {
	fd    int
	index int    // of the request under way
	head  []byte // of its answer, until it is complete
	rest  int    // bytes of its body still to come
}

func newPacer(addr string, connections int, t timetable) (*pacer, error) {
	p := &pacer{timetable: t, Report: Report{latencies: make([]time.Duration, t.count)}, conns: map[int]*pacedConn{}, request: []byte("GET / HTTP/1.1\r\nHost: " + addr + "\r\n\r\n")}
	server, err := sockaddr(addr)
	if err != nil {
		return nil, err
	}
	if p.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	if p.clock, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC); err != nil {
		return nil, fmt.Errorf("timerfd: %w", err)
	}
	for range connections {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("socket: %w", err)
		}
		err = errors.Join(unix.Connect(fd, server), unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1), unix.SetNonblock(fd, true), p.watch(fd))
		if err != nil {
			return nil, fmt.Errorf("connect to %s: %w", addr, err)
		}
		p.conns[fd] = &pacedConn{fd: fd}
		p.idle = append(p.idle, p.conns[fd])
	}
	return p, p.watch(p.clock)
}

func (p *pacer) watch(fd int) error {
	return unix.EpollCtl(p.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
}

// run returns when every request has been answered.
func (p *pacer) run() error {
	tick := unix.NsecToTimespec(p.every.Nanoseconds())
	if err := unix.TimerfdSettime(p.clock, 0, &unix.ItimerSpec{Interval: tick, Value: tick}, nil); err != nil {
		return fmt.Errorf("timerfd: %w", err)
	}
	p.began = time.Now()
	patience := time.Duration(p.count)*p.every + 20*time.Second
	events := make([]unix.EpollEvent, 128)
	for p.Count < p.count {
		n, err := unix.EpollWait(p.epoll, events, 1000)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("epoll: %w", err)
		}
		for _, e := range events[:max(n, 0)] {
			if int(e.Fd) == p.clock {
				_, _ = unix.Read(p.clock, p.buffer[:8]) // how often it rang, the time itself tells better
				continue
			}
			if err := p.read(p.conns[int(e.Fd)]); err != nil {
				return err
			}
		}
		since := time.Since(p.began)
		if err := p.send(p.due(since)); err != nil {
			return err
		}
		if since > patience {
			return fmt.Errorf("%d of %d requests were never answered", p.count-p.Count, p.count)
		}
	}
	p.Seconds = time.Since(p.began).Seconds()
	return nil
}

// send sends what is due, as far as there are idle connections.
func (p *pacer) send(due int) error {
	for p.sent < due && len(p.idle) > 0 {
		last := len(p.idle) - 1
		c := p.idle[last]
		p.idle = p.idle[:last]
		c.index = p.sent
		p.sent++
		if _, err := unix.Write(c.fd, p.request); err != nil {
			return fmt.Errorf("write: %w", err)
		}
	}
	return nil
}

func (p *pacer) read(c *pacedConn) error {
	n, err := unix.Read(c.fd, p.buffer[:])
	if err != nil || n == 0 {
		return fmt.Errorf("request %d: read %d bytes: %w", c.index, n, err)
	}
	complete, err := c.take(p.buffer[:n])
	if err != nil || !complete {
		return err
	}
	p.latencies[c.index] = p.lateness(c.index, time.Since(p.began))
	p.Count++
	p.Bytes += int64(n)
	p.idle = append(p.idle, c)
	return nil
}

// take returns whether the answer is complete now.
func (c *pacedConn) take(part []byte) (bool, error) {
	if c.rest > 0 {
		c.rest -= len(part)
		return c.rest == 0, c.tooMuch()
	}
	c.head = append(c.head, part...)
	end := bytes.Index(c.head, []byte("\r\n\r\n"))
	if end < 0 {
		return false, nil
	}
	if !bytes.HasPrefix(c.head, []byte("HTTP/1.1 200 ")) {
		return false, fmt.Errorf("not 200: %q", c.head[:min(len(c.head), 200)])
	}
	length, err := contentLength(c.head[:end])
	if err != nil {
		return false, err
	}
	c.rest = length - (len(c.head) - end - 4)
	c.head = c.head[:0]
	return c.rest == 0, c.tooMuch()
}

func (c *pacedConn) tooMuch() error {
	if c.rest < 0 {
		return fmt.Errorf("%d bytes that nobody asked for", -c.rest)
	}
	return nil
}

func contentLength(head []byte) (int, error) {
	for line := range bytes.SplitSeq(head, []byte("\r\n")) {
		name, value, _ := bytes.Cut(line, []byte(":"))
		if bytes.EqualFold(name, []byte("Content-Length")) {
			return strconv.Atoi(string(bytes.TrimSpace(value)))
		}
	}
	return 0, fmt.Errorf("an answer without a length: %q", head)
}
