package redirect

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The mesh's networks in a lab whose workload's namespace is a shared one.
var memberNetworks = prefixes("198.51.100.0/24", "2001:db8:5::/64")

// newSharedLab is a lab with a Node, but without rules. The other side has a route to
// the members' addresses.
func newSharedLab(t *testing.T) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("makes network namespaces; type: sudo go test ./cni/redirect")
	}
	l := newLab(t)
	l.node = newNode(t)
	l.stopProxy() // members have their own
	in(t, l.workload, func() error { return addAddress("eth0", HopSource6.String()+"/128") })
	in(t, l.outside, func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		for _, p := range memberNetworks {
			dst := &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
			if err := netlink.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: dst}); err != nil {
				return err
			}
		}
		return nil
	})
	return l
}

// testMember is a Member with a proxy.
type testMember struct {
	Member
	lab       *lab
	number    int
	leave     func() error
	stopProxy func()
}

// newCgroup makes a cgroup for the time of the test.
func newCgroup(t *testing.T, l *lab) string {
	t.Helper()
	root, err := l.node.cgroup()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(root, "tulle-redirect-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(dir) })
	return dir
}

// enter gives the workload's namespace a member with the number n.
func (l *lab) enter(t *testing.T, n int, ports ...int) *testMember {
	t.Helper()
	m := &testMember{lab: l, number: n}
	m.Member = Member{
		Cgroup: newCgroup(t, l), Networks: memberNetworks, Ports: ports,
		Address4: netip.MustParseAddr(fmt.Sprintf("198.51.100.%d", n)), Address6: netip.MustParseAddr(fmt.Sprintf("2001:db8:5::%d", n)),
	}
	in(t, l.workload, func() error {
		return errors.Join(addAddress("eth0", m.Address4.String()+"/32"), addAddress("eth0", m.Address6.String()+"/128"))
	})
	in(t, l.workload, func() (err error) {
		m.leave, err = l.node.Enter(m.Member)
		return err
	})
	m.startProxy(t)
	return m
}

func (m *testMember) startProxy(t *testing.T) {
	var stop []func()
	for _, a := range []netip.Addr{m.Address4, m.Address6} {
		for name, port := range map[string]uint16{"outbound": 4140, "inbound": 4143} {
			addr := netip.AddrPortFrom(a, port).String()
			stop = append(stop, serve(t, proxyUID, m.lab.workload, addr, fmt.Sprint(name, "-", m.number), originalDestination))
		}
	}
	m.stopProxy = func() {
		for _, s := range stop {
			s()
		}
	}
}

// call returns what greets a process of the member.
func (m *testMember) call(to string) (string, error) {
	host, port, err := net.SplitHostPort(to)
	if err != nil {
		return "", err
	}
	dir, err := os.Open(m.Cgroup)
	if err != nil {
		return "", err
	}
	defer dir.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", `exec 3<>/dev/tcp/$0/$1 && head -n 1 <&3`, host, port)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	var out []byte
	err = inside(m.lab.workload, func() (err error) {
		out, err = cmd.CombinedOutput()
		return err
	})
	return strings.TrimSpace(string(out)), err
}

func TestMembersOfASharedNamespace(t *testing.T) {
	l := newSharedLab(t)
	one, two := l.enter(t, 31, 8080), l.enter(t, 32, 8081)
	for _, n := range ipNets {
		serve(t, appUID, l.workload, wildcard(n, "8081"), "app", net.Conn.LocalAddr)
	}
	type who func(to string) (string, error)
	bystander := func(to string) (string, error) { return call(appUID, l.workload, "", to) }
	outside := func(to string) (string, error) { return call(appUID, l.outside, "", to) }
	for i, n := range ipNets {
		at := net.JoinHostPort
		own := func(m *testMember) string { return []string{m.Address4.String(), m.Address6.String()}[i] }
		for _, tc := range []struct {
			name    string
			who     who
			to      string
			greeter string // "": refused
		}{
			{"a member to the world", one.call, at(n.outside, worldPort), "outbound-31"},
			{"the other member to the world", two.call, at(n.outside, worldPort), "outbound-32"},
			{"a member to nobody", one.call, at(n.vip, "443"), "outbound-31"},
			{"a member to another", one.call, at(own(two), "8081"), "outbound-31"},
			{"a member to its own address", one.call, at(own(one), appPort), "outbound-31"},
			{"a member to an address of the host, its own port", one.call, at(n.workload, appPort), "app"},
			{"a member to an address of the host, another port", one.call, at(n.workload, skipInboundPort), "app"},
			{"a member to loopback", one.call, at(n.lo, appPort), "app"},
			{"a bystander to the world", bystander, at(n.outside, worldPort), "world"},
			{"a bystander to loopback", bystander, at(n.lo, appPort), "app"},
			{"a bystander to a member's port", bystander, at(n.workload, appPort), "inbound-31"},
			{"a bystander to another port", bystander, at(n.workload, skipInboundPort), "app"},
			{"a bystander to a member", bystander, at(own(two), "8081"), "inbound-32"},
			{"a bystander to a member's proxy", bystander, at(own(two), "4140"), ""},
			{"in to a member's port", outside, at(n.workload, appPort), "inbound-31"},
			{"in to a member", outside, at(own(one), appPort), "inbound-31"},
			{"in to the other member", outside, at(own(two), "8081"), "inbound-32"},
			{"in to a member, a port that it has not named", outside, at(own(one), skipInboundPort), ""},
			{"a bystander to a member, a port that it has not named", bystander, at(own(one), skipInboundPort), ""},
			{"in to a member's admin port", outside, at(own(one), "4191"), "app"},
			{"in to a port of nobody's", outside, at(n.workload, skipInboundPort), "app"},
			{"in to the proxy's outbound port", outside, at(own(one), "4140"), ""},
			{"in to the proxy's inbound port", outside, at(own(one), "4143"), ""},
		} {
			t.Run(n.name+" "+tc.name, func(t *testing.T) {
				got, err := tc.who(tc.to)
				if tc.greeter == "" {
					if !errors.Is(err, unix.ECONNREFUSED) {
						t.Errorf("got %q, %v, want connection refused", got, err)
					}
				} else if want := tc.greeter + " " + tc.to; err != nil || got != want {
					t.Errorf("got %q, %v, want %q", got, err, want)
				}
			})
		}
	}
	l.wantNoHandshakes(t)
}

// The proxy's connection to the application gets there, shows it the client, and is
// told from one of another member's proxy to the same port.
func TestMembersProxyConnects(t *testing.T) {
	l := newSharedLab(t)
	one, two := l.enter(t, 31, 7000), l.enter(t, 32)
	seen := func(c net.Conn) net.Addr { return c.RemoteAddr() }
	for _, n := range ipNets {
		serve(t, appUID, l.workload, wildcard(n, "7000"), "client", seen)
	}
	serve(t, appUID, l.outside, "0.0.0.0:7000", "client", seen)
	serve(t, appUID, l.outside, "[::]:7000", "client", seen)
	for _, tc := range []struct{ client, to, want string }{
		{"203.0.113.7:5555", one.Address4.String(), "203.0.113.7:5555"},
		{"203.0.113.7:5555", "192.0.2.1", "203.0.113.7:5555"},
		{two.Address4.String() + ":5555", one.Address4.String(), two.Address4.String() + ":5555"},
		{"[2001:db8:9::7]:5555", one.Address6.String(), "[2001:db8:9::7]:5555"},
		{"[2001:db8:9::7]:5555", "2001:db8::1", "[2001:db8:9::7]:5555"},
		{"[" + two.Address6.String() + "]:5555", one.Address6.String(), "[" + two.Address6.String() + "]:5555"},
		// From the member's own address, to somebody in the mesh.
		{two.Address4.String() + ":1", "192.0.2.2", two.Address4.String() + ":"},
		{"[" + two.Address6.String() + "]:1", "2001:db8::2", "[" + two.Address6.String() + "]:"},
	} {
		got, err := l.dialFor(proxyUID, tc.client, net.JoinHostPort(tc.to, "7000"))
		if err != nil || !strings.HasPrefix(got, tc.want) {
			t.Errorf("for %s to %s: the application sees %q, %v, want %s", tc.client, tc.to, got, err, tc.want)
		}
	}
	for to, from := range map[netip.Addr]netip.Addr{one.Address4: two.Address4, one.Address6: two.Address6} {
		got, err := l.dialFor(proxyUID, netip.AddrPortFrom(from, 1).String(), netip.AddrPortFrom(to, 7000).String())
		if err != nil || !strings.HasPrefix(got, "inbound-31") {
			t.Errorf("another member's proxy to %s: got %q, %v", to, got, err)
		}
	}
	l.wantNoHandshakes(t)
}

func TestMembersProxyIsDead(t *testing.T) {
	l := newSharedLab(t)
	one := l.enter(t, 31, 8080)
	one.stopProxy()
	for i, n := range ipNets {
		if got, err := one.call(net.JoinHostPort(n.outside, worldPort)); err == nil || !strings.Contains(got, "refused") {
			t.Errorf("%s: out: got %q, %v", n.name, got, err)
		}
		for _, to := range []string{n.workload, []string{one.Address4.String(), one.Address6.String()}[i]} {
			if got, err := call(appUID, l.outside, "", net.JoinHostPort(to, appPort)); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("in to %s: got %q, %v", to, got, err)
			}
		}
	}
	one.startProxy(t) // noticed by itself
	if got, err := call(appUID, l.outside, "", "192.0.2.1:8080"); err != nil || !strings.HasPrefix(got, "inbound-31") {
		t.Errorf("the next proxy: got %q, %v", got, err)
	}
}

