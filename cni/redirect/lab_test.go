package redirect

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tulle-mesh/tulle/mesh"
)

// A lab is two network namespaces joined by a veth pair: a workload's, with a
// stub proxy and an application in it, and the outside world. They have no
// name and no uplink, and are gone when the test is.
type lab struct {
	workload, outside *os.File
	backend           Backend
	node              Node                    // of the eBPF backend
	captured          bool                    // it knows the proxy's listeners
	dump              func(*testing.T) string // the rules in the workload's namespace
	stopProxy         func()
}

// A net is the lab's addresses in one version of IP.
type ipNet struct {
	name                                string
	workload, outside, skipped, vip, lo string
	bits                                string
}

var ipNets = []ipNet{
	{"v4", "192.0.2.1", "192.0.2.2", "192.0.2.200", "192.0.2.77", "127.0.0.1", "24"},
	{"v6", "2001:db8::1", "2001:db8::2", "2001:db8::200", "2001:db8::77", "::1", "64"},
}

// Ports of the lab's servers; on the skipped ones the redirect does not act.
const (
	appPort, skipInboundPort    = "8080", "9001"
	worldPort, skipOutboundPort = "80", "9002"
)

var labRules = Rules{
	SkipInbound:  []int{9001},
	SkipOutbound: []int{9002},
	SkipSubnets:  prefixes("192.0.2.200/32", "2001:db8::200/128"),
}

// Users of the lab.
const (
	appUID   = 1000
	proxyUID = mesh.ProxyUID
)

// eachBackend runs test in a lab of its own for every backend there is.
func eachBackend(t *testing.T, test func(*testing.T, *lab)) {
	if os.Geteuid() != 0 {
		t.Skip("makes network namespaces; type: sudo go test ./cni/redirect")
	}
	t.Setenv("XTABLES_LOCKFILE", t.TempDir()+"/lock")
	t.Run("ebpf", func(t *testing.T) {
		l := newLab(t)
		l.node = newNode(t)
		l.backend = l.node.EBPF(l.workload)
		l.dump = func(t *testing.T) string { return dumpEBPF(t, l.node, l.workload) }
		test(t, l)
	})
	t.Run("nftables", func(t *testing.T) {
		l := newLab(t)
		l.backend = NFTables(l.workload)
		l.dump = func(t *testing.T) string { return dumpNFTables(t, l.workload) }
		test(t, l)
	})
	for _, flavour := range []string{"iptables", "iptables-nft", "iptables-legacy"} {
		families := []family{
			{save: flavour + "-save", restore: flavour + "-restore"},
			{v6: true, save: "ip6" + flavour[2:] + "-save", restore: "ip6" + flavour[2:] + "-restore"},
		}
		if flavour != "iptables" && !otherFlavour(families[0].restore) {
			continue
		}
		t.Run(flavour, func(t *testing.T) {
			l := newLab(t)
			l.backend = &iptablesBackend{l.workload, families}
			l.dump = func(t *testing.T) string { return dumpIPTables(t, l.workload, families) }
			test(t, l)
		})
	}
}

// otherFlavour tells whether restore is installed and not the same program as
// plain iptables-restore.
func otherFlavour(restore string) bool {
	var programs [2]string
	for i, name := range []string{"iptables-restore", restore} {
		path, err := FindProgram(name)
		if err != nil {
			return false
		}
		if programs[i], err = filepath.EvalSymlinks(path); err != nil {
			return false
		}
	}
	return programs[0] != programs[1]
}

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{workload: newNetns(t), outside: newNetns(t)}
	in(t, l.workload, func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(l.outside.Fd())})
	})
	// Both ends must be up before they get addresses: an IPv6 address added to a
	// link that is down is not answered for until some time after it came up.
	for _, netns := range []*os.File{l.workload, l.outside} {
		in(t, netns, func() error { return errors.Join(setUp("lo"), setUp("eth0")) })
	}
	for _, side := range []struct {
		netns *os.File
		addrs func(ipNet) []string
	}{
		{l.workload, func(n ipNet) []string { return []string{n.workload} }},
		{l.outside, func(n ipNet) []string { return []string{n.outside, n.skipped} }},
	} {
		in(t, side.netns, func() error {
			var errs []error
			for _, n := range ipNets {
				for _, addr := range side.addrs(n) {
					errs = append(errs, addAddress("eth0", addr+"/"+n.bits))
				}
			}
			return errors.Join(errs...)
		})
	}
	l.startServers(t)
	return l
}

// A way is a call that no rule skips.
type way struct {
	netns    *os.File
	from, to string
}

// bothWays returns a call by the workload and one to it.
func (l *lab) bothWays(n ipNet) []way {
	return []way{
		{l.workload, "", net.JoinHostPort(n.outside, worldPort)},
		// Left alone, the kernel might call from the skipped address.
		{l.outside, n.outside, net.JoinHostPort(n.workload, appPort)},
	}
}

