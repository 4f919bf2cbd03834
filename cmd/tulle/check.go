package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/tulle-mesh/tulle/cmd/tulle/check"
	"github.com/tulle-mesh/tulle/cmd/tulle/command"
	"github.com/tulle-mesh/tulle/cmd/tulle/host"
	"github.com/tulle-mesh/tulle/cmd/tulle/kube"
)

const checkAbout = `
Looks at the mesh, of this host if it is up here and else of the Kubernetes
cluster that your kubeconfig names, and says what is wrong and what to do about
it. Changes nothing. Fails if something has to be mended.`

func runCheck(ctx context.Context, env *command.Env, args []string) int {
	f := command.NewFlags("check [flags]", checkAbout)
	c := &check.Config{}
	run := f.RunDir()
	f.StringVar(&c.StateDir, "state", defaultState, "`DIR` of the certificate authority")
	format := f.String("output", "tree", "`FORMAT`: tree, json or junit")
	f.Short("o", "output")
	pre := f.Bool("pre", false, "whether the mesh could be installed in the cluster")
	var t kube.Target
	t.Flags(f)
	err := f.ParseNone(env, args)
	switch {
	case errors.Is(err, command.ErrHelp):
		return command.OK
	case err == nil && writers[*format] == nil:
		err = command.Usagef("--output %s: must be tree, json or junit", *format)
	}
	if err != nil {
		return env.Fail(err)
	}
	c.RunDir = *run
	var results []check.Result
	if *pre || t.Given() || !isUp(*run) && t.Meant(env) {
		results, err = kube.Check(ctx, env, t, *pre)
	} else {
		results = check.Run(ctx, c)
	}
	if err == nil {
		err = writers[*format](env.Stdout, results)
	}
	if err == nil && !check.Good(results) {
		return command.Failure
	}
	return env.Fail(err)
}

// meansHost tells whether a command is to show this host's mesh: it names a
// running one, or the host's is up.
func meansHost(args []string) bool {
	return isUp(command.DefaultRun) || slices.ContainsFunc(args, func(a string) bool {
		name, _, _ := strings.Cut(strings.TrimLeft(a, "-"), "=")
		return strings.HasPrefix(a, "-") && slices.Contains([]string{"run", "h", "help"}, name)
	})
}

// isUp tells whether a mesh was started on this host. Who may not look must be told
// that, rather than be shown a cluster.
func isUp(run string) bool {
	_, err := os.Stat(host.HostSocket(run))
	return err == nil || errors.Is(err, fs.ErrPermission)
}

// writers are the formats of the report.
var writers = map[string]func(io.Writer, []check.Result) error{
	"tree":  check.Print,
	"junit": check.JUnit,
	"json": func(w io.Writer, results []check.Result) error {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(results)
	},
}
