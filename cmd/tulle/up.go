package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/debug"

	"github.com/tulle-mesh/tulle/cmd/tulle/command"
	"github.com/tulle-mesh/tulle/cmd/tulle/host"
	"github.com/tulle-mesh/tulle/dashboard"
)

const upAbout = `
Starts the mesh on this host and serves it until Ctrl-C, which takes it down
again: workloads are stopped and the host is put back as it was. If the daemon is
killed instead, workloads keep running, and the next tulle up takes them over.`

const (
	defaultState = "/var/lib/tulle"
	network4     = "10.84.0.0/16"
	network6     = "fd84:7475:6c6c:e000::/64"
)

func runUp(ctx context.Context, env *command.Env, args []string) int {
	c, detach, background, err := parseUp(env, args)
	if errors.Is(err, command.ErrHelp) {
		return command.OK
	}
	if err == nil {
		err = needRoot("up")
	}
	if err != nil {
		return env.Fail(err)
	}
	outliveReaders()
	if detach && !background {
		return env.Fail(upInBackground(ctx, c, args, env))
	}
	tell := func(started) {}
	if background {
		tell = teller()
		c.Ready = func() { tell(started{}) }
	}
	if env.Getenv("GOGC") == "" {
		debug.SetGCPercent(dashboard.GCPercent)
	}
	if env.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(dashboard.MemoryTarget)
	}
	err = host.Run(ctx, c)
	if err != nil {
		tell(started{Error: err.Error(), Code: command.Failure})
	}
	return env.Fail(err)
}

func parseUp(env *command.Env, args []string) (c host.Config, detach, background bool, err error) {
	f := command.NewFlags("up [flags]", upAbout)
	f.BoolVar(&detach, "detach", false, "run in the background; return when the mesh is ready")
	f.Short("d", "detach")
	f.BoolVar(&background, backgroundFlag, false, "")
	run := f.RunDir()
	state := f.String("state", defaultState, "`DIR` of the certificate authority's key")
	catalog := f.String("catalog", "", "`FILE` that lists services tulle does not run")
	net4 := f.String("network4", network4, "IPv4 `NETWORK` for the mesh")
	net6 := f.String("network6", network6, "IPv6 `NETWORK` for the mesh")
	noMasquerade := f.Bool("no-masquerade", false, "leave forwarding alone: workloads reach only each other and this host")
	backend := f.String("redirect", "auto", "redirect by `BACKEND`: auto, ebpf, nftables or iptables")
	page := f.String("dashboard", "127.0.0.1:4180", "serve the dashboard at `ADDRESS`")
	history := f.String("history", "", "keep the dashboard's last hour in `DIR` over a restart")
	prometheus := f.String("prometheus", "", "draw series from the Prometheus at `URL`, which scrapes the proxies")
	verbose := f.Bool("verbose", false, "log more")
	if err := f.ParseNone(env, args); err != nil {
		return c, false, false, err
	}
	level := slog.LevelWarn
	if *verbose {
		level = slog.LevelInfo
	}
	c = host.Config{
		RunDir: *run, StateDir: *state, Catalog: *catalog, Masquerade: !*noMasquerade, Redirect: *backend,
		Dashboard: *page, History: *history, Prometheus: *prometheus, Version: version, Out: env.Stdout,
		Log: slog.New(slog.NewTextHandler(env.Stderr, &slog.HandlerOptions{Level: level})),
	}
	for _, n := range []struct {
		flag, text string
		into       *netip.Prefix
	}{{"network4", *net4, &c.Network4}, {"network6", *net6, &c.Network6}} {
		if *n.into, err = netip.ParsePrefix(n.text); err != nil {
			return c, false, false, command.Usagef("--%s %s: must be a network such as %s", n.flag, n.text, network4)
		}
	}
	if err := c.Validate(); err != nil {
		return c, false, false, command.Usagef("%v", err)
	}
	return c, detach, background, nil
}

func upInBackground(ctx context.Context, c host.Config, args []string, env *command.Env) error {
	if err := os.MkdirAll(c.RunDir, 0o700); err != nil {
		return err
	}
	log, err := os.OpenFile(host.LogPath(c.RunDir), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	word, err := toBackground(ctx, "up", args, log)
	if err != nil {
		return command.WithHint(err, "see "+host.LogPath(c.RunDir))
	}
	if word.Error != "" {
		return errors.New(word.Error)
	}
	_, _ = fmt.Fprintf(env.Stdout, "tulle: up, in the background; dashboard http://%s/, log %s\n", c.Dashboard, filepath.Clean(host.LogPath(c.RunDir)))
	return nil
}

const downAbout = `
Stops all workloads and the mesh, and puts the host back as it was: links,
firewall rules, kernel settings, files. Also after the daemon was killed.`

func runDown(ctx context.Context, env *command.Env, args []string) int {
	f := command.NewFlags("down [flags]", downAbout)
	run := f.RunDir()
	state := f.String("state", defaultState, "`DIR` of the certificate authority's key")
	purge := f.Bool("purge", false, "remove the certificate authority, too")
	operands, err := f.Parse(env, args)
	switch {
	case errors.Is(err, command.ErrHelp):
		return command.OK
	case err == nil && len(operands) > 0:
		err = command.Usagef("tulle down takes no operands; to stop one workload type: tulle stop %s", operands[0])
	}
	if err == nil {
		err = needRoot("down")
	}
	if err == nil {
		outliveReaders()
		err = host.Down(ctx, *run, *state, *purge, env.Stdout)
	}
	return env.Fail(err)
}
