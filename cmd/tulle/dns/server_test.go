package dns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// start serves on a loopback port until the test ends.
func start(t *testing.T, n Names, upstreams ...netip.AddrPort) netip.AddrPort {
	t.Helper()
	config := Config{
		// Not 127.0.0.1, where the ports of other tests are.
		Listen: []netip.AddrPort{netip.MustParseAddrPort("127.84.53.1:0")}, Domain: "mesh", Names: n,
		Upstreams: func() []netip.AddrPort { return upstreams },
	}
	s, err := Listen(config)
	for range 100 { // the kernel finds a port that is free for UDP, and it may be taken for TCP
		if !errors.Is(err, syscall.EADDRINUSE) {
			break
		}
		s, err = Listen(config)
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return s.packets[0].LocalAddr().(*net.UDPAddr).AddrPort()
}

func lookup(t *testing.T, network string, server netip.AddrPort, name string) dnsmessage.Message {
	t.Helper()
	msg := ask(t, name, dnsmessage.TypeA, 0)
	q, _, _ := parse(msg)
	response, err := exchange(t.Context(), network, server, q, msg)
	if err != nil {
		t.Fatal(err)
	}
	var m dnsmessage.Message
	if err := m.Unpack(response); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestServer(t *testing.T) {
	upstream := start(t, fakeNames{"example.org": nil, "far": {netip.MustParseAddr("192.0.2.1")}})
	server := start(t, names, upstream)
	alone := start(t, names)
	for _, network := range []string{"udp", "tcp"} {
		t.Run(network, func(t *testing.T) {
			if m := lookup(t, network, server, "web.mesh."); len(m.Answers) != 1 {
				t.Errorf("own name: got %v", m)
			}
			if m := lookup(t, network, server, "far."); len(m.Answers) != 1 {
				t.Errorf("forwarded name: got %v", m)
			}
			if m := lookup(t, network, alone, "far."); m.RCode != dnsmessage.RCodeServerFailure {
				t.Errorf("no upstream: got %v", m)
			}
		})
	}
}

func TestListenTellsTakenPort(t *testing.T) {
	l, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if _, err := Listen(Config{Listen: []netip.AddrPort{l.LocalAddr().(*net.UDPAddr).AddrPort()}}); err == nil {
		t.Error("listened on a taken port")
	}
}
