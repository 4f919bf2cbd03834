package kube

import (
	"context"
	"errors"

	"github.com/tulle-mesh/tulle/cmd/tulle/command"
)

// Commands returns the rows of the CLI's table.
func Commands() []command.Command {
	return []command.Command{
		{Name: "install", Help: "Install the mesh in a Kubernetes cluster", Run: run(install)},
		{Name: "upgrade", Help: "Bring the cluster's mesh to this version", Run: run(upgrade)},
		{Name: "mesh", Help: "Take the workloads of a namespace into the mesh", Run: run(meshNamespaces)},
		{Name: "unmesh", Help: "Take them out again", Run: run(unmeshNamespaces)},
		{Name: "inject", Help: "Add the proxy to a file of Kubernetes objects, offline", Run: run(injectFile)},
		{Name: "uninstall", Help: "Remove the mesh from the cluster, and all its traces", Run: run(uninstall)},
	}
}

// run makes a command's error into its exit code.
func run(do func(context.Context, *command.Env, []string) error) func(context.Context, *command.Env, []string) int {
	return func(ctx context.Context, env *command.Env, args []string) int {
		err := do(ctx, env, args)
		if errors.Is(err, command.ErrHelp) {
			return command.OK
		}
		if ctx.Err() != nil && errors.Is(err, context.Canceled) {
			env.Errorf("interrupted; what was done so far stays, and doing it again is safe")
			return command.Failure
		}
		return env.Fail(err)
	}
}
