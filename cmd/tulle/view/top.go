package view

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/tulle-mesh/tulle/cmd/tulle/command"
	"github.com/tulle-mesh/tulle/dashboard"
)

const (
	topRows  = 40   // shown
	topPaths = 5000 // kept; what is beyond counts as "(other paths)"
)

func top(ctx context.Context, env *command.Env, args []string) int {
	f := newTapFlags("top [SERVICE] [flags]", "Shows the most requested paths since it was started, from a sample of the requests; Ctrl-C ends it.", 1000)
	long := f.flags.Duration("for", 0, "end after this `LONG`, for instance 10s; else at Ctrl-C")
	query, err := f.query(env, args)
	if err != nil {
		return finish(ctx, env, err)
	}
	c := newClient(*f.run)
	defer c.close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if *long > 0 {
		ctx, cancel = context.WithTimeout(ctx, *long)
		defer cancel()
	}
	events, failed := make(chan dashboard.Event), make(chan error, 1)
	go func() {
		failed <- c.events(ctx, "tap", query, func(data []byte) error {
			var e dashboard.Event
			if err := json.Unmarshal(data, &e); err != nil {
				return fmt.Errorf("read tap: %w", err)
			}
			select {
			case events <- e:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	err = watchPaths(env, events, failed)
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		err = nil
	}
	return finish(ctx, env, err)
}

// watchPaths counts until the events end, and draws each second on a terminal,
// at the end elsewhere.
func watchPaths(env *command.Env, events <-chan dashboard.Event, failed <-chan error) error {
	s := screen{out: env.Stdout, terminal: isTerminal(env.Stdout), again: true}
	paths := pathTable{rows: map[pathKey]*pathRow{}}
	draw := func() error {
		return s.draw(func(w io.Writer) error { return paths.write(w, colours(env)) })
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case e := <-events:
			paths.add(&e)
		case <-tick.C:
			if s.terminal {
				if err := draw(); err != nil {
					return err
				}
			}
		case err := <-failed:
			if err == nil || len(paths.rows) > 0 {
				err = errors.Join(draw(), err)
			}
			return err
		}
	}
}

type pathKey struct{ source, service, request string }

type pathRow struct {
	pathKey
	count, failed      uint64
	sum, best, slowest float64 // seconds
}

// pathTable counts requests by who asked whom for what.
type pathTable struct {
	rows    map[pathKey]*pathRow
	dropped uint64
}

func (t *pathTable) add(e *dashboard.Event) {
	path, _, _ := strings.Cut(e.Path, "?")
	key := pathKey{e.Source, e.Service, strings.TrimSpace(e.Method + " " + path)}
	if key.request == "" {
		key.request = e.Protocol
	}
	if t.rows[key] == nil && len(t.rows) >= topPaths {
		key = pathKey{e.Source, e.Service, "(other paths)"}
	}
	row := t.rows[key]
	if row == nil {
		row = &pathRow{pathKey: key, best: e.Duration}
		t.rows[key] = row
	}
	row.count++
	if e.Outcome != "success" {
		row.failed++
	}
	row.sum += e.Duration
	row.best, row.slowest = min(row.best, e.Duration), max(row.slowest, e.Duration)
	t.dropped += e.Dropped
}

func (t *pathTable) write(w io.Writer, colours bool) error {
	rows := make([]*pathRow, 0, len(t.rows))
	for _, r := range t.rows {
		rows = append(rows, r)
	}
	slices.SortFunc(rows, func(a, b *pathRow) int {
		return cmp.Or(cmp.Compare(b.count, a.count), strings.Compare(a.request, b.request), strings.Compare(a.source, b.source), strings.Compare(a.service, b.service))
	})
	table := newTable("FROM", "TO", "COUNT", "FAILED", "FASTEST", "MEAN", "SLOWEST", "REQUEST")
	for _, r := range rows[:min(len(rows), topRows)] {
		table.add(word(r.source), word(r.service, strong), number(count(r.count)), failures(r.failed),
			number(interval(r.best)), number(interval(r.sum/float64(r.count))), number(interval(r.slowest)), word(r.request))
	}
	if err := table.write(w, colours); err != nil || t.dropped == 0 {
		return err
	}
	_, err := fmt.Fprintf(w, "A sample: %d more requests were not counted.\n", t.dropped)
	return err
}
