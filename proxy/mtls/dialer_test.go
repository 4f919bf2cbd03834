package mtls

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// addressBook answers for every name.
func addressBook(hosts ...string) func(context.Context, string) ([]string, error) {
	return func(context.Context, string) ([]string, error) { return slices.Clone(hosts), nil }
}

// internet is of addresses that answer after a time; those that are none of it are silent.
type internet struct {
	refuse map[string]bool
	start  time.Time

	mu       sync.Mutex // guards what follows
	after    map[string]time.Duration
	asked    []string // with when, in ms since the start
	open     int      // connections that nobody has closed
	handling int      // handshakes that have not ended
	most     int
}

var errRefused = errors.New("refused")

func (n *internet) dial(ctx context.Context, addr string) (net.Conn, error) {
	host, _, _ := strings.Cut(addr, ":")
	n.mu.Lock()
	n.asked = append(n.asked, fmt.Sprint(host, "@", time.Since(n.start).Milliseconds()))
	n.handling++
	n.most = max(n.most, n.handling)
	after, answers := n.after[host]
	n.mu.Unlock()
	defer func() { n.count(&n.handling, -1) }()
	ctx, cancel := context.WithTimeout(ctx, connectWait)
	defer cancel()
	var answer <-chan time.Time
	if answers {
		answer = time.After(after)
	}
	select {
	case <-answer:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if n.refuse[host] {
		return nil, errRefused
	}
	n.count(&n.open, 1)
	return &countedConn{internet: n}, nil
}

func (n *internet) count(what *int, by int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	*what += by
}

type countedConn struct {
	net.Conn
	internet *internet
}

func (c *countedConn) Close() error { c.internet.count(&c.internet.open, -1); return nil }

func TestDialer(t *testing.T) {
	now, soon := time.Duration(0), 20*time.Millisecond
	for _, tc := range []struct {
		name  string
		hosts string
		after map[string]time.Duration
		dead  string // of those, refuses
		last  string
		want  string // whom it asked when, and how it ended
	}{
		{"the first answers", "a b", map[string]time.Duration{"a": soon, "b": soon}, "", "", "a@0 -> a 20"},
		{"the first is silent", "a b", map[string]time.Duration{"b": soon}, "", "", "a@0 b@250 -> b 270"},
		{"two are silent", "a b c", map[string]time.Duration{"c": soon}, "", "", "a@0 b@250 c@500 -> c 520"},
		{"the first refuses", "a b", map[string]time.Duration{"a": now, "b": soon}, "a", "", "a@0 b@0 -> b 20"},
		{"who answered last is asked first", "a b c", map[string]time.Duration{"c": soon}, "", "c:1", "c@0 -> c 20"},
		{"who answered last is silent now", "a b c", map[string]time.Duration{"a": soon}, "", "c:1", "c@0 a@250 -> a 270"},
		{"who answered last is no more", "a b", map[string]time.Duration{"b": soon}, "", "c:1", "a@0 b@250 -> b 270"},
		{"a slow one wins against silence", "a b", map[string]time.Duration{"a": 600 * time.Millisecond}, "", "", "a@0 b@250 a@500 -> a 600"},
		{"all refuse", "a b", map[string]time.Duration{"a": now, "b": soon}, "a b", "", "a@0 b@0 -> refused 20"},
		{"one refuses, one is silent", "a b", map[string]time.Duration{"b": now}, "b", "", "a@0 b@250 a@500 b@750 a@1000 b@1250 a@1500 b@1750 a@2000 b@2250 a@2500 b@2750 a@3000 b@3250 a@3500 b@3750 -> context deadline exceeded 3900"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := &internet{after: tc.after, refuse: map[string]bool{}, start: time.Now()}
				for _, host := range strings.Fields(tc.dead) {
					n.refuse[host] = true
				}
				d := dialer{lookup: addressBook(strings.Fields(tc.hosts)...), open: n.dial, last: tc.last}
				conn, err := d.connect(t.Context(), "control:1")
				result, _, _ := strings.Cut(d.last, ":")
				if err != nil {
					result = err.Error()
				}
				got := fmt.Sprint(strings.Join(n.asked, " "), " -> ", result, " ", time.Since(n.start).Milliseconds())
				if got != tc.want {
					t.Errorf("got  %s\nwant %s", got, tc.want)
				}
				if conn != nil {
					_ = conn.Close()
				}
				if n.open != 0 || n.handling != 0 {
					t.Errorf("%d connections and %d handshakes are left", n.open, n.handling)
				}
			})
		})
	}
}

// A service has one address, which leads to a replica that is gone until the node
// learns of the next one: whoever connects then is back at once.
func TestDialerIsBackSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &internet{after: map[string]time.Duration{}, start: time.Now()}
		d := dialer{lookup: addressBook("vip"), open: n.dial}
		const replaced = 1900 * time.Millisecond
		time.AfterFunc(replaced, func() {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.after["vip"] = 5 * time.Millisecond
		})
		conn, err := d.connect(t.Context(), "control:1")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		if took := time.Since(n.start) - replaced; took > raceEvery {
			t.Errorf("it took %v after the address had led to somebody again", took)
		}
		if n.most > int(connectWait/raceEvery)+1 {
			t.Errorf("%d handshakes at a time", n.most)
		}
	})
}

// The last two handshakes may succeed at the same time: one connection is kept.
func TestDialerClosesLateConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &internet{after: map[string]time.Duration{"a": raceEvery + time.Millisecond, "b": time.Millisecond}, start: time.Now()}
		d := dialer{lookup: addressBook("a", "b"), open: func(ctx context.Context, addr string) (net.Conn, error) {
			return n.dial(context.WithoutCancel(ctx), addr) // too late to be stopped
		}}
		conn, err := d.connect(t.Context(), "control:1")
		if err != nil || n.open != 1 {
			t.Fatalf("%d connections are open, %v", n.open, err)
		}
		_ = conn.Close()
	})
}

func TestDialerGivesUpWithItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &internet{start: time.Now()}
		d := dialer{lookup: addressBook("a", "b", "c"), open: n.dial}
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		if _, err := d.connect(ctx, "control:1"); !errors.Is(err, context.DeadlineExceeded) || time.Since(n.start) != 300*time.Millisecond {
			t.Errorf("%v after %v", err, time.Since(n.start))
		}
		d.lookup = func(context.Context, string) ([]string, error) { return nil, errRefused }
		if _, err := d.connect(t.Context(), "control:1"); !errors.Is(err, errRefused) {
			t.Errorf("no such name: %v", err)
		}
		if _, err := d.connect(t.Context(), "control"); err == nil {
			t.Error("connected without a port")
		}
	})
}

// With real sockets: who is silent is left for who answers, and given up where
// nobody does.
func TestDialerOfTCP(t *testing.T) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Close(fd) }()
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil { // room for one that nobody accepts
		t.Fatal(err)
	}
	at, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	port := strconv.Itoa(at.(*syscall.SockaddrInet4).Port)
	d := dialer{lookup: addressBook("127.0.0.1", "127.0.0.2")}
	only := dialer{}
	conn, err := only.connect(t.Context(), net.JoinHostPort("127.0.0.1", port))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if conn, err := only.connect(t.Context(), net.JoinHostPort("127.0.0.1", port)); err == nil {
		_ = conn.Close()
		t.Error("connected beyond what there is room for")
	}
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.2", port))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	for range 2 {
		conn, err := d.connect(t.Context(), net.JoinHostPort("control", port))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		if got := conn.RemoteAddr().String(); got != l.Addr().String() || d.last != got {
			t.Errorf("connected to %s, and will ask %s first", got, d.last)
		}
	}
}
