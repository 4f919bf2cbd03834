// Command tulle-cni sends the traffic of pods into their proxies. It is three
// things: the CNI plugin that a node's container runtime calls, the agent that
// the plugin asks, and the init container where there is no plugin. The
// installer and the injector start it; nobody else needs to.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/tulle-mesh/tulle/cni/plugin"
)

const usage = `Usage: tulle-cni agent|remove|status|init [flags]

  agent    redirect the traffic of this node's pods, until told to end
  remove   take the plugin off this node, then wait to be told to end
  status   succeed if the agent serves
  init     redirect the traffic of this pod, from an init container

A container runtime calls it without arguments, as a CNI plugin.
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	context.AfterFunc(ctx, stop)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 && os.Getenv("CNI_COMMAND") != "" {
		return plugin.Run(ctx, plugin.Call{
			Command: os.Getenv("CNI_COMMAND"),
			Netns:   os.Getenv("CNI_NETNS"),
			Args:    os.Getenv("CNI_ARGS"),
			Stdin:   os.Stdin,
			Stdout:  stdout,
		})
	}
	commands := map[string]func(context.Context, []string, io.Writer) error{
		"agent": runAgent, "remove": runRemove, "status": runStatus, "init": runInit,
	}
	if len(args) == 0 || commands[args[0]] == nil {
		fmt.Fprint(stderr, usage)
		return 2
	}
	err := commands[args[0]](ctx, args[1:], stderr)
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return 0
	}
	fmt.Fprintf(stderr, "tulle-cni %s: %v\n", args[0], err)
	return 1
}

func newLog(w io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, nil))
}
