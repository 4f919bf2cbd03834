package main

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/tulle-mesh/tulle/cmd/tulle/command"
)

// dispatch runs the command that args begin with.
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
		_, _ = fmt.Fprintf(w, "  %-10s %s\n", c.Name, c.Help)
	}
	_, _ = fmt.Fprint(w, "\nMore about one: tulle help COMMAND\n")
}
