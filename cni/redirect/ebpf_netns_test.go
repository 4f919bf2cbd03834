package redirect

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// newEBPFLab is a lab that eBPF redirects already.
func newEBPFLab(t *testing.T) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("makes network namespaces; type: sudo go test ./cni/redirect")
	}
	return newLabOn(t, newNode(t))
}

func newLabOn(t *testing.T, node Node) *lab {
	l := newLab(t)
	l.node, l.backend = node, node.EBPF(l.workload)
	l.apply(t, labRules)
	return l
}

// A change of the programs that keeps its revision would never be loaded where an
// older build was.
func TestRevisionGrowsWithThePrograms(t *testing.T) {
	golden(t, "revision", fmt.Sprintf("%d %x\n", loadRevision, sha256.Sum256(_KernelBytes)))
}

// dialFD connects a socket of the workload's that prepare has made, and returns
// what greets it, and what the application sees of the two ends.
func (l *lab) dialFD(family, protocol int, connect func(fd int) error) (greeting, local, remote string, err error) {
	err = as(appUID, l.workload, func() error {
		fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, protocol)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := connect(fd); err != nil {
			return err
		}
		limit := unix.Timeval{Sec: 30}
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
			return err
		}
		var buf [256]byte
		n, err := unix.Read(fd, buf[:])
		if err != nil {
			return err
		}
		greeting = strings.TrimSpace(string(buf[:n]))
		own, err1 := unix.Getsockname(fd)
		peer, err2 := unix.Getpeername(fd)
		local, remote = text(own), text(peer)
		return errors.Join(err1, err2)
	})
	return greeting, local, remote, err
}

// text writes an address without its port if that is not 80.
func text(sa unix.Sockaddr) string {
	var ap netip.AddrPort
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		ap = netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		ap = netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	if ap.Port() != 80 {
		return ap.Addr().String()
	}
	return ap.String()
}

func sockaddr(family int, text string) unix.Sockaddr {
	ap := netip.MustParseAddrPort(text)
	if family == unix.AF_INET {
		return &unix.SockaddrInet4{Addr: ap.Addr().As4(), Port: int(ap.Port())}
	}
	return &unix.SockaddrInet6{Addr: ap.Addr().As16(), Port: int(ap.Port())}
}

// However an application connects, it gets to the proxy, which is told where it
// meant to go, and it sees the addresses that it would see otherwise.
func TestWaysToConnect(t *testing.T) {
	l := newEBPFLab(t)
	const outside4, outside6 = "192.0.2.2:80", "[2001:db8::2]:80"
	connect := func(family int, to string) func(int) error {
		return func(fd int) error { return unix.Connect(fd, sockaddr(family, to)) }
	}
	bound := func(family int, from, to string) func(int) error {
		return func(fd int) error {
			return errors.Join(unix.Bind(fd, sockaddr(family, from)), unix.Connect(fd, sockaddr(family, to)))
		}
	}
	for name, tc := range map[string]struct {
		family, protocol int
		connect          func(fd int) error
		local, remote    string
	}{
		"blocking":    {unix.AF_INET, 0, connect(unix.AF_INET, outside4), "192.0.2.1", outside4},
		"blocking v6": {unix.AF_INET6, 0, connect(unix.AF_INET6, outside6), "2001:db8::1", outside6},
		"v4-mapped":   {unix.AF_INET6, 0, connect(unix.AF_INET6, outside4), "192.0.2.1", outside4},
		"non-blocking": {unix.AF_INET, 0, func(fd int) error {
			if err := unix.SetNonblock(fd, true); err != nil {
				return err
			}
			err := unix.Connect(fd, sockaddr(unix.AF_INET, outside4))
			if !errors.Is(err, unix.EINPROGRESS) {
				return fmt.Errorf("connect at once: %w", err)
			}
			if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, 30_000); n != 1 {
				return fmt.Errorf("poll: %d, %w", n, err)
			}
			return unix.SetNonblock(fd, false)
		}, "192.0.2.1", outside4},
		"source address":      {unix.AF_INET, 0, bound(unix.AF_INET, "192.0.2.1:0", outside4), "192.0.2.1", outside4},
		"source address, v6":  {unix.AF_INET6, 0, bound(unix.AF_INET6, "[2001:db8::1]:0", outside6), "2001:db8::1", outside6},
		"source and port":     {unix.AF_INET, 0, bound(unix.AF_INET, "192.0.2.1:5001", outside4), "192.0.2.1", outside4},
		"port without source": {unix.AF_INET, 0, bound(unix.AF_INET, "0.0.0.0:5002", outside4), "127.0.0.1", outside4},
		"fast open": {unix.AF_INET, 0, func(fd int) error {
			return unix.Sendto(fd, []byte("hello\n"), unix.MSG_FASTOPEN, sockaddr(unix.AF_INET, outside4))
		}, "192.0.2.1", outside4},
		// The kernel has no name for its subflow to the proxy but the real one.
		"MPTCP": {unix.AF_INET, unix.IPPROTO_MPTCP, connect(unix.AF_INET, outside4), "192.0.2.1", ""},
		"bound to the device": {unix.AF_INET, 0, func(fd int) error {
			return errors.Join(unix.BindToDevice(fd, "eth0"), unix.Connect(fd, sockaddr(unix.AF_INET, outside4)))
		}, "192.0.2.1", outside4},
		"again after a refusal": {unix.AF_INET, 0, func(fd int) error {
			if err := unix.Connect(fd, sockaddr(unix.AF_INET, "127.0.0.1:1")); !errors.Is(err, unix.ECONNREFUSED) {
				return fmt.Errorf("nobody listens there, got %w", err)
			}
			return unix.Connect(fd, sockaddr(unix.AF_INET, outside4))
		}, "192.0.2.1", outside4},
	} {
		t.Run(name, func(t *testing.T) {
			want := "outbound " + outside4
			if strings.HasSuffix(name, "v6") {
				want = "outbound " + outside6
			}
			greeting, local, remote, err := l.dialFD(tc.family, tc.protocol, tc.connect)
			if err != nil || !strings.HasPrefix(greeting, want) {
				t.Fatalf("got %q, %v, want %q", greeting, err, want)
			}
			if local != tc.local || tc.remote != "" && remote != tc.remote {
				t.Errorf("the application sees %s to %s, want %s to %s", local, remote, tc.local, tc.remote)
			}
		})
	}
	l.wantNoHandshakes(t)
}