// newNetns makes a network namespace that lives as long as its file.
func newNetns(t *testing.T) *os.File {
	t.Helper()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	var made *os.File
	// What inside does last, to go back, undoes the unshare.
	if err := inside(home, func() (err error) {
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			made, err = os.Open("/proc/thread-self/ns/net")
		}
		return err
	}); err != nil {
		t.Fatalf("make a network namespace (needs CAP_SYS_ADMIN): %v", err)
	}
	t.Cleanup(func() { made.Close() })
	return made
}

// in runs do in a namespace and fails the test on an error.
func in(t *testing.T, netns *os.File, do func() error) {
	t.Helper()
	if err := inside(netns, do); err != nil {
		t.Fatal(err)
	}
}

func addAddress(link, text string) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(text)
	if err != nil {
		return err
	}
	if addr.IP.To4() == nil {
		addr.Flags = unix.IFA_F_NODAD // usable at once
	}
	if err := netlink.AddrAdd(l, addr); err != nil {
		return err
	}
	return awaitLocal(addr.IP)
}

// awaitLocal waits until what is sent to an address stays here: the kernel has a
// worker see to that for IPv6, and until then asks on the link who has it.
func awaitLocal(ip net.IP) error {
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		routes, err := netlink.RouteGet(ip)
		if err == nil && len(routes) == 1 && routes[0].Type == unix.RTN_LOCAL {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s has no route of its own: %v, %v", ip, routes, err)
		}
	}
}

func setUp(link string) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}

func (l *lab) startServers(t *testing.T) {
	l.startProxy(t)
	for _, n := range ipNets {
		for _, port := range []string{appPort, skipInboundPort, "4191"} {
			serve(t, appUID, l.workload, wildcard(n, port), "app", net.Conn.LocalAddr)
		}
		for _, port := range []string{worldPort, skipOutboundPort} {
			serve(t, appUID, l.outside, wildcard(n, port), "world", net.Conn.LocalAddr)
		}
	}
}

// startProxy starts a stub proxy. The eBPF redirect notices its listeners only
// if they are made after the first Apply.
func (l *lab) startProxy(t *testing.T) {
	var stop []func()
	for _, n := range ipNets {
		out := net.JoinHostPort(n.lo, "4140")
		if l.isEBPF() {
			out = wildcard(n, "4140")
		}
		stop = append(stop,
			serve(t, proxyUID, l.workload, out, "outbound", originalDestination),
			serve(t, proxyUID, l.workload, wildcard(n, "4143"), "inbound", originalDestination))
	}
	l.stopProxy = func() {
		for _, s := range stop {
			s()
		}
	}
}

func (l *lab) isEBPF() bool { return l.backend != nil && l.backend.Name() == "ebpf" }

func wildcard(n ipNet, port string) string {
	if n.name == "v4" {
		return "0.0.0.0:" + port
	}
	return "[::]:" + port
}

// serve answers every connection to addr with the line "NAME ADDRESS", and
// then sends back what it gets. Stopping it more than once is fine.
func serve(t *testing.T, uid int, netns *os.File, addr, name string, address func(net.Conn) net.Addr) (stop func()) {
	t.Helper()
	network := "tcp4"
	if strings.HasPrefix(addr, "[") {
		network = "tcp6"
	}
	plain := &net.ListenConfig{} // MPTCP listeners cannot be captured by eBPF
	plain.SetMultipathTCP(false)
	return serveOn(t, uid, netns, plain, network, addr, name, address)
}

func serveOn(t *testing.T, uid int, netns *os.File, config *net.ListenConfig, network, addr, name string, address func(net.Conn) net.Addr) (stop func()) {
	t.Helper()
	var listener net.Listener
	if err := as(uid, netns, func() (err error) {
		listener, err = config.Listen(t.Context(), network, addr)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var open sync.Map // of net.Conn, to end those whose other side is lost
	wg.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			open.Store(conn, nil)
			wg.Go(func() {
				defer open.Delete(conn)
				defer conn.Close()
				if _, err := fmt.Fprintf(conn, "%s %s\n", name, address(conn)); err == nil {
					_, _ = io.Copy(conn, conn)
				}
			})
		}
	})
	stop = sync.OnceFunc(func() { listener.Close() })
	t.Cleanup(func() {
		stop()
		open.Range(func(conn, _ any) bool {
			conn.(net.Conn).Close()
			return true
		})
		wg.Wait()
	})
	return stop
}

