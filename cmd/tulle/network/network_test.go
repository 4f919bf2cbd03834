package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tulle-mesh/tulle/cmd/tulle/journal"
)

var bridge = Bridge{
	Name: "tulle0", MTU: 1500,
	Gateway4: netip.MustParsePrefix("10.84.0.1/16"),
	Gateway6: netip.MustParsePrefix("fd84::1/64"),
}

func wire(n byte) Wire {
	addr4 := netip.AddrFrom4([4]byte{10, 84, 0, n})
	return Wire{
		Bridge: bridge.Name, Link: LinkName(addr4), MTU: bridge.MTU,
		Address4: netip.PrefixFrom(addr4, 16), Gateway4: bridge.Gateway4.Addr(),
		Address6: netip.MustParsePrefix(fmt.Sprintf("fd84::%d/64", n)), Gateway6: bridge.Gateway6.Addr(),
	}
}

func TestReplicasReachEachOtherAndTheHost(t *testing.T) {
	if err := bridge.Create(); err != nil {
		t.Fatal(err)
	}
	if err := bridge.Create(); err != nil {
		t.Errorf("adopting the bridge: %v", err)
	}
	t.Cleanup(func() { _ = DeleteLink(bridge.Name) })
	var spaces []*Namespace
	for n := byte(2); n < 4; n++ {
		ns, err := NewNamespace(fmt.Sprintf("tulle-test-%d", n))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := errorsJoin(DeleteLink(wire(n).Link), ns.Close()); err != nil {
				t.Error(err)
			}
		})
		if err := ns.Connect(wire(n)); err != nil {
			t.Fatal(err)
		}
		spaces = append(spaces, ns)
	}
	for _, server := range []string{"10.84.0.2:80", "[fd84::2]:80"} {
		echo(t, spaces[0], server, spaces[1], nil)
	}
	for _, server := range []string{"10.84.0.1:80", "[fd84::1]:80"} {
		echo(t, nil, server, spaces[1])
	}
}

