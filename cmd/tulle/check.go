package main

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/tulle-mesh/tulle/cmd/tulle/check"
	"github.com/tulle-mesh/tulle/cmd/tulle/command"
)

const checkAbout = `
Looks at the host, the daemon and every workload, and says what is wrong and
what to do about it. Changes nothing. Fails if something has to be mended.`

func runCheck(ctx context.Context, env *command.Env, args []string) int {
	f := command.NewFlags("check [flags]", checkAbout)
	c := &check.Config{}
	run := f.RunDir()
	f.StringVar(&c.StateDir, "state", defaultState, "`DIR` of the certificate authority")
	format := f.String("output", "tree", "`FORMAT`: tree or json")
	f.Short("o", "output")
	operands, err := f.Parse(env, args)
	switch {
	case errors.Is(err, command.ErrHelp):
		return command.OK
	case err == nil && len(operands) > 0:
		err = command.Usagef("tulle check takes no operands, but got %q", operands[0])
	case err == nil && *format != "tree" && *format != "json":
		err = command.Usagef("--output %s: must be tree or json", *format)
	}
	if err != nil {
		return env.Fail(err)
	}
	c.RunDir = *run
	results := check.Run(ctx, c)
	if *format == "json" {
		enc := json.NewEncoder(env.Stdout)
		enc.SetIndent("", "  ")
		err = enc.Encode(results)
	} else {
		err = check.Print(env.Stdout, results)
	}
	if err == nil && !check.Good(results) {
		return command.Failure
	}
	return env.Fail(err)
}
