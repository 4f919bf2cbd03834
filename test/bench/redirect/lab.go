package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tulle-mesh/tulle/cni/redirect"
	"github.com/tulle-mesh/tulle/mesh"
)

// node is where the eBPF redirect keeps what it has in the kernel.
var node = redirect.Node{Pins: "/sys/fs/bpf/bench"}

// way is a way from an application into its proxy.
type way struct {
	name    string
	backend func(ns *os.File) redirect.Backend // nil: the application calls the proxy
	origin  string                             // how the proxy learns where a connection was going
}

var ways = []way{
	{name: "none"},
	{"ebpf", node.EBPF, originLocal},
	{"nftables", redirect.NFTables, originNetfilter},
	{"iptables", redirect.IPTables, originNetfilter},
}

// Addresses and ports of the lab.
const (
	clientAddr, serverAddr = "10.99.0.1", "10.99.0.2"
	appPort                = 8080
)

func at(host string, port int) string { return fmt.Sprintf("%s:%d", host, port) }

// measure does so in two new namespaces that a veth pair joins.
func (w way) measure(c config, r *results) error {
	l := &lab{}
	defer l.close()
	client, err := l.namespace()
	if err != nil {
		return err
	}
	server, err := l.namespace()
	if err != nil {
		return err
	}
	if err := join(client, server); err != nil {
		return err
	}
	if w.backend != nil {
		if err := node.Load(); err != nil {
			return err
		}
		defer func() { _ = node.Remove() }()
		for _, ns := range []*os.File{client, server} {
			b := w.backend(ns)
			if err := errors.Join(b.Probe(), b.Apply(redirect.Rules{})); err != nil {
				return err
			}
		}
		if w.name != mesh.RedirectEBPF { // it was loaded to be sure that it can be: each way has the same wait
			if err := node.Remove(); err != nil {
				return err
			}
		}
	}
	if err := w.outbound(l, c, r, client); err != nil {
		return fmt.Errorf("outbound: %w", err)
	}
	return w.endToEnd(l, c, r, client, server)
}

// outbound is one hop: application, redirect, proxy, which answers.
func (w way) outbound(l *lab, c config, r *results, client *os.File) error {
	listen, call := at("0.0.0.0", mesh.OutboundPort), at(serverAddr, appPort)
	if w.backend == nil {
		call = at("127.0.0.1", mesh.OutboundPort)
	}
	stub, err := l.start(client, 1, mesh.ProxyUID, "echo", listen, w.origin)
	if err != nil {
		return err
	}
	defer stub.end()
	return l.compare(c, r, "outbound", w.name, client, call, []*process{stub}, []*os.File{client})
}

// endToEnd is all of it: application, redirect, proxy, network, redirect, proxy,
// application.
func (w way) endToEnd(l *lab, c config, r *results, client, server *os.File) error {
	call, next, app := at(serverAddr, appPort), "", ""
	if w.backend == nil {
		call, next, app = at("127.0.0.1", mesh.OutboundPort), at(serverAddr, mesh.InboundPort), at(serverAddr, appPort)
	}
	behalf := ""
	if w.name == mesh.RedirectEBPF {
		behalf = "behalf" // as the product does: the application sees its client
	}
	var all []*process
	for _, p := range []struct {
		ns       *os.File
		cpu, uid int
		args     []string
	}{
		{server, 1, 0, []string{"echo", at("0.0.0.0", appPort), ""}},
		{server, 0, mesh.ProxyUID, []string{"relay", at("0.0.0.0", mesh.InboundPort), w.origin, app, behalf}},
		{client, 1, mesh.ProxyUID, []string{"relay", at("0.0.0.0", mesh.OutboundPort), w.origin, next, ""}},
	} {
		started, err := l.start(p.ns, p.cpu, p.uid, p.args...)
		if err != nil {
			return err
		}
		defer started.end()
		all = append(all, started)
	}
	return l.compare(c, r, "end-to-end", w.name, client, call, all, []*os.File{client, server})
}

// presence is what of the eBPF redirect is there while somebody who is not meshed
// calls somebody on loopback.
type presence struct {
	name          string
	loaded        bool // somebody else on the machine is meshed
	sharedNetwork bool // a workload in the very same network is (tulle run --network host)
}

var presences = []presence{
	{name: "nothing loaded"},
	{name: "loaded", loaded: true},
	{name: "loaded, network shared", loaded: true, sharedNetwork: true},
}

func (p presence) measure(c config, r *results) error {
	l := &lab{}
	defer l.close()
	ns, err := l.namespace()
	if err != nil {
		return err
	}
	if p.loaded {
		if err := node.Load(); err != nil {
			return err
		}
		defer func() { _ = node.Remove() }()
		meshed, err := l.namespace()
		if err != nil {
			return err
		}
		if err := node.EBPF(meshed).Apply(redirect.Rules{}); err != nil {
			return err
		}
	}
	if p.sharedNetwork {
		leave, err := enter(ns)
		if err != nil {
			return err
		}
		defer leave()
	}
	app, err := l.start(ns, 1, 0, "echo", at("127.0.0.1", appPort), "")
	if err != nil {
		return err
	}
	defer app.end()
	return l.compare(c, r, "bystander", p.name, ns, at("127.0.0.1", appPort), []*process{app}, nil)
}

