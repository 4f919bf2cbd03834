package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/tulle-mesh/tulle/test/bench/ends"
)

// A peer is one way for a client to reach a server.
type peer struct {
	name    string
	start   func(ctx context.Context, l *lab) (*rig, error)
	startUp func(ctx context.Context, l *lab) (time.Duration, error) // of one proxy; nil: there is none to start
	glance  bool                                                     // --quick measures it
}

// ours is the peer that ratios are of.
const ours = "tulle"

var peers = []peer{
	{name: "direct", start: startDirect, glance: true}, // no proxy: what all others add to
	{name: "floor", start: floor.start, startUp: floor.startUp},
	{name: "haproxy", start: haproxy.start, startUp: haproxy.startUp, glance: true},
	{name: "haproxy-redirected", start: haproxyRedirected.start},
	{name: "nginx", start: nginx.start, startUp: nginx.startUp},
	{name: "envoy", start: envoy.start, startUp: envoy.startUp, glance: true},
	{name: ours, start: startTulle, startUp: tulleStartUp, glance: true}, // tulle up, tulle run, the real redirect
}

func peerNames() []string {
	names := make([]string, len(peers))
	for i, p := range peers {
		names[i] = p.name
	}
	return names
}

// rig is a peer that runs: a client's network namespace, from which a server
// in another one is reached through a pair of proxies.
type rig struct {
	peer    string
	client  string          // the client's named network namespace
	server  string          // the server's
	doors   map[door]string // where the client dials, as host:port
	roots   []int           // process ids as started: the client's side, the server's side
	proxies []int           // the same with the processes that they have started
}

// door is a kind of traffic.
type door string

const (
	httpDoor door = "http"
	grpcDoor door = "grpc"
	tcpDoor  door = "tcp"
)

// backendPorts is what the backend of every rig listens on.
var backendPorts = map[door]int{httpDoor: ends.HTTPPort, grpcDoor: ends.GRPCPort, tcpDoor: ends.TCPPort}

// site is a client's and a server's namespace, for the peers that do not make
// their own.
type site struct{ clientNS, clientAddr, serverNS, serverAddr string }

const labBridge = "bench0"

// lab is where it all happens. One goroutine uses it.
type lab struct {
	config
	self      string // this program
	dir       string // scratch
	files     int    // that a process may have open
	sites     int    // made so far
	processes []*exec.Cmd
}

func newLab(c config, self string) (*lab, error) {
	if err := furnish(); err != nil {
		return nil, err
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return nil, fmt.Errorf("ask for the limit of open files: %w", err)
	}
	dir, err := os.MkdirTemp("", "tulle-bench-")
	if err != nil {
		return nil, err
	}
	l := &lab{config: c, self: self, dir: dir, files: int(limit.Cur)}
	err = writeCertificates(dir)
	for _, line := range []string{"add " + labBridge + " type bridge", "set " + labBridge + " up"} {
		if err == nil {
			err = command("ip", append([]string{"link"}, strings.Fields(line)...)...)
		}
	}
	if err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

// site makes two namespaces with a backend in one of them, joined as Tulle
// joins its workloads: each by a veth to one bridge.
func (l *lab) site(name string) (site, error) {
	addr := func(n int) string { return fmt.Sprintf("10.99.0.%d", 2*l.sites+n) }
	s := site{clientNS: "bench-" + name, clientAddr: addr(2), serverNS: "bench-" + name + "-in", serverAddr: addr(3)}
	l.sites++
	for _, end := range [][2]string{{s.clientNS, s.clientAddr}, {s.serverNS, s.serverAddr}} {
		ns, addr := end[0], end[1]
		link := "bench" + addr[strings.LastIndexByte(addr, '.'):]
		for _, line := range []string{
			"netns add " + ns,
			"link add " + link + " type veth peer name eth0 netns " + ns,
			"link set " + link + " master " + labBridge + " up",
			"-n " + ns + " link set lo up", "-n " + ns + " link set eth0 up", "-n " + ns + " addr add " + addr + "/24 dev eth0",
		} {
			if err := command("ip", strings.Fields(line)...); err != nil {
				return s, err
			}
		}
	}
	_, err := l.start("backend-"+s.serverNS, "ip", "netns", "exec", s.serverNS, l.self, "backend")
	return s, err
}

func (l *lab) build(ctx context.Context) ([]*rig, error) {
	var rigs []*rig
	for _, p := range peers {
		if !slices.Contains(l.chosenPeers(), p.name) {
			continue
		}
		progress("starting %s", p.name)
		r, err := p.start(ctx, l)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.name, err)
		}
		r.peer = p.name
		if err := l.await(ctx, r); err != nil {
			return nil, fmt.Errorf("%s: %w\n%s", p.name, err, l.said(p.name))
		}
		rigs = append(rigs, r)
	}
	return rigs, nil
}

