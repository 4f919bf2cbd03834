package main

import (
	"context"
	"fmt"
	"os"
	"time"
)

// A work is one thing to measure, of every peer that can do it.
type work struct {
	name string
	run  func(ctx context.Context, l *lab, rigs []*rig, results *results) error
}

// works are measured in this order.
var works = []work{
	{"memory", memoryFootprint}, // new and idle, per idle connection, after a burst
	{"http1", throughput},       // HTTP/1.1, 256-byte answers, as fast as it goes
	{"start", startTimes},       // how long until it serves
}

func workNames() []string {
	names := make([]string, len(works))
	for i, w := range works {
		names[i] = w.name
	}
	return names
}

// throughput measures every peer once a round, so that what slows the machine
// down for a while slows all of them down; who is first changes each round.
func throughput(ctx context.Context, l *lab, rigs []*rig, results *results) error {
	counts, err := l.connections()
	if err != nil {
		return err
	}
	for _, connections := range counts {
		name := fmt.Sprintf("http1-256B-c%d", connections)
		for _, r := range rigs {
			if _, err := l.wrk(ctx, r, connections, time.Second); err != nil { // warm up
				return fmt.Errorf("%s: %w", r.peer, err)
			}
		}
		for round := range l.rounds {
			progress("%s: round %d of %d", name, round+1, l.rounds)
			for i := range rigs {
				r := rigs[(i+round)%len(rigs)]
				if err := l.throughputOnce(ctx, r, name, connections, results); err != nil {
					return fmt.Errorf("%s: %w", r.peer, err)
				}
			}
		}
	}
	return nil
}

func (l *lab) throughputOnce(ctx context.Context, r *rig, name string, connections int, results *results) error {
	before, err := cpu(r.proxies)
	if err != nil {
		return err
	}
	got, err := l.wrk(ctx, r, connections, l.long)
	if err != nil {
		return err
	}
	after, err := cpu(r.proxies)
	if err != nil {
		return err
	}
	results.add(name, r.peer, "requests/s", float64(got.requests)/got.seconds)
	results.add(name, r.peer, "p50 us", micros(got.p50))
	results.add(name, r.peer, "p99 us", micros(got.p99))
	if len(r.proxies) > 0 {
		results.add(name, r.peer, "CPU us/request", micros(after-before)/float64(got.requests))
		m, err := memoryOf(r.proxies...)
		if err != nil {
			return err
		}
		results.add(name, r.peer, "RSS MB, both", megabytes(m.rss()))
		results.add(name, r.peer, "RssAnon MB, both", megabytes(m.anon))
	}
	return nil
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }

func megabytes(n int) float64 { return float64(n) / 1e6 }

// progress tells, on the terminal only, what is going on.
func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
}
