// Tulle is the command line of the mesh: `tulle up` makes this host one,
// `tulle run` runs a command in it, `tulle install` and `tulle mesh` do the
// like with a Kubernetes cluster, and the others look at it.
package main

import (
	"context"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/tulle-mesh/tulle/cmd/tulle/command"
	"github.com/tulle-mesh/tulle/cmd/tulle/kube"
	"github.com/tulle-mesh/tulle/cmd/tulle/view"
	"github.com/tulle-mesh/tulle/mesh"
)

const version = mesh.Version

// commands is the whole of the CLI.
func commands() []command.Command {
	return slices.Concat([]command.Command{
		{Name: "up", Help: "Start the mesh on this host", Run: runUp},
		{Name: "run", Help: "Run a command as a workload of the mesh", Run: runRun},
		{Name: "ps", Help: "List the workloads", Run: runPs},
		{Name: "logs", Help: "Print what a workload in the background has written", Run: runLogs},
		{Name: "stop", Help: "Stop a workload", Run: runStop},
		{Name: "down", Help: "Stop the mesh and put the host back as it was", Run: runDown},
	}, kube.Commands(), kube.OnCluster(view.Commands(), meansHost), []command.Command{
		{Name: "check", Help: "Find out what is wrong, and what to do about it", Run: runCheck},
		{Name: "version", Help: "Print the version", Run: runVersion},
	})
}

// outliveReaders lets a command that changes this host go on to its end where nobody
// reads any more what it says: a pipe to a program that the same Ctrl-C has ended.
// Programs that it starts get the signal as ever.
func outliveReaders() { signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) }

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	context.AfterFunc(ctx, cancel) // a second Ctrl-C ends the process at once
	env := &command.Env{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Environ: os.Environ()}
	code := dispatch(ctx, env, commands(), os.Args[1:])
	cancel()
	os.Exit(code)
}