// echo has a server in one namespace, nil for the host, accept a connection
// from each of clients.
func echo(t *testing.T, at *Namespace, addr string, clients ...*Namespace) {
	t.Helper()
	do := func(n *Namespace, f func() error) error {
		if n == nil {
			return f()
		}
		return n.Do(f)
	}
	var l net.Listener
	err := do(at, func() (err error) {
		l, err = net.Listen("tcp", addr)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	for _, client := range clients {
		err := do(client, func() error {
			conn, err := net.DialTimeout("tcp", addr, 5*time.Second)
			if err == nil {
				_ = conn.Close()
			}
			return err
		})
		if err != nil {
			t.Errorf("%v to %s: %v", client, addr, err)
		}
	}
}

// TestAddressIsTakenOverAtOnce: a neighbour that knew the address's last owner
// reaches the next one without finding out that anything has changed.
func TestAddressIsTakenOverAtOnce(t *testing.T) {
	if err := bridge.Create(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = DeleteLink(bridge.Name) })
	var hardware []string
	for range 2 {
		ns, err := NewNamespace("tulle-test-heir")
		if err != nil {
			t.Fatal(err)
		}
		if err := ns.Connect(wire(9)); err != nil {
			t.Fatal(err)
		}
		err = ns.Do(func() error {
			l, err := netlink.LinkByName(inside)
			if err == nil {
				hardware = append(hardware, l.Attrs().HardwareAddr.String())
			}
			return err
		})
		if err := errorsJoin(err, DeleteLink(wire(9).Link), ns.Close()); err != nil {
			t.Fatal(err)
		}
	}
	if hardware[0] != hardware[1] {
		t.Errorf("the address moved from %s to %s", hardware[0], hardware[1])
	}
}

func TestNamespaceLeavesNothing(t *testing.T) {
	ns, err := NewNamespace("tulle-x")
	if err != nil {
		t.Fatal(err)
	}
	if err := ns.Do(func() error { _, err := net.InterfaceByName("lo"); return err }); err != nil {
		t.Error(err)
	}
	if err := ns.Close(); err != nil {
		t.Error(err)
	}
	if left, _ := filepath.Glob(NamespaceDir + "/*"); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	if err := RemoveNamespace("tulle-x"); err != nil {
		t.Errorf("removing what is not there: %v", err)
	}
}

func TestThreadsAreNeverTheFirst(t *testing.T) {
	var threads []*Thread
	for range 50 {
		th, err := startThread(func() error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		threads = append(threads, th)
		if err := th.Do(func() error {
			if unix.Gettid() == unix.Getpid() {
				return errors.New("on the process's first thread")
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	}
	for _, th := range threads {
		th.Close()
	}
	boom := errors.New("boom")
	if _, err := startThread(func() error { return boom }); !errors.Is(err, boom) {
		t.Errorf("got %v", err)
	}
}

func TestOverlap(t *testing.T) {
	other := bridge
	other.Name = "other0"
	if err := other.Create(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = DeleteLink("other0") }()
	for _, p := range []string{"10.84.0.0/16", "10.0.0.0/8", "fd84::/64"} {
		if err := Overlap(netip.MustParsePrefix(p), "tulle0"); err == nil || !strings.Contains(err.Error(), "other0") {
			t.Errorf("%s: got %v", p, err)
		}
		if err := Overlap(netip.MustParsePrefix(p), "other0"); err != nil {
			t.Errorf("own bridge: %v", err)
		}
	}
	for _, p := range []string{"10.85.0.0/16", "10.84.7.0/24"} {
		if err := Overlap(netip.MustParsePrefix(p), "tulle0"); err != nil {
			t.Error(err)
		}
	}
}

func snapshot(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	paths, _ := filepath.Glob("/proc/sys/net/ipv[46]/conf/*/*")
	for _, path := range append(paths, "/proc/sys/net/ipv4/ip_forward") {
		v, _ := os.ReadFile(path)
		fmt.Fprintf(&b, "%s=%s", path, v)
	}
	for _, cmd := range [][]string{{"nft", "list", "ruleset"}, {"iptables-save"}, {"ip6tables-save"}} {
		if out, err := exec.Command(cmd[0], cmd[1:]...).Output(); err == nil {
			for line := range strings.Lines(string(out)) {
				if strings.HasPrefix(line, "#") || strings.HasPrefix(line, ":") {
					continue // time stamps, and tables that exist though empty
				}
				b.WriteString(line)
			}
		}
	}
	return b.String()
}

func TestHostIsRestored(t *testing.T) {
	for _, setting := range []string{"net/ipv4/conf/all/accept_redirects=0", "net/ipv4/conf/lo/forwarding=1", "net/ipv6/conf/lo/accept_ra=1"} {
		name, value, _ := strings.Cut(setting, "=")
		if err := writeSysctl(name, value); err != nil {
			t.Fatal(err)
		}
	}
	for _, backend := range []string{NFTables, IPTables} {
		t.Run(backend, func(t *testing.T) {
			if _, err := exec.LookPath("iptables-restore"); err != nil && backend == IPTables {
				t.Skip("no iptables")
			}
			m := Masquerade{Backend: backend, Bridge: "tulle0", Networks: []netip.Prefix{
				netip.MustParsePrefix("10.84.0.0/16"), netip.MustParsePrefix("fd84::/64")}}
			if err := errorsJoin(m.Add(), RemoveMasquerade(backend)); err != nil {
				t.Fatal(err) // iptables has made its tables by now
			}
			before := snapshot(t)
			j, err := journal.Open(filepath.Join(t.TempDir(), "j"))
			if err != nil {
				t.Fatal(err)
			}
			changes, err := ForwardingChanges(true)
			if err != nil {
				t.Fatal(err)
			}
			if err := j.Record(append(changes, journal.Change{Kind: journal.Masquerade, Name: backend})...); err != nil {
				t.Fatal(err)
			}
			if err := errorsJoin(Apply(changes), m.Add(), m.Add()); err != nil {
				t.Fatal(err)
			}
			if v, _ := Sysctl("net/ipv6/conf/all/forwarding"); v != "1" || snapshot(t) == before {
				t.Error("nothing was changed")
			}
			if again, err := ForwardingChanges(true); err != nil || len(again) != 0 {
				t.Errorf("a second time: %v, %v", again, err)
			}
			if err := j.Undo(Undo); err != nil {
				t.Fatal(err)
			}
			if after := snapshot(t); after != before {
				t.Errorf("before:\n%s\nafter:\n%s", before, after)
			}
			if err := RemoveMasquerade(backend); err != nil {
				t.Errorf("removing what is not there: %v", err)
			}
		})
	}
}

func errorsJoin(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func TestAcceptForward(t *testing.T) {
	c := &nftables.Conn{}
	drop := nftables.ChainPolicyDrop
	filter := c.AddTable(&nftables.Table{Name: "filter", Family: nftables.TableFamilyIPv4})
	chain := c.AddChain(&nftables.Chain{Name: "FORWARD", Table: filter, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &drop})
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	defer func() { c.DelTable(filter); _ = c.Flush() }()
	families, err := DroppedForward()
	if err != nil || len(families) != 1 || families[0] != "ip" {
		t.Fatalf("got %v, %v", families, err)
	}
	count := func() int {
		rules, err := c.GetRules(filter, chain)
		if err != nil {
			t.Fatal(err)
		}
		return len(rules)
	}
	if err := errorsJoin(AcceptForward("ip", "tulle0"), AcceptForward("ip", "tulle0")); err != nil || count() != 2 {
		t.Errorf("after adding twice: %d rules, %v", count(), err)
	}
	if err := errorsJoin(RemoveForward("ip"), RemoveForward("ip")); err != nil || count() != 0 {
		t.Errorf("after removing: %d rules, %v", count(), err)
	}
}