// Where the application may not let go of its device, it is refused.
func TestBoundToADeviceForGood(t *testing.T) {
	l := newEBPFLab(t)
	err := inside(l.workload, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.BindToDevice(fd, "eth0"); err != nil {
			return err
		}
		restore, err := onlyCapabilities(unix.CAP_NET_BIND_SERVICE)
		if err != nil {
			return err
		}
		defer restore()
		return unix.Connect(fd, sockaddr(unix.AF_INET, "192.0.2.2:80"))
	})
	if !errors.Is(err, unix.EPERM) {
		t.Errorf("got %v, want EPERM", err)
	}
}

// onlyCapabilities takes from the calling thread the use of all capabilities but those.
func onlyCapabilities(keep ...int) (restore func(), err error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var before, after [2]unix.CapUserData
	if err := unix.Capget(&header, &before[0]); err != nil {
		return nil, err
	}
	after = before
	after[0].Effective, after[1].Effective = 0, 0
	for _, c := range keep {
		after[c/32].Effective |= 1 << (c % 32)
	}
	return func() { _ = unix.Capset(&header, &before[0]) }, unix.Capset(&header, &after[0])
}

// CAP_BPF and CAP_NET_ADMIN are enough; without CAP_PERFMON the verifier is stricter.
func TestTwoCapabilitiesAreEnough(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("loads eBPF programs; type: sudo go test ./cni/redirect")
	}
	dir, err := os.MkdirTemp("/sys/fs/bpf", "test")
	if err != nil {
		t.Fatal(err)
	}
	node := Node{Pins: dir}
	cgroup := newCgroup(t, &lab{node: node})
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // it ends with its namespace and what it lacks
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
			for c := range unix.CAP_LAST_CAP + 1 {
				if c == unix.CAP_BPF || c == unix.CAP_NET_ADMIN {
					continue
				}
				if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil {
					return err
				}
			}
			if _, err := onlyCapabilities(unix.CAP_BPF, unix.CAP_NET_ADMIN); err != nil {
				return err
			}
			b := node.EBPF(nil)
			if err := node.Load(); err != nil {
				return err
			}
			err := errors.Join(b.Probe(), b.Apply(labRules), b.Apply(Rules{}), node.Collect(), b.Remove())
			leave, err2 := node.Enter(Member{Cgroup: cgroup, Address4: netip.MustParseAddr("198.51.100.2"), Ports: []int{80}})
			if err2 == nil {
				err2 = leave()
			}
			return errors.Join(err, err2, node.Remove())
		}()
	}()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left: %v", dir, err)
	}
}

