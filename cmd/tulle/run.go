package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/tulle-mesh/tulle/cmd/tulle/command"
	"github.com/tulle-mesh/tulle/cmd/tulle/host"
	"github.com/tulle-mesh/tulle/cmd/tulle/workload"
	"github.com/tulle-mesh/tulle/mesh"
)

const runAbout = `
Runs a command as a workload of the mesh: in a network namespace of its own,
with an address of its own and a proxy beside it. Others in the mesh reach it as
NAME or NAME.mesh, and each replica as NAME-1.mesh and so on. PORT is where it
will listen; it gets no traffic before it does.

With --network host the command stays in the network of this host, and so does a
service that others reach there already. Its connections, and those of others to
PORT, go through its proxy; nobody else's do. That takes the eBPF redirect.

Input, output, terminal, signals and exit code are those of the command; 125
means that tulle failed, 126 that the command cannot be executed, 127 that it
was not found.`

// runFlags are those of `tulle run`.
type runFlags struct {
	workload.Config
	run, proxy         string
	network            string
	detach, background bool
}

func runRun(ctx context.Context, env *command.Env, args []string) int {
	c, err := parseRun(env, args)
	if errors.Is(err, command.ErrHelp) {
		return command.OK
	}
	if err == nil {
		err = needRoot("run")
	}
	if err != nil {
		return failCode(env, err, workload.CodeOwn)
	}
	client, hangUp, err := dialHost(c.run)
	if err != nil {
		return failCode(env, err, workload.CodeOwn)
	}
	defer hangUp()
	outliveReaders()
	if c.detach && !c.background {
		return runInBackground(ctx, env, args)
	}
	c.Host, c.RunDir, c.Proxy = client, c.run, c.proxy
	c.Names, c.Upstreams = host.LastNames(c.run), host.Upstreams
	if c.background {
		tell := teller()
		c.Detached, c.Stdin = true, nil
		c.Started = func(replicas []string) { tell(started{Replicas: replicas}) }
		code, err := workload.Run(ctx, c.Config)
		if err != nil {
			tell(started{Error: hostError(err).Error(), Code: code})
		}
		return code
	}
	code, err := workload.Run(context.WithoutCancel(ctx), c.Config)
	if err != nil {
		return failCode(env, hostError(err), code)
	}
	return code
}

func runInBackground(ctx context.Context, env *command.Env, args []string) int {
	word, err := toBackground(ctx, "run", args, nil)
	if err != nil {
		return failCode(env, err, workload.CodeOwn)
	}
	if word.Error != "" {
		return failCode(env, errors.New(word.Error), word.Code)
	}
	for _, name := range word.Replicas {
		_, _ = fmt.Fprintln(env.Stdout, name)
	}
	return command.OK
}

func parseRun(env *command.Env, args []string) (*runFlags, error) {
	c := &runFlags{Config: workload.Config{Stdin: env.Stdin, Stdout: env.Stdout, Stderr: env.Stderr, Environ: env.Environ}}
	f := command.NewFlags("run NAME[:PORT[,PORT…]] [flags] -- COMMAND [ARGS…]", runAbout)
	f.IntVar(&c.Replicas, "replicas", 1, "run `N` replicas")
	f.BoolVar(&c.Add, "add", false, "add replicas to a service that is running")
	f.BoolVar(&c.detach, "detach", false, "run in the background; print the names when it runs")
	f.Short("d", "detach")
	f.BoolVar(&c.Remove, "rm", false, "leave no trace in tulle ps after the end")
	f.StringVar(&c.User, "user", "", "run as `USER[:GROUP]`, by name or number")
	f.Short("u", "user")
	var vars command.List
	f.Var(&vars, "env", "set a variable to `KEY=VALUE`; the caller's own are handed on anyway")
	f.Short("e", "env")
	f.BoolVar(&c.Strict, "strict", false, "let only workloads of the mesh connect")
	f.StringVar(&c.network, "network", "own", "run in a `NETWORK` of its own (own), or in that of this host (host)")
	c.run = command.DefaultRun
	f.StringVar(&c.run, "run", c.run, "`DIR` of the running mesh's sockets and state")
	f.StringVar(&c.proxy, "proxy", besideUs("tulle-proxy"), "the proxy's `PROGRAM`")
	f.BoolVar(&c.background, backgroundFlag, false, "")

	own := args
	if i := slices.Index(args, "--"); i >= 0 {
		own, c.Command = args[:i], args[i+1:]
	}
	operands, err := f.Parse(env, own)
	switch {
	case err != nil:
		return nil, err
	case len(operands) == 0:
		return nil, command.Usagef("what is its name? type: tulle run NAME -- COMMAND")
	case len(operands) > 1:
		return nil, command.Usagef("%q is not a flag; a command comes after two dashes: tulle run %s -- %s", operands[1], operands[0], strings.Join(operands[1:], " "))
	}
	if c.Service, c.Ports, err = parseTarget(operands[0]); err != nil {
		return nil, err
	}
	for _, v := range vars {
		if key, _, ok := strings.Cut(v, "="); ok && key != "" {
			c.Env = append(c.Env, v)
		} else if ok || v == "" {
			return nil, command.Usagef("--env %q: must be KEY=VALUE or KEY", v)
		} // a bare KEY is in the environment that the command inherits, or nowhere
	}
	if c.network != "own" && c.network != "host" {
		return nil, command.Usagef("--network %s: must be own or host", c.network)
	}
	c.HostNetwork = c.network == "host"
	if err := c.Validate(); err != nil {
		return nil, command.Usagef("%v", err)
	}
	if _, err := os.Stat(c.proxy); err != nil {
		return nil, command.WithHint(fmt.Errorf("proxy: %w", err), "put tulle-proxy beside tulle, or name it with --proxy")
	}
	return c, nil
}

// parseTarget reads NAME[:PORT[,PORT…]].
func parseTarget(s string) (name string, ports []uint16, err error) {
	name, list, hasPorts := strings.Cut(s, ":")
	if err := mesh.CheckName(name); err != nil {
		return "", nil, command.Usagef("%v", err)
	}
	if !hasPorts {
		return name, nil, nil
	}
	for p := range strings.SplitSeq(list, ",") {
		n, err := strconv.ParseUint(p, 10, 16)
		switch {
		case err != nil || n == 0:
			return "", nil, command.Usagef("port %q: must be 1 to 65535", p)
		case n == mesh.OutboundPort || n == mesh.InboundPort || n == mesh.AdminPort:
			return "", nil, command.Usagef("port %d: is the proxy's own; choose another", n)
		case slices.Contains(ports, uint16(n)):
			return "", nil, command.Usagef("port %d: is listed twice", n)
		}
		ports = append(ports, uint16(n))
	}
	return name, ports, nil
}

// besideUs is a program in the directory that ours is in.
func besideUs(name string) string {
	self, err := os.Executable()
	if err != nil {
		return name
	}
	return filepath.Join(filepath.Dir(self), name)
}
