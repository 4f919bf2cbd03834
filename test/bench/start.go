package main

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// startTimes measures how long a proxy takes from its start until it serves, and
// how long one command takes in the mesh, from start to end.
func startTimes(ctx context.Context, l *lab, rigs []*rig, sheet *sheet) error {
	for round := range 3 * l.rounds {
		progress("%s: round %d of %d", sheet.Work, round+1, 3*l.rounds)
		for i := range rigs {
			r := rigs[(i+round)%len(rigs)]
			p := peers[slices.IndexFunc(peers, func(p peer) bool { return p.name == r.peer })]
			if p.startUp == nil {
				continue
			}
			took, err := p.startUp(ctx, l)
			if err != nil {
				return fmt.Errorf("%s: %w", r.peer, err)
			}
			sheet.add(r.peer, "proxy until it serves, ms", millis(took))
			if r.peer != ours {
				continue
			}
			began := time.Now()
			if err := commandContext(ctx, l.tulle(), "run", "--rm", "x", "--", "true"); err != nil {
				return fmt.Errorf("%w\n%s", err, l.said(ours))
			}
			sheet.add(r.peer, "run --rm x -- true, ms", millis(time.Since(began)))
		}
	}
	return nil
}

// tulleStartUp runs a workload, and reads from /proc when its proxy was started
// (to 10 ms) and from its log when it served.
func tulleStartUp(ctx context.Context, l *lab) (time.Duration, error) {
	cmd, err := l.start("tulle-start", l.tulle(), "run", "--rm", "y", "--", l.self, "idle")
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