// A member's port is nobody else's; when it has left, or its cgroup has gone, it is
// free, and of the last member nothing stays.
func TestMembersComeAndGo(t *testing.T) {
	l := newSharedLab(t)
	one := l.enter(t, 31, 8080)
	other := Member{Cgroup: newCgroup(t, l), Networks: memberNetworks, Ports: []int{9000, 8080}, Address4: netip.MustParseAddr("198.51.100.33")}
	enter := func() (leave func() error, err error) {
		_ = inside(l.workload, func() error {
			leave, err = l.node.Enter(other)
			return nil
		})
		return leave, err
	}
	var taken *PortTakenError
	if _, err := enter(); !errors.As(err, &taken) || taken.Port != 8080 {
		t.Fatalf("a port that is taken: %v", err)
	}
	other.Ports = []int{9000} // it was not kept
	leave, err := enter()
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := leave(); err != nil {
			t.Error(err)
		}
	}
	if got, err := call(appUID, l.outside, "", "192.0.2.1:8080"); err != nil || !strings.HasPrefix(got, "inbound-31") {
		t.Errorf("the one that stays: got %q, %v", got, err)
	}
	// Its programs are exchanged in place, too.
	if err := l.node.load(loadRevision + 1); err != nil {
		t.Fatal(err)
	}
	if got, err := one.call("192.0.2.2:80"); err != nil || got != "outbound-31 192.0.2.2:80" {
		t.Errorf("after an upgrade: got %q, %v", got, err)
	}
	if err := os.Remove(one.Cgroup); err != nil { // as after a kill -9
		t.Fatal(err)
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		if err := l.node.Collect(); err != nil {
			t.Fatal(err)
		}
		left := l.node.memberRemains(t)
		if left == "" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("left behind: %s", left)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if got, err := call(appUID, l.outside, "", "192.0.2.1:8080"); err != nil || !strings.HasPrefix(got, "app") {
		t.Errorf("afterwards: got %q, %v", got, err)
	}
}

