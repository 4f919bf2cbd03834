package main

import (
	"context"
	"embed"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"text/template"
	"time"
)

// workers is how many threads or processes each proxy gets.
const workers = 2

// What the two sides of a pair listen on, where nothing is redirected.
var (
	outPorts = map[door]int{httpDoor: 18080, grpcDoor: 18081, tcpDoor: 19000} // for the client, on loopback
	inPorts  = map[door]int{httpDoor: 18443, grpcDoor: 18444, tcpDoor: 19443} // for the other side
)

// pair is a proxy of which two make a connection: plaintext in, mutual TLS
// between them, plaintext out.
type pair struct {
	name     string
	conf     string // template of its configuration, in conf/
	redirect bool   // the kernel brings it what the client sends to the server
	// command runs one side; file is its configuration.
	command func(l *lab, s *side, file string) []string
}

// side is one of the two proxies, as the templates see it.
type side struct {
	Side       string // "out" is with the client, "in" with the server
	Dir        string // with ca.pem, client.pem, server.pem
	UID        int
	Workers    int
	Files      int // that a process may have open
	HTTP, GRPC leg
	TCP        leg
}

// leg is where one kind of traffic comes from and goes to: "address:port".
type leg struct{ Listen, Dial string }

func (s *side) Out() bool { return s.Side == "out" }
func (s *side) In() bool  { return s.Side == "in" }

func (s *side) Legs() map[door]leg {
	return map[door]leg{httpDoor: s.HTTP, grpcDoor: s.GRPC, tcpDoor: s.TCP}
}

// sides are the two proxies of a pair at a site.
func (p *pair) sides(l *lab, s site) [2]*side {
	out := &side{Side: "out", Dir: l.dir, UID: proxyUID, Workers: workers, Files: l.files}
	in := &side{Side: "in", Dir: l.dir, UID: proxyUID, Workers: workers, Files: l.files}
	for d, port := range backendPorts {
		peer := hostPort(s.serverAddr, inPorts[d])
		if p.redirect {
			peer = hostPort(s.serverAddr, port)
		}
		*out.leg(d) = leg{hostPort("127.0.0.1", outPorts[d]), peer}
		*in.leg(d) = leg{hostPort("0.0.0.0", inPorts[d]), hostPort("127.0.0.1", port)}
	}
	return [2]*side{out, in}
}

func (s *side) leg(d door) *leg {
	return map[door]*leg{httpDoor: &s.HTTP, grpcDoor: &s.GRPC, tcpDoor: &s.TCP}[d]
}

//go:embed conf
var conf embed.FS

// render makes a side's configuration.
func (p *pair) render(s *side) (string, error) {
	if p.conf == "" {
		return "", nil
	}
	t, err := template.New(p.conf).Funcs(template.FuncMap{
		"dir":  func() string { return s.Dir },
		"host": func(addr string) (string, error) { host, _, err := net.SplitHostPort(addr); return host, err },
		"port": func(addr string) (string, error) { _, port, err := net.SplitHostPort(addr); return port, err },
	}).ParseFS(conf, "conf/"+p.conf)
	if err != nil {
		return "", err
	}
	var text strings.Builder
	err = t.Execute(&text, s)
	return text.String(), err
}

// start starts both sides at a new site.
func (p *pair) start(_ context.Context, l *lab) (*rig, error) {
	s, err := l.site(p.name)
	if err != nil {
		return nil, err
	}
	r := &rig{client: s.clientNS, server: s.serverNS, doors: map[door]string{}}
	for d, port := range outPorts {
		r.doors[d] = hostPort("127.0.0.1", port)
		if p.redirect {
			r.doors[d] = hostPort(s.serverAddr, backendPorts[d])
		}
	}
	if p.redirect {
		if err := l.redirect(s); err != nil {
			return nil, err
		}
	}
	for i, one := range p.sides(l, s) {
		name := p.name + "-" + one.Side
		args, err := p.prepare(l, one, name)
		if err != nil {
			return nil, err
		}
		ns := []string{s.clientNS, s.serverNS}[i]
		// ip turns into what it runs, so the pid is the proxy's.
		cmd, err := l.start(name, append([]string{"ip", "netns", "exec", ns}, args...)...)
		if err != nil {
			return nil, err
		}
		r.roots = append(r.roots, cmd.Process.Pid)
	}
	return r, nil
}

// prepare writes a side's configuration to a file of that name, and returns the
// command that runs it.
func (p *pair) prepare(l *lab, s *side, name string) ([]string, error) {
	text, err := p.render(s)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p.conf, err)
	}
	file := filepath.Join(l.dir, name+filepath.Ext(p.conf))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return nil, err
	}
	return p.command(l, s, file), nil
}

// startUp starts the client's side alone, in a namespace of its own, and
// returns how long it takes until it listens.
func (p *pair) startUp(ctx context.Context, l *lab) (time.Duration, error) {
	s := site{clientNS: "bench-start", clientAddr: "127.0.0.1", serverAddr: "127.0.0.1"}
	if err := command("ip", "netns", "add", s.clientNS); err != nil {
		return 0, err
	}
	defer func() { _ = command("ip", "netns", "delete", s.clientNS) }()
	if err := command("ip", "-n", s.clientNS, "link", "set", "lo", "up"); err != nil {
		return 0, err
	}
	out := p.sides(l, s)[0]
	args, err := p.prepare(l, out, p.name+"-start")
	if err != nil {
		return 0, err
	}
	said, err := l.inside(ctx, s.clientNS, append([]string{"await", out.HTTP.Listen}, args...)...)
	if err != nil {
		return 0, err
	}
	took, err := time.ParseDuration(strings.TrimSpace(said) + "us")
	if err != nil {
		return 0, fmt.Errorf("await: %w", err)
	}
	return took, nil
}
