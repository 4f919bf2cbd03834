package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

const (
	idleConnections  = 1000
	burstConnections = 5000
	destinations     = 10
)

// memoryFootprint measures what the proxies keep resident: when they are new
// and know ten destinations, for each idle connection, and after a burst.
func memoryFootprint(ctx context.Context, l *lab, rigs []*rig, results *results) error {
	for _, r := range rigs {
		if len(r.proxies) == 0 || r.client == hiddenSite.clientNS { // the same processes as without a redirect
			continue
		}
		progress("memory: %s", r.peer)
		if err := l.footprint(ctx, r, results); err != nil {
			return fmt.Errorf("%s: %w", r.peer, err)
		}
	}
	return nil
}

func (l *lab) footprint(ctx context.Context, r *rig, results *results) error {
	if err := l.knowTen(ctx, r); err != nil {
		return err
	}
	client, err := l.settle(ctx, r.proxies[:1], l.idleTime())
	if err != nil {
		return err
	}
	results.add("memory", r.peer, "idle client's proxy, RssAnon MB", megabytes(client.anon))
	results.add("memory", r.peer, "idle client's proxy, RSS MB", megabytes(client.rss()))
	for _, c := range []struct{ kind, addr string }{{"http", r.http}, {"tcp", r.tcp}} {
		if c.addr == "" {
			continue
		}
		before, err := memoryOf(r.proxies...)
		if err != nil {
			return err
		}
		err = l.holding(ctx, r, idleConnections, c.kind, c.addr, func() error {
			m, err := l.settle(ctx, r.proxies, l.idleTime())
			results.add("memory", r.peer, "an idle "+c.kind+" connection, KB, both sides", float64(m.anon-before.anon)/idleConnections/1e3)
			return err
		})
		if err != nil {
			return err
		}
		if _, err := l.settle(ctx, r.proxies, l.idleTime()); err != nil {
			return err
		}
	}
	return l.afterBurst(ctx, r, results)
}

// idleTime is how long things are left alone before memory is looked at.
func (l *lab) idleTime() time.Duration {
	if l.quick {
		return 5 * time.Second
	}
	return 10 * time.Second
}

// afterBurst compares memory before and a minute after a burst of connections.
func (l *lab) afterBurst(ctx context.Context, r *rig, results *results) error {
	patience := time.Minute
	if l.quick {
		patience = 15 * time.Second
	}
	before, err := l.settle(ctx, r.proxies, patience/4)
	if err != nil {
		return err
	}
	var peak memory
	err = l.holding(ctx, r, burstConnections, "http", r.http, func() error {
		peak, err = memoryOf(r.proxies...)
		return err
	})
	if err != nil {
		return err
	}
	after, err := l.settle(ctx, r.proxies, patience)
	if err != nil {
		return err
	}
	results.add("memory", r.peer, "during a burst of 5,000, RssAnon MB, both", megabytes(peak.anon))
	results.add("memory", r.peer, "after the burst, RssAnon of before", float64(after.anon)/float64(before.anon))
	return nil
}

// knowTen makes the client's proxy know ten destinations: other ports of the
// same server, where nobody listens, are destinations too.
func (l *lab) knowTen(ctx context.Context, r *rig) error {
	host, _, _ := strings.Cut(r.http, ":")
	args := []string{"netns", "exec", r.client, l.self, "hold", "--kind", "dial", "--connections", strconv.Itoa(destinations)}
	for i := range destinations {
		args = append(args, hostPort(host, httpPort+1+i))
	}
	return commandContext(ctx, "ip", args...)
}

// settle waits and returns the memory then.
func (l *lab) settle(ctx context.Context, pids []int, wait time.Duration) (memory, error) {
	select {
	case <-ctx.Done():
		return memory{}, ctx.Err()
	case <-time.After(wait):
	}
	return memoryOf(pids...)
}

// holding calls do while a client holds connections open.
func (l *lab) holding(ctx context.Context, r *rig, connections int, kind, addr string, do func() error) error {
	cmd := exec.CommandContext(ctx, "ip", "netns", "exec", r.client, l.self, "hold",
		"--kind", kind, "--connections", strconv.Itoa(connections), addr)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err == nil && line == "holding\n" {
		err = do()
	} else if errors.Is(err, io.EOF) {
		err = nil // it says below what was wrong
	}
	_ = stdin.Close()
	if ended := cmd.Wait(); ended != nil {
		return fmt.Errorf("%w: %s", ended, stderr.String())
	}
	return err
}

func commandContext(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = strings.NewReader("")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}
