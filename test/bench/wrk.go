package main

import (
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"time"
)

// loaded is what one run of the load generator saw.
type loaded struct {
	requests int
	seconds  float64
	p50, p99 time.Duration
}

var (
	wrkTotal   = regexp.MustCompile(`(\d+) requests in ([\d.]+)(ms|s|m),`)
	wrkRank    = regexp.MustCompile(`(?m)^ +(50|99)% +([\d.]+)(us|ms|s|m)$`)
	wrkTrouble = regexp.MustCompile(`(?m)^ *(Socket errors|Non-2xx).*$`)
)

// wrk loads a rig with keep-alive connections, as fast as it answers. An answer
// that is not 200, or none, is an error.
func (l *lab) wrk(ctx context.Context, r *rig, connections int, long time.Duration) (loaded, error) {
	// wrk only knows whole seconds.
	seconds := max(int(long.Round(time.Second).Seconds()), 1)
	cmd := exec.CommandContext(ctx, "ip", "netns", "exec", r.client, "wrk", "-t1", fmt.Sprintf("-c%d", connections),
		fmt.Sprintf("-d%ds", seconds), "--latency", "http://"+r.http+"/")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return loaded{}, fmt.Errorf("wrk: %w\n%s", err, out)
	}
	return parseWrk(string(out))
}

func parseWrk(out string) (loaded, error) {
	if trouble := wrkTrouble.FindString(out); trouble != "" {
		return loaded{}, fmt.Errorf("wrk: %s", trouble)
	}
	total := wrkTotal.FindStringSubmatch(out)
	ranks := wrkRank.FindAllStringSubmatch(out, -1)
	if total == nil || len(ranks) != 2 {
		return loaded{}, fmt.Errorf("wrk said something unknown:\n%s", out)
	}
	var l loaded
	var err error
	if l.requests, err = strconv.Atoi(total[1]); err != nil {
		return loaded{}, err
	}
	if l.requests == 0 {
		return loaded{}, fmt.Errorf("wrk: no request was answered")
	}
	spent, err := time.ParseDuration(total[2] + total[3])
	if err != nil {
		return loaded{}, err
	}
	l.seconds = spent.Seconds()
	for i, into := range []*time.Duration{&l.p50, &l.p99} {
		if *into, err = time.ParseDuration(ranks[i][2] + ranks[i][3]); err != nil {
			return loaded{}, err
		}
	}
	return l, nil
}