// enter has a workload share the network of ns.
func enter(ns *os.File) (leave func(), err error) {
	cgroup, err := os.MkdirTemp(cgroupRoot(), "tulle-bench-")
	if err != nil {
		return nil, err
	}
	m := redirect.Member{Cgroup: cgroup, Address4: netip.MustParseAddr("198.51.100.2"), Ports: []int{9000}}
	var end func() error
	err = in(ns, func() (err error) {
		end, err = node.Enter(m)
		return err
	})
	if err != nil {
		_ = os.Remove(cgroup)
		return nil, err
	}
	return func() { _, _ = end(), os.Remove(cgroup) }, nil
}

func cgroupRoot() string {
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var st unix.Statfs_t
		if unix.Statfs(dir, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
			return dir
		}
	}
	return "/sys/fs/cgroup"
}

// compare runs the clients, and notes what they saw and what it cost.
func (l *lab) compare(c config, r *results, work, peer string, ns *os.File, call string, others []*process, tracked []*os.File) error {
	before := cpu(others)
	short, err := l.client(ns, "short", call, strconv.Itoa(c.connections))
	if err != nil {
		return err
	}
	used := short.CPU + cpu(others) - before
	ping, err := l.client(ns, "ping", call, strconv.Itoa(c.pings))
	if err != nil {
		return err
	}
	r.add(work, peer, "connect us, p50", short.Connect50)
	r.add(work, peer, "connect us, p99", short.Connect99)
	r.add(work, peer, "connections/s", float64(c.connections)/short.Seconds)
	r.add(work, peer, "CPU us/connection", used*1e6/float64(c.connections))
	r.add(work, peer, "ping-pong us, p50", ping.Round50)
	if tracked == nil {
		return nil
	}
	entries := 0.0
	for _, ns := range tracked {
		n, err := conntrackEntries(ns)
		if err != nil {
			return err
		}
		entries += n
	}
	r.add(work, peer, "conntrack entries", entries)
	return nil
}

// conntrackEntries counts what connection tracking holds of a namespace.
func conntrackEntries(ns *os.File) (n float64, err error) {
	err = in(ns, func() error {
		text, err := os.ReadFile("/proc/thread-self/net/stat/nf_conntrack")
		if errors.Is(err, os.ErrNotExist) {
			return nil // there is no connection tracking
		}
		if err != nil {
			return err
		}
		lines := strings.Split(string(text), "\n") // the first column, in each line the same, is the count
		if len(lines) < 2 || len(strings.Fields(lines[1])) == 0 {
			return fmt.Errorf("nf_conntrack: %q", text)
		}
		entries, err := strconv.ParseUint(strings.Fields(lines[1])[0], 16, 64)
		n = float64(entries)
		return err
	})
	return n, err
}

// lab is what one measurement needs.
type lab struct{ namespaces []*os.File }

func (l *lab) close() {
	for _, ns := range l.namespaces {
		_ = ns.Close()
	}
}

// namespace makes one in which a connection that has ended leaves its port at once:
// otherwise the search for a free port is what would be measured.
func (l *lab) namespace() (*os.File, error) {
	var made *os.File
	err := onThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if made, err = os.Open("/proc/thread-self/ns/net"); err != nil {
			return err
		}
		if err := os.WriteFile("/proc/sys/net/ipv4/tcp_max_tw_buckets", []byte("0"), 0); err != nil {
			return err
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	if err == nil {
		l.namespaces = append(l.namespaces, made)
	}
	return made, err
}

func join(client, server *os.File) error {
	err := in(client, func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(server.Fd())})
	})
	for _, end := range []struct {
		ns   *os.File
		addr string
	}{{client, clientAddr}, {server, serverAddr}} {
		err = errors.Join(err, in(end.ns, func() error {
			eth0, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			addr, err := netlink.ParseAddr(end.addr + "/24")
			if err != nil {
				return err
			}
			return errors.Join(netlink.AddrAdd(eth0, addr), netlink.LinkSetUp(eth0))
		}))
	}
	return err
}

// in runs do on a thread in a namespace.
func in(ns *os.File, do func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		return do()
	})
}

// onThread runs do on a thread that ends with it.
func onThread(do func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- do()
	}()
	return <-done
}

// process is one end, or a proxy.
type process struct{ cmd *exec.Cmd }

// start returns once the process listens.
func (l *lab) start(ns *os.File, cpu, uid int, args ...string) (*process, error) {
	cmd := exec.Command("/proc/self/exe", append([]string{args[0], strconv.Itoa(cpu)}, args[1:]...)...)
	cmd.Stderr = os.Stderr
	if uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := in(ns, cmd.Start); err != nil {
		return nil, err
	}
	p := &process{cmd}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		p.end()
		return nil, fmt.Errorf("%s did not start: %w", args[0], err)
	}
	return p, nil
}

func (p *process) end() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// cpu returns the seconds that processes have run.
func cpu(all []*process) float64 {
	seconds := 0.0
	for _, p := range all {
		tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", p.cmd.Process.Pid))
		for _, task := range tasks {
			text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/schedstat", p.cmd.Process.Pid, task.Name()))
			nanos, _, _ := strings.Cut(string(text), " ")
			ran, _ := strconv.ParseFloat(nanos, 64)
			seconds += ran / 1e9
		}
	}
	return seconds
}

// client runs one to its end.
func (l *lab) client(ns *os.File, args ...string) (seen, error) {
	var s seen
	cmd := exec.Command("/proc/self/exe", append([]string{args[0], "0"}, args[1:]...)...)
	cmd.Stderr = os.Stderr
	var out []byte
	err := in(ns, func() (err error) {
		out, err = cmd.Output()
		return err
	})
	if err != nil {
		return s, fmt.Errorf("%s: %w", args[0], err)
	}
	return s, json.Unmarshal(out, &s)
}
