package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// A peer is one way for a client to reach a server.
type peer struct {
	name  string
	start func(ctx context.Context, l *lab) (*rig, error)
}

var peers = []peer{
	{"direct", startDirect},             // no proxy: what all others add to
	{"haproxy", startHAProxy},           // Debian's, tuned as its documentation advises
	{"haproxy-redirected", startHidden}, // the same, with a redirect before each side as Tulle has it
	{"tulle", startTulle},               // tulle up, tulle run, the real redirect
}

// references are the peers that ratios are to.
var references = []string{"haproxy", "haproxy-redirected"}

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
	client  string // the client's named network namespace
	http    string // host:port of the backend's HTTP side
	tcp     string // host:port of its echo side; "": the peer cannot do it
	proxies []int  // process ids: the client's side, the server's side
}

// What the backend of every rig listens on.
const (
	httpPort = 8080
	echoPort = 9000
)

// site is a client's and a server's namespace, for the peers that do not make
// their own.
type site struct{ clientNS, clientAddr, serverNS, serverAddr string }

const labBridge = "bench0"

var (
	openSite   = site{"bench-client", "10.99.0.2", "bench-server", "10.99.0.3"}
	hiddenSite = site{"bench-client-r", "10.99.0.4", "bench-server-r", "10.99.0.5"} // with a redirect
)

// lab is where it all happens. One goroutine uses it.
type lab struct {
	config
	self      string // this program
	dir       string // scratch
	processes []*exec.Cmd
}

func newLab(c config, self string) (*lab, error) {
	if err := furnish(); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "tulle-bench-")
	if err != nil {
		return nil, err
	}
	l := &lab{config: c, self: self, dir: dir}
	if err := l.wire(); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

// wire makes the sites, joined as Tulle joins its workloads: each namespace by
// a veth to one bridge.
func (l *lab) wire() error {
	script := []string{
		"link add " + labBridge + " type bridge", "link set " + labBridge + " up", "addr add 10.99.0.1/24 dev " + labBridge,
	}
	for _, s := range []site{openSite, hiddenSite} {
		for _, end := range [][2]string{{s.clientNS, s.clientAddr}, {s.serverNS, s.serverAddr}} {
			ns, addr := end[0], end[1]
			link := "bench" + addr[strings.LastIndexByte(addr, '.'):]
			script = append(script,
				"netns add "+ns,
				"link add "+link+" type veth peer name eth0 netns "+ns,
				"link set "+link+" master "+labBridge+" up",
				"-n "+ns+" link set lo up", "-n "+ns+" link set eth0 up", "-n "+ns+" addr add "+addr+"/24 dev eth0",
			)
		}
	}
	for _, line := range script {
		if err := command("ip", strings.Fields(line)...); err != nil {
			return err
		}
	}
	for _, s := range []site{openSite, hiddenSite} {
		if _, err := l.start("backend-"+s.serverNS, "ip", "netns", "exec", s.serverNS, l.self, "backend"); err != nil {
			return err
		}
	}
	return nil
}

func (l *lab) build(ctx context.Context) ([]*rig, error) {
	var rigs []*rig
	for _, p := range peers {
		if !strings.Contains(","+strings.Join(l.chosenPeers(), ",")+",", ","+p.name+",") {
			continue
		}
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

// await returns once a request has been answered through the rig.
func (l *lab) await(ctx context.Context, r *rig) error {
	return patiently(ctx, 20*time.Second, func() error {
		_, err := l.wrk(ctx, r, 1, 50*time.Millisecond)
		return err
	})
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
	for _, p := range l.processes {
		_ = p.Process.Signal(syscall.SIGTERM) // the kernel ends what ignores it, with the namespace
	}
	_ = os.RemoveAll(l.dir)
}

func startDirect(context.Context, *lab) (*rig, error) {
	return &rig{client: openSite.clientNS, http: hostPort(openSite.serverAddr, httpPort), tcp: hostPort(openSite.serverAddr, echoPort)}, nil
}

func hostPort(host string, port int) string { return net.JoinHostPort(host, fmt.Sprint(port)) }