// wantNoHandshakes fails if a note that nobody received is still there.
func (l *lab) wantNoHandshakes(t *testing.T) {
	t.Helper()
	m, err := ebpf.LoadPinnedMap(l.node.maps()+"/handshakes", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	// The kernel may still be closing sockets.
	deadline := time.Now().Add(30 * time.Second)
	for {
		var key kernelHandshakeKey
		var note kernelNote
		entries, count := m.Iterate(), 0
		for entries.Next(&key, &note) {
			count++
		}
		if count == 0 && entries.Err() == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d notes are left, such as %+v (%v)", count, key, entries.Err())
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// Two workloads have the same addresses, connect from the same ports at the same
// time to the same address of their proxies, and are not mixed up.
func TestSameTuplesInTwoNamespaces(t *testing.T) {
	node := newEBPFLab(t).node
	labs := []*lab{newLabOn(t, node), newLabOn(t, node)}
	var wg sync.WaitGroup
	for i, l := range labs {
		for n := range 120 {
			to := fmt.Sprintf("[2001:db8::77]:%d", 1000*(i+1)+n)
			wg.Go(func() {
				greeting, _, _, err := l.dialFD(unix.AF_INET6, 0, func(fd int) error {
					from := fmt.Sprintf("[2001:db8::1]:%d", 20000+n)
					return errors.Join(unix.Bind(fd, sockaddr(unix.AF_INET6, from)), unix.Connect(fd, sockaddr(unix.AF_INET6, to)))
				})
				if err != nil || greeting != "outbound "+to {
					t.Errorf("to %s: got %q, %v", to, greeting, err)
				}
			})
		}
	}
	wg.Wait()
}

// More connections than one address has ports, each closed by its client, who
// then has to wait a minute before it may use the port again.
func TestShortConnections(t *testing.T) {
	l := newEBPFLab(t)
	count := int64(60_000)
	if testing.Short() {
		count = 6_000
	}
	var left atomic.Int64
	left.Store(count)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				if got, err := call(appUID, l.workload, "", "192.0.2.2:80"); err != nil || got != "outbound 192.0.2.2:80" {
					t.Errorf("got %q, %v", got, err)
					return
				}
			}
		})
	}
	wg.Wait()
	l.wantNoHandshakes(t)
}

// dialFor connects to the application as the proxy does on behalf of a client.
func (l *lab) dialFor(uid int, client, to string) (greeting string, err error) {
	dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.MustParseAddrPort(client)), Timeout: 30 * time.Second}
	dialer.SetMultipathTCP(false)
	dialer.Control = func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
		})
	}
	err = as(uid, l.workload, func() error {
		conn, err := dialer.Dial("tcp", to)
		if err != nil {
			return err
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
		line, err := bufio.NewReader(conn).ReadString('\n')
		greeting = strings.TrimPrefix(strings.TrimSpace(line), "client ")
		return err
	})
	return greeting, err
}