// await returns once the rig has been seen to work, and sees which processes it
// consists of.
func (l *lab) await(ctx context.Context, r *rig) error {
	for _, ns := range []string{r.client, r.server} {
		// Connections that end quickly must not run out of ports.
		err := command("ip", "netns", "exec", ns, "sysctl", "-qw", "net.ipv4.tcp_tw_reuse=1", "net.ipv4.ip_local_port_range=20000 65000")
		if err != nil {
			return err
		}
	}
	for d, addr := range r.doors {
		err := patiently(ctx, 20*time.Second, func() error {
			return l.holding(ctx, r, 1, d, addr, func() error { return nil })
		})
		if err != nil {
			return fmt.Errorf("%s: %w", d, err)
		}
	}
	var err error
	r.proxies, err = withChildren(r.roots)
	return err
}

// patiently tries until it works, and returns the last error if it never does.
func patiently(ctx context.Context, patience time.Duration, try func() error) error {
	for deadline := time.Now().Add(patience); ; {
		err := try()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// start runs a program for as long as the lab is there; what it says goes to a
// file of the scratch folder.
func (l *lab) start(name string, args ...string) (*exec.Cmd, error) {
	log, err := os.Create(filepath.Join(l.dir, name+".log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = l.dir, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	l.processes = append(l.processes, cmd)
	go func() { _ = cmd.Wait() }() // how it ended shows in what it said
	return cmd, nil
}

// inside runs one of the bench's own programs in a namespace, and returns what
// it prints.
func (l *lab) inside(ctx context.Context, ns string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", ns, l.self}, args...)...)
	cmd.Dir = l.dir
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// said returns what the programs whose names begin so wrote last.
func (l *lab) said(prefix string) string {
	logs, _ := filepath.Glob(filepath.Join(l.dir, prefix+"*.log"))
	var said strings.Builder
	for _, name := range logs {
		text, _ := os.ReadFile(name)
		fmt.Fprintf(&said, "%s: %s\n", filepath.Base(name), text[max(0, len(text)-1000):])
	}
	return said.String()
}

func (l *lab) close() {
	if slices.Contains(l.chosenPeers(), ours) {
		_ = exec.Command(l.tulle(), "down").Run() // control groups are all that could stay behind
	}
	for _, p := range l.processes {
		_ = p.Process.Signal(syscall.SIGTERM) // the kernel ends what ignores it, with the namespace
	}
	_ = os.RemoveAll(l.dir)
}

func startDirect(_ context.Context, l *lab) (*rig, error) {
	s, err := l.site("direct")
	if err != nil {
		return nil, err
	}
	r := &rig{client: s.clientNS, server: s.serverNS, doors: map[door]string{}}
	for d, port := range backendPorts {
		r.doors[d] = hostPort(s.serverAddr, port)
	}
	return r, nil
}

func hostPort(host string, port int) string { return net.JoinHostPort(host, fmt.Sprint(port)) }
