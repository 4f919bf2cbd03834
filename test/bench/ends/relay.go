package ends

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"
)

// runRelay copies bytes from each connection to a new one, and back: what no
// proxy can do without. Each argument is LISTEN=DIAL. Two threads, each with an
// epoll of its own and one buffer.
func runRelay(args []string) error {
	const threads = 2
	errs := make(chan error)
	for range threads {
		r, err := newRelay(args)
		if err != nil {
			return err
		}
		go func() { errs <- r.run() }()
	}
	return <-errs
}

// relay is one thread's share. Nothing in it is locked.
type relay struct {
	epoll  int
	dials  map[int]*unix.SockaddrInet4 // by listening socket: where its connections go
	others map[int]int                 // by connected socket: its other side
	buffer [64 << 10]byte
}

func newRelay(args []string) (*relay, error) {
	r := &relay{dials: map[int]*unix.SockaddrInet4{}, others: map[int]int{}}
	var err error
	if r.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	for _, arg := range args {
		from, to, ok := strings.Cut(arg, "=")
		if !ok {
			return nil, fmt.Errorf("relay: not LISTEN=DIAL: %q", arg)
		}
		listen, err := sockaddr(from)
		if err != nil {
			return nil, err
		}
		dial, err := sockaddr(to)
		if err != nil {
			return nil, err
		}
		fd, err := r.listen(listen)
		if err != nil {
			return nil, fmt.Errorf("listen on %s: %w", from, err)
		}
		r.dials[fd] = dial
	}
	return r, nil
}

func sockaddr(text string) (*unix.SockaddrInet4, error) {
	addr, err := netip.ParseAddrPort(text)
	if err != nil {
		return nil, err
	}
	return &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}, nil
}

// listen lets the kernel share out the connections among the threads.
func (r *relay) listen(addr *unix.SockaddrInet4) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	return fd, errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1),
		unix.Bind(fd, addr), unix.Listen(fd, 4096), r.watch(fd))
}

func (r *relay) watch(fd int) error {
	return unix.EpollCtl(r.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
}

func (r *relay) run() error {
	events := make([]unix.EpollEvent, 128)
	for {
		n, err := unix.EpollWait(r.epoll, events, -1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("epoll: %w", err)
		}
		for _, e := range events[:max(n, 0)] {
			fd := int(e.Fd)
			if dial, ok := r.dials[fd]; ok {
				if err := r.accept(fd, dial); err != nil {
					return err
				}
			} else if other, ok := r.others[fd]; ok && !r.copy(other, fd) {
				r.close(fd, other)
			}
		}
	}
}

func (r *relay) accept(listener int, dial *unix.SockaddrInet4) error {
	client, _, err := unix.Accept4(listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.ECONNABORTED) {
		return nil // it has gone already
	}
	if err != nil {
		return fmt.Errorf("accept: %w", err)
	}
	server, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	if err := unix.Connect(server, dial); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return fmt.Errorf("connect: %w", err)
	}
	for _, fd := range []int{client, server} {
		if err := errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1), r.watch(fd)); err != nil {
			return err
		}
	}
	r.others[client], r.others[server] = server, client
	return nil
}

// copy moves what there is, and returns whether more may come. When a socket
// has no room the whole thread waits for it; the bench's clients always read.
func (r *relay) copy(to, from int) bool {
	n, err := unix.Read(from, r.buffer[:])
	if errors.Is(err, unix.EAGAIN) {
		return true
	}
	if err != nil || n == 0 {
		return false
	}
	for rest := r.buffer[:n]; len(rest) > 0; {
		n, err := unix.Write(to, rest)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.ENOTCONN) {
			if _, err := unix.Poll([]unix.PollFd{{Fd: int32(to), Events: unix.POLLOUT}}, -1); err != nil && !errors.Is(err, unix.EINTR) {
				return false
			}
			continue
		}
		if err != nil {
			return false
		}
		rest = rest[n:]
	}
	return true
}

func (r *relay) close(fds ...int) {
	for _, fd := range fds {
		delete(r.others, fd)
		_ = unix.Close(fd) // which also ends its watch
	}
}
