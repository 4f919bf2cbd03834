package main

import (
	"net/netip"
	"os"

	"github.com/tulle-mesh/tulle/cni/redirect"
)

// What of the eBPF redirect is there while somebody who is not meshed calls somebody
// on loopback.
const (
	peerNothing = "nothing loaded"
	peerLoaded  = "loaded"                 // somebody else on the machine is meshed
	peerShared  = "loaded, network shared" // a workload in the very same network is (tulle run --network host)
)

var bystanders = []stage{
	{peerNothing, func(string) (*scene, error) { return bystander(false, false) }},
	{peerLoaded, func(string) (*scene, error) { return bystander(true, false) }},
	{peerShared, func(string) (*scene, error) { return bystander(true, true) }},
}

func bystander(loaded, shared bool) (*scene, error) {
	ns, err := namespace()
	if err != nil {
		return nil, err
	}
	meshed, err := namespace()
	if err != nil {
		return nil, err
	}
	if loaded {
		if err := node.Load(); err != nil {
			return nil, err
		}
		if err := node.EBPF(meshed).Apply(redirect.Rules{}); err != nil {
			return nil, err
		}
	}
	if shared {
		if err := share(ns); err != nil {
			return nil, err
		}
	}
	app, err := start(ns, 1, 0, "echo", at("127.0.0.1", appPort), "")
	if err != nil {
		return nil, err
	}
	return newScene(ns, at("127.0.0.1", appPort), []int{app.pid()}, ns, meshed)
}

// share has a workload share the network of ns.
func share(ns *os.File) error {
	const group = "/sys/fs/cgroup/workload"
	if err := os.Mkdir(group, 0o755); err != nil {
		return err
	}
	return in(ns, func() error {
		_, err := node.Enter(redirect.Member{Cgroup: group, Address4: netip.MustParseAddr("198.51.100.2"), Ports: []int{9000}})
		return err
	})
}