// The application sees on whose behalf its proxy connects.
func TestApplicationSeesTheClient(t *testing.T) {
	l := newEBPFLab(t)
	seen := func(c net.Conn) net.Addr {
		a := c.RemoteAddr().(*net.TCPAddr).AddrPort()
		return net.TCPAddrFromAddrPort(netip.AddrPortFrom(a.Addr().Unmap(), a.Port()))
	}
	serve(t, appUID, l.workload, "0.0.0.0:7000", "client", seen)
	serve(t, appUID, l.workload, "[::]:7001", "client", seen)
	serveOn(t, appUID, l.workload, &net.ListenConfig{}, "tcp", ":7002", "client", seen) // MPTCP, both families
	for _, tc := range []struct{ client, to, want string }{
		{"198.51.100.7:5555", "192.0.2.1:7000", "198.51.100.7:5555"},
		{"198.51.100.7:99", "192.0.2.1:7000", "198.51.100.7:99"}, // a port that needs a right to bind
		{"198.51.100.7:5555", "192.0.2.1:7002", "198.51.100.7:5555"},
		{"198.51.100.7:5555", "127.0.0.1:7000", "198.51.100.7:5555"},
		{"[2001:db8:9::7]:5555", "[2001:db8::1]:7001", "[2001:db8:9::7]:5555"},
		{"[2001:db8:9::7]:5555", "[2001:db8::1]:7002", "[2001:db8:9::7]:5555"},
	} {
		if got, err := l.dialFor(proxyUID, tc.client, tc.to); err != nil || got != tc.want {
			t.Errorf("for %s to %s: the application sees %q, %v, want %s", tc.client, tc.to, got, err, tc.want)
		}
		if _, err := l.dialFor(appUID, tc.client, tc.to); !errors.Is(err, unix.EADDRNOTAVAIL) {
			t.Errorf("the application itself for %s: got %v", tc.client, err)
		}
		// An address alone: the port is any.
		client := netip.AddrPortFrom(netip.MustParseAddrPort(tc.client).Addr(), 0).String()
		got, err := l.dialFor(proxyUID, client, tc.to)
		if err != nil || netip.MustParseAddrPort(got).Addr() != netip.MustParseAddrPort(client).Addr() {
			t.Errorf("for %s to %s: the application sees %q, %v", client, tc.to, got, err)
		}
	}
	for _, to := range []string{"192.0.2.1:7009", "[2001:db8::1]:7009"} {
		client := "198.51.100.7:5555"
		if to[0] == '[' {
			client = "[2001:db8:9::7]:5555"
		}
		if _, err := l.dialFor(proxyUID, client, to); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("to nobody at %s: got %v", to, err)
		}
	}
	var wg sync.WaitGroup
	for i := range 500 {
		wg.Go(func() {
			client := fmt.Sprintf("198.51.100.%d:%d", 1+i%250, 10000+i)
			if got, err := l.dialFor(proxyUID, client, "192.0.2.1:7000"); err != nil || got != client {
				t.Errorf("for %s: the application sees %q, %v", client, got, err)
			}
		})
	}
	wg.Wait()
	l.wantNoHandshakes(t)
}

// Programs are exchanged in place while connections are made.
func TestUpgradeUnderLoad(t *testing.T) {
	l := newEBPFLab(t)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var made atomic.Int64
	for _, n := range ipNets {
		for _, w := range l.bothWays(n) {
			wg.Go(func() {
				for ctx.Err() == nil {
					got, err := call(appUID, w.netns, w.from, w.to)
					if err != nil || !strings.HasPrefix(got, "outbound ") && !strings.HasPrefix(got, "inbound ") {
						t.Errorf("to %s: got %q, %v", w.to, got, err)
						return
					}
					made.Add(1)
				}
			})
		}
	}
	const last = loadRevision + 5
	for revision := uint32(loadRevision + 1); revision <= last; revision++ {
		for before := made.Load(); made.Load() < before+50 && !t.Failed(); {
			runtime.Gosched()
		}
		if err := l.node.load(revision); err != nil {
			t.Error(err)
		}
	}
	cancel()
	wg.Wait()
	if err := l.node.Load(); !errors.Is(err, ErrNewer) {
		t.Errorf("an older one: got %v", err)
	}
	if err := l.backend.Probe(); !errors.Is(err, ErrNewer) {
		t.Errorf("an older one's backend: got %v", err)
	}
}

// Of a namespace that has gone, nothing stays.
func TestCollect(t *testing.T) {
	l := newEBPFLab(t)
	gone := newNetns(t)
	if err := l.node.EBPF(gone).Apply(everything); err != nil {
		t.Fatal(err)
	}
	gone.Close()
	deadline := time.Now().Add(30 * time.Second)
	for {
		if err := l.node.Collect(); err != nil {
			t.Fatal(err)
		}
		cookies, err := numbers(l.node.inbound(), "")
		if err != nil {
			t.Fatal(err)
		}
		if len(cookies) == 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("there are still %v", cookies)
		}
		time.Sleep(10 * time.Millisecond)
	}
	tables, err := l.node.tables()
	if err != nil {
		t.Fatal(err)
	}
	defer tables.close()
	living, err := numbers(l.node.inbound(), "")
	if err != nil {
		t.Fatal(err)
	}
	if err := tables.forget(func(cookie uint64, _ uint32) bool {
		if cookie != living[0] {
			t.Errorf("namespace %d is gone and has an entry", cookie)
		}
		return false
	}); err != nil {
		t.Fatal(err)
	}
	for _, n := range ipNets {
		for _, w := range l.bothWays(n) {
			if got, err := call(appUID, w.netns, w.from, w.to); err != nil || strings.HasPrefix(got, "app") || strings.HasPrefix(got, "world") {
				t.Errorf("the living one, to %s: got %q, %v", w.to, got, err)
			}
		}
	}
}

