package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/tulle-mesh/tulle/cni/agent"
	"github.com/tulle-mesh/tulle/cni/install"
	"github.com/tulle-mesh/tulle/cni/plugin"
	"github.com/tulle-mesh/tulle/cni/redirect"
)

// socket is where the agent is asked, on the machine.
const socket = "/run/tulle-cni/agent.sock"

// machine is where the machine's folders are, as this container sees them.
type machine struct{ conf, bin, run, results, backend string }

func (m *machine) flags(name string, stderr io.Writer) *flag.FlagSet {
	f := flag.NewFlagSet(name, flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&m.conf, "conf", "/host/cni/net.d", "the machine's /etc/cni/net.d")
	f.StringVar(&m.bin, "bin", "/host/cni/bin", "the machine's /opt/cni/bin")
	f.StringVar(&m.run, "run", "/host/run", "the machine's /run")
	f.StringVar(&m.results, "results", "/host/cni/results", "the machine's /var/lib/cni/results")
	f.StringVar(&m.backend, "backend", redirect.Auto, "which redirect to use: auto, nftables or iptables")
	return f
}

// socket is the agent's, as this container sees it.
func (m *machine) socket() string {
	below, _ := filepath.Rel("/run", socket)
	return filepath.Join(m.run, below)
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
	a, err := agent.New(agent.Config{Socket: m.socket(), Results: m.results, Run: m.run, Backend: m.backend, Log: node.Log})
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

// runRemove undoes what runAgent did to the machine. Then it waits, since a
// DaemonSet wants its pods to run.
func runRemove(ctx context.Context, args []string, stderr io.Writer) error {
	var m machine
	if err := m.flags("remove", stderr).Parse(args); err != nil {
		return err
	}
	node := m.node(stderr)
	if err := errors.Join(node.Remove(), os.RemoveAll(filepath.Dir(m.socket()))); err != nil {
		return err
	}
	node.Log.Info("the node is as it was")
	<-ctx.Done()
	return nil
}

// runStatus is what the readiness probe runs.
func runStatus(ctx context.Context, args []string, stderr io.Writer) error {
	var m machine
	f := m.flags("status", stderr)
	removed := f.Bool("removed", false, "succeed if the plugin is off the node instead")
	if err := f.Parse(args); err != nil {
		return err
	}
	if !*removed {
		return agent.Ask(ctx, m.socket(), agent.Request{Command: agent.Status}, nil)
	}
	if _, err := os.Stat(filepath.Join(m.bin, plugin.Name)); !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(errors.New("the plugin is still there"), err)
	}
	return nil
}