// memberRemains lists what the kernel has of members and shared namespaces.
func (n Node) memberRemains(t *testing.T) string {
	t.Helper()
	var left []string
	for _, dir := range []string{n.members(), n.shared()} {
		pins, err := filepath.Glob(filepath.Join(dir, "*"))
		if err != nil {
			t.Fatal(err)
		}
		left = append(left, pins...)
	}
	tables, err := n.tables()
	if err != nil {
		t.Fatal(err)
	}
	defer tables.close()
	err = errors.Join(
		eachEntry(tables.members, func(k kernelMemberKey, _ uint64) { left = append(left, fmt.Sprintf("%+v", k)) }),
		eachEntry(tables.namespaces, func(k uint64, v kernelNamespace) { left = append(left, fmt.Sprintf("%d: %+v", k, v)) }),
		eachEntry(tables.ports, func(k kernelPortKey, _ uint8) { left = append(left, fmt.Sprintf("%+v", k)) }),
		eachEntry(tables.subnets, func(k kernelSubnetKey, _ uint8) { left = append(left, fmt.Sprintf("%+v", k)) }),
	)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(left, "\n")
}

func TestMemberIsChecked(t *testing.T) {
	good := Member{Address4: netip.MustParseAddr("198.51.100.2"), Address6: netip.MustParseAddr("2001:db8::2"), Ports: []int{80}}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for want, spoil := range map[string]func(*Member){
		"must be an IPv4 address": func(m *Member) { m.Address4 = m.Address6 },
		"must be an IPv6 address": func(m *Member) { m.Address6 = m.Address4 },
		"is the proxy's own":      func(m *Member) { m.Ports = []int{4143} },
		"must be 1 to 65535":      func(m *Member) { m.Ports = []int{0} },
		"is listed twice":         func(m *Member) { m.Ports = []int{80, 80} },
	} {
		m := good
		spoil(&m)
		if err := m.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// A workload that lets its handshakes stand open takes room from nobody.
func TestPendingHandshakesAreLimited(t *testing.T) {
	l := newEBPFLab(t)
	other := newLabOn(t, l.node)
	// Nobody accepts here, and the queue is short.
	var fds []int
	t.Cleanup(func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	})
	l.stopProxy()
	in(t, l.workload, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		fds = append(fds, fd)
		return errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
			unix.Bind(fd, &unix.SockaddrInet4{Port: 4140}), unix.Listen(fd, 0))
	})
	const limit = 8192 // MAX_PENDING of bpf/redirect.c
	raiseFileLimit(t, 2*limit)
	if err := as(appUID, l.workload, func() error {
		for range limit + 500 {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
			if err != nil {
				return err
			}
			fds = append(fds, fd)
			if err := unix.Connect(fd, sockaddr(unix.AF_INET, "192.0.2.2:80")); err != nil && !errors.Is(err, unix.EINPROGRESS) {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	pending := func() (most int64) {
		tables, err := l.node.tables()
		if err != nil {
			t.Fatal(err)
		}
		defer tables.close()
		if err := eachEntry(tables.pending, func(_ uint64, n int64) { most = max(most, n) }); err != nil {
			t.Fatal(err)
		}
		return most
	}
	if n := pending(); n < limit/2 || n > limit {
		t.Errorf("%d handshakes are pending, want up to %d", n, limit)
	}
	if got, err := call(appUID, other.workload, "", "192.0.2.2:80"); err != nil || got != "outbound 192.0.2.2:80" {
		t.Errorf("another workload: got %q, %v", got, err)
	}
	for _, fd := range fds {
		unix.Close(fd)
	}
	fds = nil
	l.wantNoHandshakes(t)
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) { // counted just after
		n := pending()
		if n == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("none is pending, and %d are counted", n)
		}
	}
}

// A member that lets its handshakes stand open takes room from no other one. Its own
// connections without room are not led back to its proxy: the application gets them,
// and is shown nobody it could trust.
func TestPendingHandshakesOfMembers(t *testing.T) {
	l := newSharedLab(t)
	one, two := l.enter(t, 31, 7000, 7001), l.enter(t, 32, 7002)
	seen := func(c net.Conn) net.Addr { return c.RemoteAddr() }
	for _, n := range ipNets {
		for _, port := range []string{"7001", "7002"} {
			serve(t, appUID, l.workload, wildcard(n, port), "client", seen)
		}
	}
	var fds []int
	closeAll := func() {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
		fds = nil
	}
	t.Cleanup(closeAll)
	// Nobody accepts here, and the queue is short.
	in(t, l.workload, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		fds = append(fds, fd)
		return errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Port: 7000}), unix.Listen(fd, 0))
	})
	const limit = 8192 // MAX_PENDING of bpf/redirect.c
	raiseFileLimit(t, 2*limit)
	if err := as(proxyUID, l.workload, func() error {
		for range limit + 500 {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
			if err != nil {
				return err
			}
			fds = append(fds, fd)
			err = errors.Join(
				unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1),
				unix.Bind(fd, sockaddr(unix.AF_INET, "203.0.113.7:5555")))
			if err != nil {
				return err
			}
			if err := unix.Connect(fd, sockaddr(unix.AF_INET, "192.0.2.1:7000")); err != nil && !errors.Is(err, unix.EINPROGRESS) {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ name, client, to, want string }{
		{"without room", "203.0.113.7:5555", "192.0.2.1:7001", "client 192.0.2.1:"},
		{"without room, at the member's address", "203.0.113.7:5555", one.Address4.String() + ":7001", "client 192.0.2.1:"},
		{"without room, v6", "[2001:db8:9::7]:5555", "[2001:db8::1]:7001", "client [2001:db8::1]:"},
		{"without room, at the member's address, v6", "[2001:db8:9::7]:5555", "[" + one.Address6.String() + "]:7001", "client [2001:db8::1]:"},
		{"another member", "203.0.113.7:5555", "192.0.2.1:7002", "client 203.0.113.7:5555"},
		{"another member, v6", "[2001:db8:9::7]:5555", "[" + two.Address6.String() + "]:7002", "client [2001:db8:9::7]:5555"},
	} {
		got, err := l.dialFor(proxyUID, tc.client, tc.to)
		if got = "client " + got; err != nil || !strings.HasPrefix(got, tc.want) {
			t.Errorf("%s: got %q, %v, want %q", tc.name, got, err, tc.want)
		}
	}
	for _, to := range []string{"192.0.2.2:80", "[2001:db8::2]:80"} { // what the members call
		for _, m := range []*testMember{one, two} {
			got, err := m.call(to)
			if want := fmt.Sprintf("outbound-%d %s", m.number, to); m == two && (err != nil || got != want) {
				t.Errorf("the other member to %s: got %q, %v, want %q", to, got, err, want)
			} else if m == one && strings.HasSuffix(got, to) {
				t.Errorf("there was no room, and the proxy knows of %q", got)
			}
		}
	}
	closeAll()
	l.wantNoHandshakes(t)
	for _, n := range ipNets {
		to := net.JoinHostPort(n.outside, worldPort)
		if got, err := one.call(to); err != nil || got != "outbound-31 "+to {
			t.Errorf("with room again, to %s: got %q, %v", to, got, err)
		}
	}
}

// Nobody is to be called by the address that the proxies' connections come from.
func TestHopSourceIsNobodys(t *testing.T) {
	l := newSharedLab(t)
	l.enter(t, 31, 8080)
	for name, netns := range map[string]*os.File{"from outside": l.outside, "from inside": l.workload} {
		if netns == l.outside {
			in(t, netns, func() error {
				eth0, err := netlink.LinkByName("eth0")
				if err != nil {
					return err
				}
				return netlink.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: &net.IPNet{IP: HopSource6.AsSlice(), Mask: net.CIDRMask(128, 128)}})
			})
		}
		if got, err := call(appUID, netns, "", net.JoinHostPort(HopSource6.String(), appPort)); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s: got %q, %v, want connection refused", name, got, err)
		}
	}
}

