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
	c := newClient(env, *f.run)
	defer c.close()
	f.announce(ctx, env, c, query)
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
	err = watchPaths(env, *f.output, events, failed)
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		err = nil
	}
	return finish(ctx, env, err)
}

// watchPaths counts until the events end, and draws each second on a terminal,
// at the end elsewhere.
func watchPaths(env *command.Env, output string, events <-chan dashboard.Event, failed <-chan error) error {
	s := screen{out: env.Stdout, terminal: isTerminal(env.Stdout), again: true}
	paths := pathTable{rows: map[pathKey]*pathRow{}}
	draw := func() error {
		return s.draw(func(w io.Writer) error {
			if output == "json" {
				return writeJSON(w, paths.sorted())
			}
			return paths.write(w, output == "wide", colours(env))
		})
	}
	s.terminal = s.terminal && output != "json" // that is written once
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

type pathKey struct {
	Source  string `json:"source"`
	Service string `json:"service"`
	Request string `json:"request"`
}

type pathRow struct {
	pathKey
	Count   uint64  `json:"requests"`
	Failed  uint64  `json:"failures"`
	Fastest float64 `json:"fastest_s"`
	Slowest float64 `json:"slowest_s"`
	Sum     float64 `json:"sum_s"`
}

// pathTable counts requests by who asked whom for what.
type pathTable struct {
	rows    map[pathKey]*pathRow
	dropped uint64
}

func (t *pathTable) add(e *dashboard.Event) {
	path, _, _ := strings.Cut(e.Path, "?")
	key := pathKey{e.Source, e.Service, strings.TrimSpace(e.Method + " " + path)}
	if key.Request == "" {
		key.Request = e.Protocol
	}
	if t.rows[key] == nil && len(t.rows) >= topPaths {
		key = pathKey{e.Source, e.Service, "(other paths)"}
	}
	row := t.rows[key]
	if row == nil {
		row = &pathRow{pathKey: key, Fastest: e.Duration}
		t.rows[key] = row
	}
	row.Count++
	if e.Outcome != "success" {
		row.Failed++
	}
	row.Sum += e.Duration
	row.Fastest, row.Slowest = min(row.Fastest, e.Duration), max(row.Slowest, e.Duration)
	t.dropped += e.Dropped
}

// sorted are the rows to show, the most requested first.
func (t *pathTable) sorted() []*pathRow {
	rows := make([]*pathRow, 0, len(t.rows))
	for _, r := range t.rows {
		rows = append(rows, r)
	}
	slices.SortFunc(rows, func(a, b *pathRow) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), strings.Compare(a.Request, b.Request), strings.Compare(a.Source, b.Source), strings.Compare(a.Service, b.Service))
	})
	return rows[:min(len(rows), topRows)]
}

func (t *pathTable) write(w io.Writer, wide, colours bool) error {
	head := []string{"FROM", "TO", "COUNT", "FAILED", "FASTEST", "MEAN", "SLOWEST", "REQUEST"}
	if wide {
		head = slices.Insert(head, 7, "SUM")
	}
	table := newTable(head...)
	for _, r := range t.sorted() {
		row := []cell{word(r.Source), word(r.Service, strong), number(count(r.Count)), failures(r.Failed),
			number(interval(r.Fastest)), number(interval(r.Sum / float64(r.Count))), number(interval(r.Slowest)), word(r.Request)}
		if wide {
			row = slices.Insert(row, 7, number(interval(r.Sum)))
		}
		table.add(row...)
	}
	if err := table.write(w, colours); err != nil || t.dropped == 0 {
		return err
	}
	_, err := fmt.Fprintf(w, "A sample: %d more requests were not counted.\n", t.dropped)
	return err
}