// Where it cannot be told who lives, nobody is forgotten: it would be in plaintext.
func TestCollectForgetsNobodyItCannotSee(t *testing.T) {
	l := newSharedLab(t)
	one := l.enter(t, 31, 8080)
	pod := newLabOn(t, l.node)
	for _, dir := range []string{l.node.members(), l.node.inbound(), l.node.shared()} {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			aside := dir + "-aside"
			if err := errors.Join(os.Rename(dir, aside), os.Symlink("/dev/null", dir)); err != nil {
				t.Fatal(err)
			}
			for _, missing := range []bool{false, true} {
				if missing {
					if err := os.Remove(dir); err != nil {
						t.Fatal(err)
					}
				}
				if err := l.node.Collect(); err == nil {
					t.Errorf("missing: %v: no error", missing)
				}
			}
			if err := os.Rename(aside, dir); err != nil {
				t.Fatal(err)
			}
			for _, n := range ipNets {
				for _, w := range pod.bothWays(n) {
					if got, err := call(appUID, w.netns, w.from, w.to); err != nil || strings.HasPrefix(got, "app") || strings.HasPrefix(got, "world") {
						t.Errorf("a pod, to %s: got %q, %v", w.to, got, err)
					}
				}
				to := net.JoinHostPort(n.outside, worldPort)
				if got, err := one.call(to); err != nil || got != "outbound-31 "+to {
					t.Errorf("a member to %s: got %q, %v", to, got, err)
				}
				to = net.JoinHostPort(n.workload, appPort)
				if got, err := call(appUID, l.outside, "", to); err != nil || got != "inbound-31 "+to {
					t.Errorf("to a member, %s: got %q, %v", to, got, err)
				}
			}
		})
	}
}

func TestConcurrentApplies(t *testing.T) {
	node := newEBPFLab(t).node
	labs := []*lab{newLabOn(t, node), newLabOn(t, node), newLabOn(t, node)}
	var before []string
	for _, l := range labs {
		before = append(before, dumpEBPF(t, node, l.workload))
	}
	var wg sync.WaitGroup
	for _, l := range labs {
		for _, rules := range []Rules{{}, everything, labRules} {
			wg.Go(func() {
				for range 10 {
					if err := errors.Join(l.backend.Apply(rules), node.Collect(), node.Load()); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	wg.Wait()
	for i, l := range labs {
		l.apply(t, labRules)
		if got := dumpEBPF(t, node, l.workload); got != before[i] {
			t.Errorf("the same rules, and different maps: %s", cmp.Diff(before[i], got))
		}
	}
}

// After Remove the kernel has nothing of ours, and the workload its network as it was.
func TestRemoveNode(t *testing.T) {
	l := newEBPFLab(t)
	for range 2 {
		if err := l.node.Remove(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(l.node.Pins); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s: %v", l.node.Pins, err)
	}
	for _, n := range ipNets {
		for _, w := range l.bothWays(n) {
			if got, err := call(appUID, w.netns, w.from, w.to); err != nil || strings.HasPrefix(got, "inbound") || strings.HasPrefix(got, "outbound") {
				t.Errorf("to %s: got %q, %v", w.to, got, err)
			}
		}
	}
	if err := l.backend.Apply(labRules); !errors.Is(err, errNotLoaded) {
		t.Errorf("Apply without a node: %v", err)
	}
	if err := l.backend.Remove(); err != nil {
		t.Errorf("Remove without a node: %v", err)
	}
}

// The kernel can do it, or can not, whatever there is already.
func TestProbeNode(t *testing.T) {
	l := newEBPFLab(t)
	if err := l.node.Probe(); err != nil {
		t.Error(err)
	}
	elsewhere := Node{Pins: t.TempDir() + "/pins"}
	if err := elsewhere.Probe(); !errors.Is(err, ErrNoBPFFS) || !strings.Contains(err.Error(), "type: mount -t bpf") {
		t.Errorf("without a bpffs: %v", err)
	}
	if err := elsewhere.EBPF(nil).Probe(); !errors.Is(err, errNotLoaded) {
		t.Errorf("without a node: %v", err)
	}
}
