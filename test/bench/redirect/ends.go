package main

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// ends are the processes that are measured: each has one thread, which waits in
// the system calls themselves, and one connection at a time. The first argument is
// the processor that it keeps to.
var ends = map[string]func(args []string) error{"echo": echo, "relay": relay, "call": call}

// messageSize is what is sent there and back.
const messageSize = 200

func pinned(args []string, do func(args []string) error) error {
	runtime.LockOSThread()
	debug.SetGCPercent(-1)
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	var set unix.CPUSet
	set.Set(n % runtime.NumCPU())
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return err
	}
	return do(args[1:])
}

// How a proxy learns where a connection was going.
const (
	originLocal     = "local"     // its own address is
	originNetfilter = "netfilter" // connection tracking knows
)

func origin(fd int, how string) (unix.Sockaddr, error) {
	switch how {
	case originLocal:
		return unix.Getsockname(fd)
	case originNetfilter:
		// The 16 bytes of a sockaddr_in, read through the option type of that size.
		got, err := unix.GetsockoptIPv6Mreq(fd, unix.SOL_IP, unix.SO_ORIGINAL_DST)
		if err != nil {
			return nil, err
		}
		b := got.Multiaddr
		return &unix.SockaddrInet4{Port: int(binary.BigEndian.Uint16(b[2:])), Addr: [4]byte(b[4:8])}, nil
	}
	return nil, nil
}

func sockaddr(text string) (*unix.SockaddrInet4, error) {
	addr, err := netip.ParseAddrPort(text)
	if err != nil {
		return nil, err
	}
	return &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}, nil
}

func socket() (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	}
	return fd, err
}

// serve handles connections one after the other, for ever.
func serve(addr string, handle func(conn int, peer unix.Sockaddr) error) error {
	to, err := sockaddr(addr)
	if err != nil {
		return err
	}
	listener, err := socket()
	if err != nil {
		return err
	}
	err = errors.Join(unix.SetsockoptInt(listener, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), unix.Bind(listener, to), unix.Listen(listener, 128))
	if err != nil {
		return fmt.Errorf("listen on %s: %w", addr, err)
	}
	fmt.Println("listening")
	for {
		conn, peer, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		err = handle(conn, peer)
		_ = unix.Close(conn)
		if err != nil {
			return err
		}
	}
}

// echo [LISTEN, ORIGIN] sends back what comes, once it knows where it was to go.
func echo(args []string) error {
	buf := make([]byte, 4096)
	return serve(args[0], func(conn int, _ unix.Sockaddr) error {
		if _, err := origin(conn, args[1]); err != nil {
			return fmt.Errorf("origin: %w", err)
		}
		for {
			n, err := unix.Read(conn, buf)
			if err != nil || n == 0 {
				return err
			}
			if _, err := unix.Write(conn, buf[:n]); err != nil {
				return err
			}
		}
	})
}

// relay [LISTEN, ORIGIN, DIAL, BEHALF] passes messages on and back: to where the
// connection was going, or to DIAL, and if BEHALF on its client's behalf.
func relay(args []string) error {
	how, dial, behalf := args[1], args[2], args[3] != ""
	buf := make([]byte, 4096)
	pass := func(from, to int) (int, error) {
		n, err := unix.Read(from, buf)
		if err == nil && n > 0 {
			_, err = unix.Write(to, buf[:n])
		}
		return n, err
	}
	return serve(args[0], func(conn int, peer unix.Sockaddr) error {
		to, err := origin(conn, how)
		if err == nil && dial != "" {
			to, err = sockaddr(dial)
		}
		if err != nil {
			return fmt.Errorf("origin: %w", err)
		}
		next, err := socket()
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(next) }()
		if behalf {
			if err := errors.Join(unix.SetsockoptInt(next, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1), unix.Bind(next, peer)); err != nil {
				return fmt.Errorf("bind on behalf of the client: %w", err)
			}
		}
		if err := unix.Connect(next, to); err != nil {
			return fmt.Errorf("connect: %w", err)
		}
		for {
			if n, err := pass(conn, next); n == 0 || err != nil {
				return err
			}
			if n, err := pass(next, conn); n == 0 || err != nil {
				return err
			}
		}
	})
}

