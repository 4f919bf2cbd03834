package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// startTimes measures how long a one-shot workload takes from start to end, and
// how long a proxy takes from its start until it serves.
func startTimes(ctx context.Context, l *lab, rigs []*rig, results *results) error {
	if !slices.ContainsFunc(rigs, func(r *rig) bool { return r.peer == "tulle" }) {
		return nil
	}
	tulle := filepath.Join(l.bin, "tulle")
	for round := range 3 * l.rounds {
		progress("start: round %d of %d", round+1, 3*l.rounds)
		began := time.Now()
		if err := commandContext(ctx, tulle, "run", "--rm", "x", "--", "true"); err != nil {
			return err
		}
		results.add("start", "tulle", "tulle run --rm x -- true, ms", millis(time.Since(began)))
		took, err := l.proxyStart(ctx, tulle)
		if err != nil {
			return err
		}
		results.add("start", "tulle", "proxy from start to ready, ms", millis(took))
	}
	return nil
}

// proxyStart runs a workload, and reads from /proc when its proxy was started
// (to 10 ms) and from its log when it served.
func (l *lab) proxyStart(ctx context.Context, tulle string) (time.Duration, error) {
	cmd, err := l.start("tulle-start", tulle, "run", "--rm", "y", "--", l.self, "idle")
	if err != nil {
		return 0, err
	}
	var took time.Duration
	err = patiently(ctx, 10*time.Second, func() error {
		pid, err := processIn("tulle-y-1", "tulle-proxy")
		if err != nil {
			return err
		}
		began, err := startOf(pid)
		if err != nil {
			return err
		}
		served, err := servingSince("/run/tulle/workloads/y-1/proxy.log")
		took = served.Sub(began)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("%w\n%s", err, l.said("tulle-start"))
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return 0, err
	}
	return took, patiently(ctx, 10*time.Second, func() error {
		if _, err := os.Stat("/run/netns/tulle-y-1"); err == nil {
			return fmt.Errorf("tulle run has not ended")
		}
		return nil
	})
}

// startOf returns when a process was started.
func startOf(pid int) (time.Time, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return time.Time{}, err
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 20 {
		return time.Time{}, fmt.Errorf("/proc/%d/stat: %q", pid, text)
	}
	ticks, err := strconv.Atoi(fields[19]) // field 22 of proc(5), since boot
	if err != nil {
		return time.Time{}, err
	}
	var sinceBoot unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &sinceBoot); err != nil {
		return time.Time{}, err
	}
	ago := time.Duration(sinceBoot.Nano()) - time.Duration(ticks)*tick
	return time.Now().Add(-ago), nil
}

var serving = regexp.MustCompile(`(?m)^time=(\S+) .*msg=serving`)

func servingSince(log string) (time.Time, error) {
	text, err := os.ReadFile(log)
	if err != nil {
		return time.Time{}, err
	}
	found := serving.FindSubmatch(text)
	if found == nil {
		return time.Time{}, fmt.Errorf("%s does not say that it serves", log)
	}
	return time.Parse(time.RFC3339Nano, string(found[1]))
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
