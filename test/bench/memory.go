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
	burstConnections = 5000
	destinations     = 10
)

// newMemory measures what proxies keep resident when they are new: the client's
// when it knows ten destinations, and both together.
func newMemory(ctx context.Context, l *lab, rigs []*rig, sheet *sheet) error {
	rigs = proxied(rigs)
	for _, r := range rigs {
		if err := l.knowTen(ctx, r); err != nil {
			return fmt.Errorf("%s: %w", r.peer, err)
		}
	}
	if err := l.settle(ctx); err != nil {
		return err
	}
	for range l.rounds {
		if err := wait(ctx, l.idleTime()/2); err != nil {
			return err
		}
		for _, r := range rigs {
			if err := r.noteNew(sheet); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *rig) noteNew(sheet *sheet) error {
	client, err := memoryWithChildren(r.roots[:1])
	if err != nil {
		return err
	}
	both, err := memoryOf(r.proxies...)
	if err != nil {
		return err
	}
	sheet.add(r.peer, "RSS MB, client's", megabytes(client.rss()))
	sheet.add(r.peer, "RssAnon MB, client's", megabytes(client.anon))
	sheet.add(r.peer, "RSS MB, both", megabytes(both.rss()))
	sheet.add(r.peer, "RssAnon MB, both", megabytes(both.anon))
	return nil
}

// idle is a number of connections, each of which has been used once.
type idle struct {
	door        door
	connections int
}

// measure looks at all peers at the same time: waiting takes no CPU.
func (w idle) measure(ctx context.Context, l *lab, rigs []*rig, sheet *sheet) error {
	var able []*rig
	for _, r := range proxied(rigs) {
		if reason := w.impossible(r.peer, l.files); reason != "" {
			sheet.cannot(r.peer, reason)
			continue
		}
		able = append(able, r)
	}
	rigs = able
	before := make([]memory, len(rigs))
	for i, r := range rigs {
		var err error
		if before[i], err = memoryOf(r.proxies...); err != nil {
			return err
		}
	}
	err := l.holdingAll(ctx, rigs, w, func() error {
		if err := l.settle(ctx); err != nil {
			return err
		}
		for i, r := range rigs {
			held, err := memoryOf(r.proxies...)
			if err != nil {
				return err
			}
			sheet.add(r.peer, "KB each, both", float64(held.anon-before[i].anon)/float64(w.connections)/1e3)
			sheet.add(r.peer, "RssAnon MB, both", megabytes(held.anon))
		}
		return nil
	})
	if err != nil {
		return err
	}
	return l.settle(ctx)
}

// impossible says why not, or nothing. A relay has two sockets in one process
// for each connection; who understands HTTP needs the second one only while a
// request is under way.
func (w idle) impossible(peer string, files int) string {
	need := 2*w.connections + 200
	if relays := w.door == tcpDoor || peer == floor.name; !relays || need <= files {
		return ""
	}
	return fmt.Sprintf("a process may open %d files on this machine, and it takes %d", files, need)
}

func (l *lab) holdingAll(ctx context.Context, rigs []*rig, w idle, do func() error) error {
	if len(rigs) == 0 {
		return do()
	}
	progress("%s: %d connections", rigs[0].peer, w.connections)
	err := l.holding(ctx, rigs[0], w.connections, w.door, rigs[0].doors[w.door], func() error {
		return l.holdingAll(ctx, rigs[1:], w, do)
	})
	if err != nil {
		return fmt.Errorf("%s: %w", rigs[0].peer, err)
	}
	return nil
}

// burst compares memory before, during and some time after many connections
// that are opened and closed.
func burst(ctx context.Context, l *lab, rigs []*rig, sheet *sheet) error {
	rigs = proxied(rigs)
	if err := l.settle(ctx); err != nil {
		return err
	}
	before := make([]memory, len(rigs))
	for i, r := range rigs {
		var err error
		if before[i], err = memoryOf(r.proxies...); err != nil {
			return err
		}
		progress("burst: %s", r.peer)
		err = l.holding(ctx, r, burstConnections, httpDoor, r.doors[httpDoor], func() error {
			peak, err := memoryOf(r.proxies...)
			sheet.add(r.peer, "RssAnon MB, both, with 5,000 connections", megabytes(peak.anon))
			return err
		})
		if err != nil {
			return fmt.Errorf("%s: %w", r.peer, err)
		}
	}
	if err := wait(ctx, 6*l.idleTime()); err != nil {
		return err
	}
	for i, r := range rigs {
		after, err := memoryOf(r.proxies...)
		if err != nil {
			return err
		}
		sheet.add(r.peer, "RssAnon MB, both, after", megabytes(after.anon))
		sheet.add(r.peer, "RssAnon after / before", float64(after.anon)/float64(before[i].anon))
	}
	return nil
}

// proxied leaves out who has no proxy.
func proxied(rigs []*rig) []*rig {
	var with []*rig
	for _, r := range rigs {
		if len(r.proxies) > 0 {
			with = append(with, r)
		}
	}
	return with
}

// idleTime is how long things are left alone before memory is looked at.
func (l *lab) idleTime() time.Duration {
	if l.quick {
		return 5 * time.Second
	}
	return 10 * time.Second
}

func (l *lab) settle(ctx context.Context) error { return wait(ctx, l.idleTime()) }

func wait(ctx context.Context, long time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(long):
		return nil
	}
}

// knowTen makes the client's proxy know ten destinations: other ports of the
// same server, where nobody listens, are destinations too.
func (l *lab) knowTen(ctx context.Context, r *rig) error {
	host, _, _ := strings.Cut(r.doors[httpDoor], ":")
	args := []string{"hold", "--kind", "dial", "--connections", strconv.Itoa(destinations)}
	for i := range destinations {
		args = append(args, hostPort(host, backendPorts[tcpDoor]+1+i))
	}
	_, err := l.inside(ctx, r.client, args...)
	return err
}

// holding calls do while a client holds connections open.
func (l *lab) holding(ctx context.Context, r *rig, connections int, d door, addr string, do func() error) error {
	cmd := exec.CommandContext(ctx, "ip", "netns", "exec", r.client, l.self, "hold",
		"--kind", string(d), "--connections", strconv.Itoa(connections), addr)
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
