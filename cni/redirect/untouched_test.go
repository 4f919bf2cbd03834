package redirect

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// listenPacket opens a packet socket in a namespace as a user.
func listenPacket(t *testing.T, uid int, netns *os.File, network, addr string) (conn net.PacketConn) {
	t.Helper()
	if err := as(uid, netns, func() (err error) {
		conn, err = net.ListenPacket(network, addr)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	return conn
}

func TestUDPAndICMPAreUntouched(t *testing.T) {
	eachBackend(t, func(t *testing.T, l *lab) {
		l.apply(t, labRules)
		for _, n := range ipNets {
			for _, side := range []struct {
				from, to *os.File
				addr     string
			}{{l.workload, l.outside, n.outside}, {l.outside, l.workload, n.workload}} {
				server := listenPacket(t, appUID, side.to, "udp", net.JoinHostPort(side.addr, "53"))
				client := listenPacket(t, appUID, side.from, "udp", ":0")
				if _, err := client.WriteTo([]byte("?"), server.LocalAddr()); err != nil {
					t.Fatal(err)
				}
				if _, from, err := server.ReadFrom(make([]byte, 8)); err != nil {
					t.Errorf("UDP to %s: %v", side.addr, err)
				} else if from.(*net.UDPAddr).Port != client.LocalAddr().(*net.UDPAddr).Port {
					t.Errorf("UDP to %s: came from %v", side.addr, from)
				}
				if err := ping(t, side.from, n, side.addr); err != nil {
					t.Errorf("ping %s: %v", side.addr, err)
				}
			}
		}
	})
}

func ping(t *testing.T, netns *os.File, n ipNet, to string) error {
	network, protocol, request, reply := "ip6:ipv6-icmp", 58, icmp.Type(ipv6.ICMPTypeEchoRequest), icmp.Type(ipv6.ICMPTypeEchoReply)
	if n.name == "v4" {
		network, protocol, request, reply = "ip4:icmp", 1, ipv4.ICMPTypeEcho, ipv4.ICMPTypeEchoReply
	}
	conn := listenPacket(t, 0, netns, network, "")
	message, err := (&icmp.Message{Type: request, Body: &icmp.Echo{ID: 7, Seq: 1}}).Marshal(nil)
	if err != nil {
		return err
	}
	if _, err := conn.WriteTo(message, &net.IPAddr{IP: net.ParseIP(to)}); err != nil {
		return err
	}
	for {
		buf := make([]byte, 1500)
		length, _, err := conn.ReadFrom(buf)
		if err != nil {
			return err
		}
		if got, err := icmp.ParseMessage(protocol, buf[:length]); err == nil && got.Type == reply {
			return nil
		}
	}
}

// Segments of a connection that nobody has opened.
const (
	invalid   = 0x00 // no flag at all: connection tracking makes nothing of it
	midstream = 0x18 // PSH and ACK: tracking takes it for a connection it had forgotten
)

// segment is TCP as RFC 9293 section 3.1 has it, without a checksum.
func segment(port uint16, flags byte, payload string) []byte {
	s := binary.BigEndian.AppendUint16(nil, 40000)
	s = binary.BigEndian.AppendUint16(s, port)
	s = append(s, make([]byte, 8)...) // sequence and acknowledgement
	s = append(s, 5<<4, flags, 16, 0, 0, 0, 0, 0)
	return append(s, payload...)
}

// A stray is a segment that goes from one namespace to a port of the other,
// and one after it that no rule stops.
type stray struct {
	from, to            *os.File
	source, destination string
	network             string // "ip4:tcp" or "ip6:tcp"
	flags               byte
	port                uint16
	sentinelUID         int
	sentinelPort        uint16
}

// arrives tells whether the segment reaches its port.
func (s stray) arrives(t *testing.T) bool {
	t.Helper()
	receiver := listenPacket(t, 0, s.to, s.network, s.destination)
	send := func(uid int, segment []byte) {
		// Another file system uid keeps root's right to raw sockets.
		sender := listenPacket(t, uid, s.from, s.network, s.source)
		// That a segment is dropped on its way out is told as "not permitted".
		if _, err := sender.WriteTo(segment, &net.IPAddr{IP: net.ParseIP(s.destination)}); err != nil && !errors.Is(err, os.ErrPermission) {
			t.Fatal(err)
		}
	}
	send(appUID, segment(s.port, s.flags, "secret"))
	send(s.sentinelUID, segment(s.sentinelPort, invalid, "sentinel"))
	arrived := false
	for {
		buf := make([]byte, 1500)
		length, _, err := receiver.ReadFrom(buf)
		if err != nil {
			t.Fatalf("to %s: the sentinel did not arrive: %v", s.destination, err)
		}
		switch got := buf[:length]; {
		case bytes.HasSuffix(got, []byte("secret")) && binary.BigEndian.Uint16(got[2:]) == s.port:
			arrived = true
		case bytes.HasSuffix(got, []byte("sentinel")):
			return arrived
		}
	}
}

// Packets of connections that the kernel has lost carry nothing past the
// proxy, and do not reach the application behind its back.
func TestStraysGoNowhere(t *testing.T) {
	eachBackend(t, func(t *testing.T, l *lab) {
		if l.isEBPF() {
			t.Log("no packet is ever translated, so there is none that is not")
			return
		}
		for _, n := range ipNets {
			network := map[string]string{"v4": "ip4:tcp", "v6": "ip6:tcp"}[n.name]
			for _, flags := range []byte{invalid, midstream} {
				out := stray{l.workload, l.outside, n.workload, n.outside, network, flags, 80, proxyUID, 80}
				in := stray{l.outside, l.workload, n.outside, n.workload, network, flags, 8080, appUID, 9001}
				if !out.arrives(t) || !in.arrives(t) {
					t.Fatalf("%s, flags %#x: without rules: stopped", n.name, flags)
				}
				l.apply(t, labRules)
				if out.arrives(t) {
					t.Errorf("%s, flags %#x: out: went past the proxy", n.name, flags)
				}
				if in.arrives(t) {
					t.Errorf("%s, flags %#x: in: went past the proxy", n.name, flags)
				}
				if err := l.backend.Remove(); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}

// Whatever stands in our table, perhaps of another version, Apply sets right.
func TestTableOfAnotherShapeIsReplaced(t *testing.T) {
	eachBackend(t, func(t *testing.T, l *lab) {
		if l.backend.Name() != "nftables" {
			return
		}
		l.apply(t, labRules)
		want := l.dump(t)
		for name, spoil := range map[string]func(*nftables.Conn, *nftables.Table){
			"surplus chain": func(conn *nftables.Conn, table *nftables.Table) {
				conn.AddChain(&nftables.Chain{Table: table, Name: "surplus"})
			},
			"other hook": func(conn *nftables.Conn, table *nftables.Table) {
				conn.DelTable(table)
				conn.AddTable(table)
				addChains(conn, table, []chain{{name: "inbound", table: filter, hook: output}})
			},
			"no chains": func(conn *nftables.Conn, table *nftables.Table) {
				conn.DelTable(table)
				conn.AddTable(table)
			},
		} {
			in(t, l.workload, func() error {
				conn, err := nftables.New()
				if err != nil {
					return err
				}
				spoil(conn, ourTable())
				return conn.Flush()
			})
			l.apply(t, labRules)
			if diff := cmp.Diff(want, l.dump(t)); diff != "" {
				t.Errorf("%s (-want +got):\n%s", name, diff)
			}
		}
	})
}

// What the kernel says its rules are is what the golden files say they are.
func TestKernelTookTheRulesAsTheyWereMeant(t *testing.T) {
	eachBackend(t, func(t *testing.T, l *lab) {
		if l.isEBPF() {
			t.Log("its rules are in bpf/redirect.c")
			return
		}
		for _, rules := range goldenRules {
			l.apply(t, rules)
			var sent []string
			chains := rules.withDefaults().chains()
			if b, ok := l.backend.(*iptablesBackend); ok {
				for _, f := range b.families {
					for _, table := range render(chains, f.v6) {
						for _, c := range table.chains {
							sent = append(sent, c.rules...)
						}
					}
				}
			} else {
				for _, c := range chains {
					for _, r := range c.rules {
						sent = append(sent, formatExprs(append(nftMatch(r, c.hook), nftVerdict(r)...)))
					}
				}
			}
			has := l.dump(t)
			for _, rule := range sent {
				if !strings.Contains(has, rule+"\n") {
					t.Errorf("the kernel lacks %q, it has\n%s", rule, has)
				}
			}
			if got := strings.Count(has, "RETURN") + strings.Count(has, "REDIRECT") + strings.Count(has, "DROP") +
				strings.Count(has, "redir ") + strings.Count(has, "reg 0 "); got != len(sent) {
				t.Errorf("the kernel has %d rules, want %d:\n%s", got, len(sent), has)
			}
		}
	})
}

// Rules of others stay, and do not get to see the packets before ours do.
func TestRulesOfOthersStay(t *testing.T) {
	eachBackend(t, func(t *testing.T, l *lab) {
		if l.isEBPF() {
			t.Log("it has no rules among theirs")
			return
		}
		l.addForeignRules(t)
		before := l.dump(t)
		for range 2 {
			l.apply(t, labRules)
		}
		for _, n := range ipNets {
			for _, w := range l.bothWays(n) {
				got, err := call(appUID, w.netns, w.from, w.to)
				if err != nil || !strings.HasPrefix(got, "outbound ") && !strings.HasPrefix(got, "inbound ") {
					t.Errorf("call to %s: got %q, %v", w.to, got, err)
				}
			}
		}
		if err := l.backend.Remove(); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, l.dump(t)); diff != "" {
			t.Errorf("(-before +after):\n%s", diff)
		}
	})
}

// addForeignRules adds rules that would keep all TCP from ours, came they first.
func (l *lab) addForeignRules(t *testing.T) {
	t.Helper()
	if b, ok := l.backend.(*iptablesBackend); ok {
		for _, f := range b.families {
			const input = "*nat\n-A PREROUTING -p tcp -j ACCEPT\n-A OUTPUT -p tcp -j ACCEPT\nCOMMIT\n"
			if err := b.commit(f, input); err != nil {
				t.Fatal(err)
			}
		}
		return
	}
	in(t, l.workload, func() error {
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		table := conn.AddTable(&nftables.Table{Name: "foreign", Family: nftables.TableFamilyINet})
		for name, hook := range map[string]*nftables.ChainHook{"in": nftables.ChainHookPrerouting, "out": nftables.ChainHookOutput} {
			chain := conn.AddChain(&nftables.Chain{Table: table, Name: name, Type: nftables.ChainTypeNAT, Hooknum: hook, Priority: nftables.ChainPriorityNATDest})
			conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: append(tcp(), nftVerdict(rule{verdict: redirect, to: 1})...)})
		}
		return conn.Flush()
	})
}

func TestNilIsTheThreadsNamespace(t *testing.T) {
	eachBackend(t, func(t *testing.T, l *lab) {
		backend := l.backend
		in(t, l.workload, func() error { return onCurrentThread(backend).Apply(labRules) })
		if l.dump(t) == "" {
			t.Error("no rules in the thread's namespace")
		}
		in(t, l.workload, func() error { return onCurrentThread(backend).Remove() })
		if got := l.dump(t); got != "" {
			t.Errorf("left behind:\n%s", got)
		}
	})
}

func onCurrentThread(b Backend) Backend {
	switch b := b.(type) {
	case *iptablesBackend:
		return &iptablesBackend{nil, b.families}
	case *ebpfBackend:
		return b.node.EBPF(nil)
	}
	return NFTables(nil)
}

// A thread that was in a namespace is back home afterwards, or gone.
func TestInsideComesHome(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("makes network namespaces; type: sudo go test ./cni/redirect")
	}
	netns := newNetns(t)
	home, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for range 4 * runtime.NumCPU() {
		in(t, netns, func() error { return nil })
		for range 4 {
			if here, err := os.Readlink("/proc/thread-self/ns/net"); err != nil || here != home {
				t.Fatalf("in %s, %v, not in %s", here, err, home)
			}
		}
	}
	if err := inside(os.Stdin, func() error { t.Error("was run"); return nil }); err == nil {
		t.Error("a file that is no namespace: no error")
	}
}

func TestErrorsSayWhatToType(t *testing.T) {
	missing := &iptablesBackend{families: []family{{save: "no-such-iptables-save", restore: "no-such-iptables-restore"}}}
	if err := missing.Probe(); !errors.Is(err, exec.ErrNotFound) || !strings.Contains(err.Error(), "no-such-iptables-save is not installed; type: apt-get install iptables") {
		t.Errorf("got %v", err)
	}
	for said, want := range map[string]string{
		"iptables: Permission denied (you must be root)":                              "run as root",
		"can't initialize table `nat': Table does not exist (do you need to insmod?)": "type: modprobe -a iptable_nat",
		"line 3 failed": "line 3 failed",
		"":              "iptables-restore: exit",
	} {
		if err := explainProgram("iptables-restore", said, errors.New("exit status 1")); !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q in it", said, err, want)
		}
	}
}
