package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/tulle-mesh/tulle/cni/agent"
	"github.com/tulle-mesh/tulle/cni/install"
	"github.com/tulle-mesh/tulle/cni/plugin"
	"github.com/tulle-mesh/tulle/cni/redirect"
)

// socket is where the agent is asked, on the machine.
const socket = "/run/tulle-cni/agent.sock"

// machine is where the machine's folders are, as this container sees them.
type machine struct{ conf, bin, run, results, sys, redirect string }

func (m *machine) flags(name string, stderr io.Writer) *flag.FlagSet {
	f := flag.NewFlagSet(name, flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&m.conf, "conf", "/host/cni/net.d", "the machine's /etc/cni/net.d")
	f.StringVar(&m.bin, "bin", "/host/cni/bin", "the machine's /opt/cni/bin")
	f.StringVar(&m.run, "run", "/host/run", "the machine's /run")
	f.StringVar(&m.results, "results", "/host/cni/results", "the machine's /var/lib/cni/results")
	f.StringVar(&m.sys, "sys", "/host/sys/fs", "the machine's /sys/fs, with all that is mounted there")
	f.StringVar(&m.redirect, "redirect", redirect.Auto, "which redirect to use: "+strings.Join(agent.Redirects, ", "))
	return f
}

// socket is the agent's, as this container sees it.
func (m *machine) socket() string {
	below, _ := filepath.Rel("/run", socket)
	return filepath.Join(m.run, below)
}

// kernel is where eBPF programs go. The folder is not that of a `tulle up` on the
// same machine: each removes its own.
func (m *machine) kernel() redirect.Node {
	n := redirect.Node{Pins: filepath.Join(m.sys, "bpf", plugin.Name), Cgroup: filepath.Join(m.sys, "cgroup")}
	// Beside cgroup v1, version 2 has a folder of its own. What this container sees
	// at its own /sys/fs/cgroup may be its own part of the tree only.
	if beside := filepath.Join(n.Cgroup, "unified"); exists(beside) {
		n.Cgroup = beside
	}
	return n
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func (m *machine) node(stderr io.Writer) install.Node {
	return install.Node{Conf: m.conf, Bin: m.bin, Self: "/proc/self/exe", Socket: socket, Log: newLog(stderr)}
}

// runAgent serves the plugin before it chains it, so that no pod ever asks in
// vain.
func runAgent(ctx context.Context, args []string, stderr io.Writer) error {
	var m machine
	if err := m.flags("agent", stderr).Parse(args); err != nil {
		return err
	}
	node := m.node(stderr)
	a, err := agent.New(agent.Config{
		Socket: m.socket(), Results: m.results, Run: m.run, Redirect: m.redirect, Node: m.kernel(), Log: node.Log,
	})
	if err != nil {
		return err
	}
	if err := node.Program(); err != nil {
		return fmt.Errorf("install the plugin: %w", err)
	}
	repair := func() {
		if err := a.Repair(); err != nil {
			node.Log.Error("pods that started without the plugin", "error", err)
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	served := make(chan error, 1)
	go func() {
		served <- a.Run(ctx)
		cancel()
	}()
	select {
	case <-a.Ready():
		repair()
		err = node.Watch(ctx, repair)
		cancel()
	case <-ctx.Done():
	}
	return errors.Join(<-served, err)
}

// runRemove undoes what runAgent did to the machine, but for what pods with a proxy
// still live by. Then it waits, since a DaemonSet wants its pods to run.
func runRemove(ctx context.Context, args []string, stderr io.Writer) error {
	var m machine
	f := m.flags("remove", stderr)
	patience := f.Duration("patience", farewell, "how long to wait for network namespaces of pods to end")
	if err := f.Parse(args); err != nil {
		return err
	}
	node := m.node(stderr)
	if err := node.Remove(); err != nil {
		return err
	}
	pods, err := removeKernel(ctx, m.kernel(), *patience)
	if err != nil {
		return err
	}
	// Last, since runStatus goes by it.
	if err := os.RemoveAll(filepath.Dir(m.socket())); err != nil {
		return err
	}
	if pods > 0 {
		node.Log.Warn("pods that still have a proxy stay redirected by eBPF: nothing of them may pass in plaintext", "pods", pods)
	} else {
		node.Log.Info("the node is as it was")
	}
	<-ctx.Done()
	return nil
}

// farewell is how long a network namespace may outlive the last process in it: the
// kernel takes its time, and what a socket without an owner still has to send keeps
// the namespace until it has been sent again often enough.
const farewell = 30 * time.Second

// removeKernel takes the eBPF programs away, but for pods that live by them, which
// it counts once patience is over.
func removeKernel(ctx context.Context, n redirect.Node, patience time.Duration) (pods int, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		if pods, err = n.InUse(); err != nil {
			return 0, err
		}
		if pods == 0 {
			return 0, n.Remove()
		}
		select {
		case <-ctx.Done():
			return pods, nil
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// runStatus is what the readiness probe runs: what it says becomes an Event.
func runStatus(ctx context.Context, args []string, stderr io.Writer) error {
	var m machine
	f := m.flags("status", stderr)
	removed := f.Bool("removed", false, "succeed if nothing is left on the node instead")
	if err := f.Parse(args); err != nil {
		return err
	}
	if !*removed {
		if err := agent.Ask(ctx, m.socket(), agent.Request{Command: agent.Status}, nil); err != nil {
			return err
		}
		return m.node(stderr).Chained()
	}
	for _, path := range []string{filepath.Join(m.bin, plugin.Name), filepath.Dir(m.socket())} {
		if exists(path) {
			return fmt.Errorf("%s is still there", path)
		}
	}
	return nil
}