// Where the host does not have that address what claims to come from it does not pass
// for a proxy's connection, which would get around the policy of the member's own proxy.
func TestHopSourceOfSomebodyElse(t *testing.T) {
	l := newSharedLab(t)
	hop := &net.IPNet{IP: HopSource6.AsSlice(), Mask: net.CIDRMask(128, 128)}
	in(t, l.workload, func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return errors.Join(
			netlink.AddrDel(eth0, &netlink.Addr{IPNet: hop}),
			netlink.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: hop}))
	})
	in(t, l.outside, func() error { return addAddress("eth0", hop.String()) })
	one := l.enter(t, 31, 8080)
	for _, tc := range []struct{ name, to, want string }{
		{"a member's port", "[2001:db8::1]:8080", ""},
		{"a member's port at its address", "[" + one.Address6.String() + "]:8080", ""},
		{"a port of nobody's", net.JoinHostPort("2001:db8::1", skipInboundPort), "app"},
	} {
		got, err := call(appUID, l.outside, HopSource6.String(), tc.to)
		if tc.want == "" && !errors.Is(err, unix.ECONNREFUSED) || tc.want != "" && (err != nil || !strings.HasPrefix(got, tc.want)) {
			t.Errorf("to %s: got %q, %v, want %q", tc.name, got, err, tc.want)
		}
	}
	if got, err := call(appUID, l.outside, "", "[2001:db8::1]:8080"); err != nil || !strings.HasPrefix(got, "inbound-31") {
		t.Errorf("from elsewhere: got %q, %v", got, err)
	}
}

