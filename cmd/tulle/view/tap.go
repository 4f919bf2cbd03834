package view

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tulle-mesh/tulle/cmd/tulle/command"
	"github.com/tulle-mesh/tulle/dashboard"
)

// tapFlags say which requests to look at; tap and top have them.
type tapFlags struct {
	flags                        *command.Flags
	run                          *string
	method, path, status, client *string
	slower                       *time.Duration
	max                          *int
	output                       *string
}

func newTapFlags(synopsis, about string, rate int) tapFlags {
	f := command.NewFlags(synopsis, about)
	output := f.String("output", "table", outputs)
	f.Short("o", "output")
	return tapFlags{
		flags:  f,
		output: output,
		run:    f.RunDir(),
		method: f.String("method", "", "only requests with this `METHOD`"),
		path:   f.String("path", "", "only paths that begin with `PREFIX`"),
		status: f.String("status", "", "only this `STATUS`: 503, 5xx, or failed for whatever did not succeed"),
		client: f.String("client", "", "only calls from this `SERVICE`, replica, identity or address"),
		slower: f.Duration("slower-than", 0, "only what took at least this `LONG`, for instance 20ms"),
		max:    f.Int("max-rps", rate, "at most `N` a second; the rest is counted"),
	}
}

// query checks the flags as the API will.
func (f tapFlags) query(env *command.Env, args []string) (url.Values, error) {
	operands, err := f.flags.Parse(env, args)
	if err != nil {
		return nil, err
	}
	if len(operands) > 1 {
		return nil, command.Usagef("too many services: %q; give one or none", operands)
	}
	if err := checkOutput(*f.output); err != nil {
		return nil, err
	}
	if err := (dashboard.Filter{Status: *f.status}).Validate(); err != nil {
		return nil, command.Usagef("--%v", err)
	}
	if err := (dashboard.Filter{MaxRate: *f.max}).Validate(); err != nil || *f.max == 0 {
		return nil, command.Usagef("--max-rps %d: must be between 1 and 1000", *f.max)
	}
	if *f.slower < 0 {
		return nil, command.Usagef("--slower-than %v: must not be negative", *f.slower)
	}
	q := url.Values{"max": {strconv.Itoa(*f.max)}}
	if len(operands) == 1 {
		q.Set("service", operands[0])
	}
	for key, value := range map[string]string{"method": *f.method, "path": *f.path, "status": *f.status, "client": *f.client} {
		if value != "" {
			q.Set(key, value)
		}
	}
	if *f.slower > 0 {
		q.Set("min_ms", strconv.FormatFloat(f.slower.Seconds()*1e3, 'f', -1, 64))
	}
	return q, nil
}

func tap(ctx context.Context, env *command.Env, args []string) int {
	f := newTapFlags("tap [SERVICE] [flags]", "Prints requests to and from a service, or all of the mesh, as they happen; Ctrl-C ends it.", 50)
	query, err := f.query(env, args)
	if err != nil {
		return finish(ctx, env, err)
	}
	c := newClient(env, *f.run)
	defer c.close()
	f.announce(ctx, env, c, query)
	colours := colours(env)
	err = c.events(ctx, "tap", query, func(data []byte) error {
		if *f.output == "json" {
			_, err := fmt.Fprintf(env.Stdout, "%s\n", escaped(data))
			return err
		}
		var e dashboard.Event
		if err := json.Unmarshal(data, &e); err != nil {
			return fmt.Errorf("read tap: %w", err)
		}
		return writeEvent(env.Stdout, &e, *f.output == "wide", colours)
	})
	return finish(ctx, env, err)
}

// announce says what is waited for: to somebody who looks, and to everybody if it
// may never come.
func (f tapFlags) announce(ctx context.Context, env *command.Env, c *client, query url.Values) {
	doubt := c.unknown(ctx, query.Get("service"), query.Get("client"))
	switch {
	case doubt != "":
		env.Errorf("%s. Waiting, should it come; Ctrl-C ends it.", doubt)
	case isTerminal(env.Stdout):
		_, _ = fmt.Fprintln(env.Stderr, "Waiting for requests; Ctrl-C ends it.")
	}
}

// writeEvent prints one line, in which common names line up.
func writeEvent(w io.Writer, e *dashboard.Event, wide, colours bool) error {
	request := printable(strings.TrimSpace(e.Method + " " + e.Path))
	if request == "" {
		request = printable(e.Protocol)
	}
	result, t := e.Outcome, bad
	switch {
	case e.Status != 0 && (e.Outcome == "success" || e.Outcome == "app-failure"):
		result = strconv.Itoa(int(e.Status))
	case e.Outcome == "success":
		result = "ok"
	}
	if e.Outcome == "success" {
		t = good
	}
	s := security(e.Security)
	line := fmt.Sprintf("%s  %-14s %s %-14s %s  %s  %s  %s",
		faint.paint(e.Time.Local().Format("15:04:05.000"), colours),
		either(e.SourceWorkload, e.Source), faint.paint("->", colours), either(e.Workload, e.Service),
		s.tone.paint(fmt.Sprintf("%-9s", s.text), colours), t.paint(printable(result), colours), fmt.Sprintf("%6s", interval(e.Duration)), request)
	if wide {
		line += faint.paint(fmt.Sprintf("  %s  from %s  host %s  sent %s  received %s  first byte %s", orDash(e.Protocol), orDash(either(e.SourceIdentity, e.SourceAddress)),
			orDash(printable(e.Host)), orDash(size(e.Sent)), orDash(size(e.Received)), interval(e.FirstByte)), colours)
	}
	if e.Dropped > 0 {
		line += faint.paint(fmt.Sprintf("  (%d more before it)", e.Dropped), colours)
	}
	_, err := fmt.Fprintln(w, line)
	return err
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return printable(s)
}

func either(a, b string) string {
	if a == "" {
		a = b
	}
	return printable(a)
}

// counted lists what happened how often, the most frequent first.
func counted(m map[string]uint64) string {
	keys := slices.SortedFunc(maps.Keys(m), func(a, b string) int {
		if m[a] != m[b] {
			return int(min(m[b], 1<<40)) - int(min(m[a], 1<<40))
		}
		return strings.Compare(a, b)
	})
	var parts []string
	for _, k := range keys {
		if m[k] > 0 {
			parts = append(parts, fmt.Sprintf("%s:%d", k, m[k]))
		}
	}
	return strings.Join(parts, " ")
}