// originalDestination tells where a redirected connection was going, as the
// proxy finds it out: from the connection's own address, or from connection tracking.
func originalDestination(conn net.Conn) net.Addr {
	if port := conn.LocalAddr().(*net.TCPAddr).Port; port != mesh.OutboundPort && port != mesh.InboundPort {
		return conn.LocalAddr()
	}
	const soOriginalDst = 80 // linux/netfilter_ipv4.h; IP6T_SO_ORIGINAL_DST is the same
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		return nil
	}
	var addr net.Addr
	_ = raw.Control(func(fd uintptr) {
		if conn.LocalAddr().(*net.TCPAddr).IP.To4() != nil {
			var sa unix.RawSockaddrInet4
			if getsockopt(fd, unix.SOL_IP, soOriginalDst, unsafe.Pointer(&sa), unsafe.Sizeof(sa)) {
				addr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), ntohs(sa.Port)))
			}
			return
		}
		var sa unix.RawSockaddrInet6
		if getsockopt(fd, unix.SOL_IPV6, soOriginalDst, unsafe.Pointer(&sa), unsafe.Sizeof(sa)) {
			addr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), ntohs(sa.Port)))
		}
	})
	if addr == nil {
		return conn.LocalAddr() // not tracked: nobody has redirected it
	}
	return addr
}

func getsockopt(fd uintptr, level, option int, value unsafe.Pointer, size uintptr) bool {
	length := uint32(size)
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, uintptr(level), uintptr(option), uintptr(value), uintptr(unsafe.Pointer(&length)), 0)
	return errno == 0
}

func ntohs(port uint16) uint16 {
	b := *(*[2]byte)(unsafe.Pointer(&port))
	return uint16(b[0])<<8 | uint16(b[1])
}

// as runs do in a namespace as a user: sockets made there are that user's.
func as(uid int, netns *os.File, do func() error) error {
	return inside(netns, func() error {
		// The thread is do's alone until inside has given it back. What makes a
		// socket somebody's is the file system uid of the thread that made it; eBPF
		// goes by the thread's real uid.
		if err := setRealUID(uid); err != nil {
			return err
		}
		defer setRealUID(0)
		if _, err := unix.SetfsuidRetUid(uid); err != nil {
			return err
		}
		defer unix.SetfsuidRetUid(0)
		return do()
	})
}

// setRealUID changes the calling thread only. Its effective uid, and so its
// capabilities, stay root's.
func setRealUID(uid int) error {
	_, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), ^uintptr(0), ^uintptr(0))
	if errno != 0 {
		return errno
	}
	return nil
}

// dial connects from a namespace as a user; from may be empty.
func dial(uid int, netns *os.File, from, to string) (conn net.Conn, greeting string, err error) {
	err = as(uid, netns, func() error {
		dialer := net.Dialer{Timeout: 10 * time.Second}
		if from != "" {
			dialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
		}
		conn, err = dialer.Dial("tcp", to)
		return err
	})
	if err != nil {
		return nil, "", err
	}
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	greeting, err = bufio.NewReaderSize(conn, 16).ReadString('\n')
	if err != nil {
		conn.Close()
		return nil, "", err
	}
	return conn, strings.TrimSuffix(greeting, "\n"), nil
}

// call returns what answers at an address, for instance "world 192.0.2.2:80".
func call(uid int, netns *os.File, from, to string) (string, error) {
	conn, greeting, err := dial(uid, netns, from, to)
	if err == nil {
		conn.Close()
	}
	return greeting, err
}

// echo sends a line over an open connection and waits for it to come back.
func echo(t *testing.T, conn net.Conn) {
	t.Helper()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	const line = "still there?\n"
	if _, err := io.WriteString(conn, line); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(line))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != line {
		t.Fatalf("got %q, %v", got, err)
	}
}

// dumpNFTables reads all the rules there are in the namespace.
func dumpNFTables(t *testing.T, netns *os.File) string {
	t.Helper()
	var b strings.Builder
	in(t, netns, func() error {
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		tables, err := conn.ListTables()
		if err != nil {
			return err
		}
		for _, table := range tables {
			fmt.Fprintf(&b, "table %d %s\n", table.Family, table.Name)
		}
		chains, err := conn.ListChains()
		if err != nil {
			return err
		}
		for _, c := range chains {
			fmt.Fprintf(&b, "chain %s %s type %s hook %d priority %d policy %d\n", c.Table.Name, c.Name, c.Type, *c.Hooknum, *c.Priority, *c.Policy)
			rules, err := conn.GetRules(c.Table, c)
			if err != nil {
				return err
			}
			for _, r := range rules {
				b.WriteString(formatExprs(r.Exprs) + "\n")
			}
		}
		return nil
	})
	return b.String()
}

// dumpIPTables reads all the rules there are, without counters, and without
// empty chains of the kernel's own, which stay behind.
func dumpIPTables(t *testing.T, netns *os.File, families []family) string {
	t.Helper()
	var b strings.Builder
	for _, f := range families {
		var out []byte
		in(t, netns, func() (err error) {
			out, err = exec.Command(f.save).Output()
			return err
		})
		for line := range strings.Lines(string(out)) {
			if strings.HasPrefix(line, "-A") || strings.HasPrefix(line, ":"+chainPrefix) {
				b.WriteString(line)
			}
		}
	}
	return b.String()
}
