// Package ends holds the two ends of the connections that the bench measures:
// the backend behind every pair of proxies, the clients in front of it, and the
// relay that is the floor under every proxy. Each is a program of its own, run
// in the network namespace where it belongs; what a client saw it prints as one
// Report. They do as little as they can, so that the machine is left to what is
// measured.
package ends

import (
	"encoding/json"
	"errors"
	"os"
	"slices"
	"sync"
	"time"
)

// What the backend listens on, at every address of its namespace.
const (
	HTTPPort = 8080
	GRPCPort = 8081
	TCPPort  = 9000
)

// Programs are called with what follows their name on the command line.
var Programs = map[string]func(args []string) error{
	"backend": runBackend,
	"relay":   runRelay,
	"idle":    runIdle,
	"hold":    runHold,
	"paced":   runPaced,
	"calls":   runCalls,
	"bulk":    runBulk,
	"short":   runShort,
	"await":   runAwait,
}

// Report is what a client has to say at its end.
type Report struct {
	Count   int     `json:"count"` // of answers: requests, calls, messages, connections
	Bytes   int64   `json:"bytes"`
	Seconds float64 `json:"seconds"`
	// How long half, 99 % and 99.9 % of the answers took at most; 0: not measured.
	P50, P99, P999 time.Duration
	// The median of every tenth of a second's p99: what requests wait for while
	// nothing holds the whole machine up. Only paced clients tell; else 0.
	TenthP99 time.Duration

	latencies []time.Duration
}

func (r *Report) add(other *Report) {
	r.Count += other.Count
	r.Bytes += other.Bytes
	r.latencies = append(r.latencies, other.latencies...)
}

// rank fills in the percentiles: each the smallest latency that so many of a
// thousand answers did not exceed.
func (r *Report) rank() {
	n := len(r.latencies)
	if n == 0 {
		return
	}
	slices.Sort(r.latencies)
	at := func(perMille int) time.Duration { return r.latencies[max((n*perMille+999)/1000, 1)-1] }
	r.P50, r.P99, r.P999 = at(500), at(990), at(999)
}

// rankTenths fills in TenthP99. The latencies must be in the order in which the
// requests were meant to be sent, so many of them in a tenth of a second.
func (r *Report) rankTenths(each int) {
	var tenths []time.Duration
	for some := range slices.Chunk(slices.Clone(r.latencies), max(each, 1)) {
		tenth := Report{latencies: some}
		tenth.rank()
		tenths = append(tenths, tenth.P99)
	}
	all := Report{latencies: tenths}
	all.rank()
	r.TenthP99 = all.P50
}

func (r *Report) print() error {
	r.rank()
	return json.NewEncoder(os.Stdout).Encode(r)
}

// together runs a number of clients until the time is over, and prints what
// they saw.
func together(clients int, long time.Duration, run func(until time.Time, report *Report) error) error {
	var (
		wg      sync.WaitGroup
		began   = time.Now()
		reports = make([]Report, clients)
		errs    = make([]error, clients)
	)
	for i := range clients {
		wg.Go(func() { errs[i] = run(began.Add(long), &reports[i]) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	total := Report{Seconds: time.Since(began).Seconds()}
	for i := range reports {
		total.add(&reports[i])
	}
	return total.print()
}
