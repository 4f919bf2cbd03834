package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/tulle-mesh/tulle/cni/redirect"
	"github.com/tulle-mesh/tulle/mesh"
)

// node is where the eBPF redirect keeps what it has in the kernel.
var node = redirect.Node{Pins: "/sys/fs/bpf/bench"}

// way is a way from an application into its proxy, which is a stub.
type way struct {
	name    string
	backend func(ns *os.File) redirect.Backend // nil: the application calls the proxy
	origin  string                             // how the proxy learns where a connection was going
}

var ways = []way{
	{name: peerNone},
	{peerEBPF, node.EBPF, originLocal},
	{peerNFTables, redirect.NFTables, originNetfilter},
	{peerIPTables, redirect.IPTables, originNetfilter},
}

// stages are one for each way.
func stages(begin func(way) (*scene, error)) []stage {
	var all []stage
	for _, w := range ways {
		all = append(all, stage{w.name, func(string) (*scene, error) { return begin(w) }})
	}
	return all
}

// Addresses and ports of the lab.
const (
	clientAddr, serverAddr = "10.99.0.1", "10.99.0.2"
	appPort                = 8080
)

func at(host string, port int) string { return fmt.Sprintf("%s:%d", host, port) }

// redirected makes two namespaces that a veth pair joins, both redirected.
func (w way) redirected() (client, server *os.File, err error) {
	if client, server, err = pair(); err != nil || w.backend == nil {
		return client, server, err
	}
	if w.name == peerEBPF {
		if err := node.Load(); err != nil {
			return nil, nil, err
		}
	}
	for _, ns := range []*os.File{client, server} {
		b := w.backend(ns)
		if err := errors.Join(b.Probe(), b.Apply(redirect.Rules{})); err != nil {
			return nil, nil, err
		}
	}
	return client, server, nil
}

// outbound is one hop: application, redirect, proxy, which answers.
func outbound(w way) (*scene, error) {
	client, server, err := w.redirected()
	if err != nil {
		return nil, err
	}
	call := at(serverAddr, appPort)
	if w.backend == nil {
		call = at("127.0.0.1", mesh.OutboundPort)
	}
	stub, err := start(client, 1, mesh.ProxyUID, "echo", at("0.0.0.0", mesh.OutboundPort), w.origin)
	if err != nil {
		return nil, err
	}
	return newScene(client, call, []int{stub.pid()}, client, server)
}

// endToEnd is all of it: application, redirect, proxy, network, redirect, proxy,
// application.
func endToEnd(w way) (*scene, error) {
	client, server, err := w.redirected()
	if err != nil {
		return nil, err
	}
	call, next, app := at(serverAddr, appPort), "", ""
	if w.backend == nil {
		call, next, app = at("127.0.0.1", mesh.OutboundPort), at(serverAddr, mesh.InboundPort), at(serverAddr, appPort)
	}
	behalf := ""
	if w.name == peerEBPF {
		behalf = "behalf" // as the product does: the application sees its client
	}
	var others []int
	for _, p := range []struct {
		ns       *os.File
		cpu, uid int
		args     []string
	}{
		{server, 1, 0, []string{"echo", at("0.0.0.0", appPort), ""}},
		{server, 0, mesh.ProxyUID, []string{"relay", at("0.0.0.0", mesh.InboundPort), w.origin, app, behalf}},
		{client, 1, mesh.ProxyUID, []string{"relay", at("0.0.0.0", mesh.OutboundPort), w.origin, next, ""}},
	} {
		started, err := start(p.ns, p.cpu, p.uid, p.args...)
		if err != nil {
			return nil, err
		}
		others = append(others, started.pid())
	}
	return newScene(client, call, others, client, server)
}
