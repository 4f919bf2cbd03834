package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/tulle-mesh/tulle/test/bench/ends"
)

// A load is put on every peer in turn, round after round.
type load struct {
	door   door
	unit   string // what the client counts; "": bytes
	client client
}

// client is run in the client's namespace, and dials addr.
type client func(ctx context.Context, l *lab, r *rig, addr string, long time.Duration) (*ends.Report, error)

// program is one of package ends.
func program(args ...string) client {
	return func(ctx context.Context, l *lab, r *rig, addr string, long time.Duration) (*ends.Report, error) {
		args := append(append([]string{}, args...), "--long", long.String(), addr)
		said, err := l.inside(ctx, r.client, args...)
		if err != nil {
			return nil, err
		}
		var report ends.Report
		if err := json.Unmarshal([]byte(said), &report); err != nil {
			return nil, fmt.Errorf("%s said %q: %w", args[0], said, err)
		}
		if report.Count == 0 && report.Bytes == 0 {
			return nil, fmt.Errorf("%s got no answer", args[0])
		}
		return &report, nil
	}
}

// measure loads every peer once a round, so that what slows the machine down
// for a while slows all of them down; who is first changes each round.
func (w load) measure(ctx context.Context, l *lab, rigs []*rig, sheet *sheet) error {
	for _, r := range rigs {
		if _, err := w.client(ctx, l, r, r.doors[w.door], l.long/4); err != nil { // warm up
			return fmt.Errorf("%s: %w", r.peer, err)
		}
	}
	for round := range l.rounds {
		progress("%s: round %d of %d", sheet.Work, round+1, l.rounds)
		reports := map[string]*ends.Report{}
		for i := range rigs {
			r := rigs[(i+round)%len(rigs)]
			report, err := w.once(ctx, l, r, sheet)
			if err != nil {
				return fmt.Errorf("%s: %w\n%s", r.peer, err, l.said(r.peer))
			}
			reports[r.peer] = report
		}
		addOverDirect(sheet, reports)
	}
	return nil
}

// once loads one peer and notes what it took.
func (w load) once(ctx context.Context, l *lab, r *rig, sheet *sheet) (*ends.Report, error) {
	before, err := cpu(r.proxies)
	if err != nil {
		return nil, err
	}
	during := make(chan memory, 1)
	go func() {
		time.Sleep(l.long * 3 / 4)
		m, _ := memoryOf(r.proxies...) // of processes that are gone the load tells more
		during <- m
	}()
	report, err := w.client(ctx, l, r, r.doors[w.door], l.long)
	if err != nil {
		return nil, err
	}
	after, err := cpu(r.proxies)
	if err != nil {
		return nil, err
	}
	m := <-during
	w.note(sheet, r, report, after-before)
	if len(r.proxies) > 0 {
		sheet.add(r.peer, "RSS MB, both", megabytes(m.rss()))
		sheet.add(r.peer, "RssAnon MB, both", megabytes(m.anon))
	}
	return report, nil
}

func (w load) note(sheet *sheet, r *rig, report *ends.Report, spent time.Duration) {
	if w.unit == "" {
		sheet.add(r.peer, "MB/s", float64(report.Bytes)/1e6/report.Seconds)
		if len(r.proxies) > 0 {
			sheet.add(r.peer, "MB per CPU second", float64(report.Bytes)/1e6/spent.Seconds())
		}
		return
	}
	sheet.add(r.peer, w.unit+"s/s", float64(report.Count)/report.Seconds)
	for _, p := range percentiles(report) {
		if p.value > 0 {
			sheet.add(r.peer, p.name+" us", micros(p.value))
		}
	}
	if len(r.proxies) > 0 {
		sheet.add(r.peer, "CPU us/"+w.unit, micros(spent)/float64(report.Count))
	}
}

type percentile struct {
	name  string
	value time.Duration
}

func percentiles(r *ends.Report) []percentile {
	return []percentile{{"p50", r.P50}, {"p99", r.P99}, {"p99.9", r.P999}, {"p99 of 0.1 s", r.TenthP99}}
}

// addOverDirect notes what each peer has added to the latencies of no proxy at
// all, in the same round.
func addOverDirect(sheet *sheet, reports map[string]*ends.Report) {
	direct := reports["direct"]
	if direct == nil {
		return
	}
	for name, report := range reports {
		if name == "direct" {
			continue
		}
		for i, p := range percentiles(report) {
			if base := percentiles(direct)[i]; p.value > 0 && base.value > 0 {
				sheet.add(name, p.name+" us over direct", micros(p.value-base.value))
			}
		}
	}
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }

func megabytes(n int) float64 { return float64(n) / 1e6 }