// Members that an earlier tulle let in live on where another takes over: their
// connections over IPv6 find the application once the namespace has the address that
// they come from, also those whose notes found no room once the programs were
// exchanged, and until then no client is taken for another one.
func TestHopSourceAtTakeover(t *testing.T) {
	l := newSharedLab(t)
	hop := &net.IPNet{IP: HopSource6.AsSlice(), Mask: net.CIDRMask(128, 128)}
	in(t, l.workload, func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.AddrDel(eth0, &netlink.Addr{IPNet: hop})
	})
	one := l.enter(t, 31, 7001)
	serve(t, appUID, l.workload, "[::]:7001", "client", func(c net.Conn) net.Addr { return c.RemoteAddr() })
	var dir syscall.Stat_t
	if err := syscall.Stat(one.Cgroup, &dir); err != nil {
		t.Fatal(err)
	}
	pending := func(n int64) {
		t.Helper()
		tables, err := l.node.tables()
		if err != nil {
			t.Fatal(err)
		}
		defer tables.close()
		if err := tables.pending.Put(ofCgroup|dir.Ino, n); err != nil {
			t.Fatal(err)
		}
	}
	const client, unknown, full = "[2001:db8:9::7]:5555", "[2001:db8::1]:", 8192 // UNKNOWN6, MAX_PENDING of bpf/redirect.c
	want := func(when, shown string, refused error) {
		t.Helper()
		got, err := l.dialFor(proxyUID, client, "[2001:db8::1]:7001")
		if refused != nil && !errors.Is(err, refused) || refused == nil && (err != nil || !strings.HasPrefix(got, shown)) {
			t.Errorf("%s: the application sees %q, %v, want %q, %v", when, got, err, shown, refused)
		}
	}
	want("without the address", "", unix.EADDRNOTAVAIL)
	in(t, l.workload, func() error { return addAddress("eth0", hop.String()) }) // as tulle up does first
	want("before programs are exchanged", client, nil)
	pending(full)
	want("before, without room", "", unix.ECONNREFUSED)
	in(t, l.workload, func() error { return l.node.load(loadRevision + 1) })
	want("without room", unknown, nil)
	pending(0)
	want("after", client, nil)
}

// raiseFileLimit lets the test have so many files open.
func raiseFileLimit(t *testing.T, files uint64) {
	t.Helper()
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	raised := before
	raised.Cur, raised.Max = max(raised.Cur, files), max(raised.Max, files)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &raised); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &before) })
}
