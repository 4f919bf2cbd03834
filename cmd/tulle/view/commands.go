package view

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"time"

	"github.com/tulle-mesh/tulle/cmd/tulle/command"
	"github.com/tulle-mesh/tulle/dashboard"
)

// Commands returns the rows of the CLI's table.
func Commands() []command.Command {
	return []command.Command{
		{Name: "stat", Help: "Show requests, success and latency of each service", Run: stat},
		{Name: "edges", Help: "Show who calls whom, and how each connection is protected", Run: edges},
		{Name: "top", Help: "Show the most requested paths, live", Run: top},
		{Name: "why", Help: "Explain what becomes of a connection from one workload to another", Run: explainWhy},
		{Name: "tap", Help: "Print requests as they happen", Run: tap},
		{Name: "proxies", Help: "Show the proxies and their certificates' expiry", Run: proxies},
		{Name: "identity", Help: "Show a workload's identity and certificate", Run: identity},
		{Name: "dashboard", Help: "Print the dashboard's address and open it in a browser", Run: openDashboard},
	}
}

// options are the flags that the tables have in common.
type options struct {
	flags  *command.Flags
	run    *string
	output *string
	since  *string
	watch  *bool
}

func newOptions(synopsis, about string, windowed bool) options {
	o := options{flags: command.NewFlags(synopsis, about)}
	o.run = o.flags.RunDir()
	o.output = o.flags.String("output", "table", outputs)
	o.flags.Short("o", "output")
	o.watch = o.flags.Bool("watch", false, "show it anew each second until Ctrl-C")
	o.flags.Short("w", "watch")
	if windowed {
		o.since = o.flags.String("since", "10s", "how far back figures reach: a `DURATION` from 5s to 1h, or start")
	}
	return o
}

// parse returns at most one operand, "" if there is none.
func (o options) parse(env *command.Env, args []string) (operand string, err error) {
	operands, err := o.flags.Parse(env, args)
	if err != nil {
		return "", err
	}
	if len(operands) > 1 {
		return "", command.Usagef("too many names: %q; give one or none", operands)
	}
	if err := checkOutput(*o.output); err != nil {
		return "", err
	}
	if o.since != nil {
		if _, err := dashboard.ParseWindow(*o.since); err != nil {
			return "", command.Usagef("--since %s: must be a duration from 5s to 1h, such as 10s or 5m, or start", *o.since)
		}
	}
	if len(operands) == 1 {
		operand = operands[0]
	}
	return operand, nil
}

// outputs are how every command can show what it has.
const outputs = "`FORMAT`: table, wide or json"

func checkOutput(output string) error {
	if output != "table" && output != "wide" && output != "json" {
		return command.Usagef("--output %s: must be table, wide or json", output)
	}
	return nil
}

// view is what the commands that show tables have in common: draw asks for what
// is about the name, or about all where it is "", and writes it.
func (o options) view(ctx context.Context, env *command.Env, args []string, draw func(c *client, w io.Writer, name string) error) int {
	name, err := o.parse(env, args)
	if err != nil {
		return finish(ctx, env, err)
	}
	c := newClient(env, *o.run)
	defer c.close()
	return finish(ctx, env, o.show(ctx, env, func(w io.Writer) error { return draw(c, w, name) }))
}

func (o options) wide() bool { return *o.output == "wide" }
func (o options) json() bool { return *o.output == "json" }

// query is what to ask the API for: everything about one name, or about all.
func (o options) query(name string) url.Values {
	q := url.Values{}
	if o.since != nil {
		q.Set("range", *o.since)
	}
	if name != "" {
		q.Set("name", name)
	}
	return q
}

// finish turns an error of a command into its exit code.
func finish(ctx context.Context, env *command.Env, err error) int {
	if errors.Is(err, command.ErrHelp) || ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return command.OK
	}
	return env.Fail(err)
}

// show draws once, or each second until ctx ends. Only the first drawing's
// errors end it: a control plane that restarts comes back.
func (o options) show(ctx context.Context, env *command.Env, draw func(io.Writer) error) error {
	s := screen{out: env.Stdout, terminal: isTerminal(env.Stdout), again: *o.watch && !o.json()}
	if err := s.draw(draw); err != nil || !*o.watch {
		return err
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := s.draw(draw); err != nil && ctx.Err() == nil {
			if !s.terminal {
				return err
			}
			_ = s.draw(func(w io.Writer) error { _, werr := fmt.Fprintf(w, "%v\n", err); return werr })
		}
	}
}
