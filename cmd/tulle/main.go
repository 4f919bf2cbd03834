// Tulle is the command line of the mesh: `tulle up` makes this host one,
// `tulle run` runs a command in it, and the others look at it.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/tulle-mesh/tulle/cmd/tulle/command"
	"github.com/tulle-mesh/tulle/cmd/tulle/view"
)

const version = "0.1.0"

// commands is the whole of the CLI.
func commands() []command.Command {
	return slices.Concat([]command.Command{
		{Name: "up", Help: "Start the mesh on this host", Run: runUp},
		{Name: "run", Help: "Run a command as a workload of the mesh", Run: runRun},
		{Name: "ps", Help: "List the workloads", Run: runPs},
		{Name: "logs", Help: "Print what a workload in the background has written", Run: runLogs},
		{Name: "stop", Help: "Stop a workload", Run: runStop},
		{Name: "down", Help: "Stop the mesh and put the host back as it was", Run: runDown},
	}, view.Commands(), []command.Command{
		{Name: "check", Help: "Find out what is wrong, and what to do about it", Run: runCheck},
		{Name: "version", Help: "Print the version", Run: runVersion},
	})
}

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	env := &command.Env{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Environ: os.Environ()}
	code := dispatch(ctx, env, commands(), os.Args[1:])
	cancel()
	os.Exit(code)
}

func dispatch(ctx context.Context, env *command.Env, table []command.Command, args []string) int {
	if len(args) == 0 {
		printUsage(env.Stderr, table)
		return command.Usage
	}
	if slices.Contains([]string{"help", "-h", "-help", "--help"}, args[0]) {
		if len(args) == 1 {
			printUsage(env.Stdout, table)
			return command.OK
		}
		args = []string{args[1], "--help"}
	}
	if args[0] == "--version" {
		args[0] = "version"
	}
	var names []string
	for _, c := range table {
		if c.Name == args[0] {
			return c.Run(ctx, env, args[1:])
		}
		names = append(names, c.Name)
	}
	if near := command.Nearest(args[0], names); near != "" {
		return env.Fail(command.Usagef("unknown command %q; did you mean: tulle %s", args[0], near))
	}
	return env.Fail(command.Usagef("unknown command %q; all commands: tulle help", args[0]))
}

func printUsage(w io.Writer, table []command.Command) {
	_, _ = fmt.Fprint(w, "Tulle is an ultralight service mesh.\n\nUsage: tulle COMMAND [flags]\n\nCommands:\n")
	for _, c := range table {
		if !c.Hidden {
			_, _ = fmt.Fprintf(w, "  %-10s %s\n", c.Name, c.Help)
		}
	}
	_, _ = fmt.Fprint(w, "\nMore about one: tulle help COMMAND\n")
}