// seen is what a client has to say.
type seen struct {
	Connect      float64 // us, median
	Round        float64 // us, median, from connect to answer, or from message to answer
	Seconds, CPU float64 // of all
}

func median(all []time.Duration) (us float64) {
	slices.Sort(all)
	return float64(all[len(all)/2].Nanoseconds()) / 1000
}

// roundTrip sends a message and waits for it to come back.
func roundTrip(fd int, message []byte) error {
	if _, err := unix.Write(fd, message); err != nil {
		return err
	}
	for got := 0; got < len(message); {
		n, err := unix.Read(fd, message[got:])
		if err != nil {
			return err
		}
		if n == 0 {
			return errors.New("the other side has closed")
		}
		got += n
	}
	return nil
}

// target is whom a client calls.
type target struct{ at *unix.SockaddrInet4 }

// resolve takes "name:port" or "address:port".
func resolve(text string) (target, error) {
	addr, err := net.ResolveTCPAddr("tcp4", text)
	if err != nil {
		return target{}, err
	}
	return target{&unix.SockaddrInet4{Port: addr.Port, Addr: addr.AddrPort().Addr().Unmap().As4()}}, nil
}

func (t target) connect() (fd int, took time.Duration, err error) {
	if fd, err = socket(); err != nil {
		return 0, 0, err
	}
	began := time.Now()
	err = unix.Connect(fd, t.at)
	took = time.Since(began)
	if err != nil {
		_ = unix.Close(fd)
	}
	return fd, took, err
}

// call [ADDRESS] says that it is ready when it was answered, then does what it is told,
// line by line (WHAT COUNT), and answers each with what it has seen.
func call(args []string) error {
	t, err := patiently(args[0])
	if err != nil {
		return err
	}
	fmt.Println("ready")
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var what string
		var count int
		if _, err := fmt.Sscan(lines.Text(), &what, &count); err != nil {
			return fmt.Errorf("%q: %w", lines.Text(), err)
		}
		do := map[string]func(int) (seen, error){"short": t.short, "ping": t.ping}[what]
		if do == nil {
			return fmt.Errorf("nobody can %s", what)
		}
		s, err := do(count)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if err := json.NewEncoder(os.Stdout).Encode(s); err != nil {
			return err
		}
	}
	return lines.Err()
}

// patiently waits for a server that is about to start.
func patiently(address string) (t target, err error) {
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if t, err = resolve(address); err == nil {
			if _, err = t.short(1); err == nil {
				return t, nil
			}
		}
	}
	return t, err
}

// short makes connections: each carries one message there and back.
func (t target) short(count int) (seen, error) {
	message := make([]byte, messageSize)
	connects, rounds := make([]time.Duration, count), make([]time.Duration, count)
	one := func(i int) error {
		began := time.Now()
		fd, took, err := t.connect()
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		err = roundTrip(fd, message)
		connects[i], rounds[i] = took, time.Since(began)
		return err
	}
	began, before := time.Now(), ownCPU()
	for i := range count {
		if err := one(i); err != nil {
			return seen{}, err
		}
	}
	return seen{Seconds: time.Since(began).Seconds(), CPU: ownCPU() - before, Connect: median(connects), Round: median(rounds)}, nil
}

// ping sends messages there and back on one connection.
func (t target) ping(count int) (seen, error) {
	fd, _, err := t.connect()
	if err != nil {
		return seen{}, err
	}
	defer func() { _ = unix.Close(fd) }()
	message := make([]byte, messageSize)
	rounds := make([]time.Duration, count)
	for i := range rounds {
		began := time.Now()
		if err := roundTrip(fd, message); err != nil {
			return seen{}, err
		}
		rounds[i] = time.Since(began)
	}
	return seen{Round: median(rounds)}, nil
}

func ownCPU() float64 {
	var used unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &used)
	return float64(used.Utime.Nano()+used.Stime.Nano()) / 1e9
}
