package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/tulle-mesh/tulle/mesh"
)

// report is what load prints when it has stopped.
type report struct {
	Sent   int     `json:"sent"`
	Failed int     `json:"failed"`
	Reason string  `json:"reason,omitempty"` // of the first failure
	P50    float64 `json:"p50_ms"`
	P95    float64 `json:"p95_ms"`
	P99    float64 `json:"p99_ms"`
}

// runLoad sends requests at a fixed rate until its standard input ends, prints
// its report as one line of JSON, and then waits to be told to go: a caller can
// look at the connections before they vanish.
func runLoad(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("load", flag.ContinueOnError)
	rate := flags.Int("rate", 150, "requests a second")
	inFlight := flags.Int("in-flight", 64, "requests at a time, at most")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 1 || *rate < 1 || *inFlight < 1 {
		return errors.New("usage: shop load [--rate N] [--in-flight N] URL")
	}
	sending, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	s := &source{url: flags.Arg(0), client: &http.Client{
		Transport: &http.Transport{MaxIdleConnsPerHost: *inFlight, IdleConnTimeout: time.Minute},
		Timeout:   10 * time.Second,
	}}
	s.send(sending, time.Second/time.Duration(*rate), *inFlight)
	if err := json.NewEncoder(os.Stdout).Encode(s.report()); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// source sends requests and counts what becomes of them.
type source struct {
	url     string
	client  *http.Client
	latency mesh.Histogram

	mu     sync.Mutex // guards what follows
	sent   int
	failed int
	reason string
}

// send starts a request each interval, whether or not the ones before have been
// answered, and returns when ctx has ended and all are. Latency counts from the
// moment a request was due, so that waiting for a free slot is not hidden.
func (s *source) send(ctx context.Context, interval time.Duration, inFlight int) {
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, inFlight)
	ticks := time.NewTicker(interval)
	defer ticks.Stop()
	for due := time.Now(); ; due = due.Add(interval) {
		for time.Now().Before(due) {
			select {
			case <-ctx.Done():
				return
			case <-ticks.C:
			}
		}
		select {
		case <-ctx.Done():
			return
		case slots <- struct{}{}:
		}
		wg.Go(func() {
			s.request(due)
			<-slots
		})
	}
}

func (s *source) request(due time.Time) {
	_, err := get(context.Background(), s.client, s.url)
	s.latency.Record(time.Since(due))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent++
	if err != nil {
		s.failed++
		if s.reason == "" {
			s.reason = err.Error()
		}
	}
}

func (s *source) report() report {
	s.mu.Lock()
	defer s.mu.Unlock()
	var counts [mesh.Buckets]uint64
	s.latency.Snapshot(&counts)
	ms := func(q float64) float64 { return float64(mesh.Quantile(&counts, q).Microseconds()) / 1000 }
	return report{Sent: s.sent, Failed: s.failed, Reason: s.reason, P50: ms(0.50), P95: ms(0.95), P99: ms(0.99)}
}
