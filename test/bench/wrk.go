package main

import (
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"time"

	"github.com/tulle-mesh/tulle/test/bench/ends"
)

var (
	wrkTotal   = regexp.MustCompile(`(\d+) requests in ([\d.]+)(ms|s|m),`)
	wrkRank    = regexp.MustCompile(`(?m)^ +(50|99)% +([\d.]+)(us|ms|s|m)$`)
	wrkTrouble = regexp.MustCompile(`(?m)^ *(Socket errors|Non-2xx).*$`)
)

// wrk makes HTTP/1.1 requests over keep-alive connections, as fast as they are
// answered. An answer that is not 200, or none, is an error.
func wrk(path string, connections int) client {
	return func(ctx context.Context, _ *lab, r *rig, addr string, long time.Duration) (*ends.Report, error) {
		// It only knows whole seconds.
		seconds := max(int(long.Round(time.Second).Seconds()), 1)
		cmd := exec.CommandContext(ctx, "ip", "netns", "exec", r.client, "wrk", "-t1", fmt.Sprintf("-c%d", connections),
			fmt.Sprintf("-d%ds", seconds), "--latency", "http://"+addr+path)
		out, err := cmd.CombinedOutput()
		if err != nil {
			return nil, fmt.Errorf("wrk: %w\n%s", err, out)
		}
		return parseWrk(string(out))
	}
}

func parseWrk(out string) (*ends.Report, error) {
	if trouble := wrkTrouble.FindString(out); trouble != "" {
		return nil, fmt.Errorf("wrk: %s", trouble)
	}
	total := wrkTotal.FindStringSubmatch(out)
	ranks := wrkRank.FindAllStringSubmatch(out, -1)
	if total == nil || len(ranks) != 2 {
		return nil, fmt.Errorf("wrk said something unknown:\n%s", out)
	}
	var r ends.Report
	var err error
	if r.Count, err = strconv.Atoi(total[1]); err != nil {
		return nil, err
	}
	if r.Count == 0 {
		return nil, fmt.Errorf("wrk: no request was answered")
	}
	spent, err := time.ParseDuration(total[2] + total[3])
	if err != nil {
		return nil, err
	}
	r.Seconds = spent.Seconds()
	for i, into := range []*time.Duration{&r.P50, &r.P99} {
		if *into, err = time.ParseDuration(ranks[i][2] + ranks[i][3]); err != nil {
			return nil, err
		}
	}
	return &r, nil
}
