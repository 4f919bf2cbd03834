// Demo starts the mesh and a small shop of real programs on this machine, shows
// what the mesh sees of them, and ends all of it again:
//
//	load -> web -> catalog (three replicas, the third 50 ms slower) -> redis-server
//
// All figures come from the mesh's own API; the source of load counts too, and
// the two must agree. The exit code is 0 only if no request failed, every edge
// was mutual TLS, and the slow replica got well under its fair share.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/term"
)

type config struct {
	bin  string        // folder of tulle and tulle-proxy
	long time.Duration // 0: until interrupted
	rate int           // requests a second
}

func main() {
	self, err := os.Executable()
	if err != nil {
		fail(err)
	}
	var c config
	flag.StringVar(&c.bin, "bin", filepath.Dir(filepath.Dir(self)), "folder of the `binaries` tulle and tulle-proxy")
	flag.DurationVar(&c.long, "for", 0, "how `long` to run, for instance 20s (0: until Ctrl-C)")
	flag.IntVar(&c.rate, "rate", 150, "requests a `second`")
	flag.Parse()
	if flag.NArg() > 0 || c.long < 0 || c.rate < 1 {
		flag.Usage()
		os.Exit(2)
	}
	giveBack := takeTerminal()
	// A closed terminal and a reader that has gone (demo | head) end it in order, too.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	err = run(ctx, c, filepath.Join(filepath.Dir(self), "shop"))
	stop()
	giveBack()
	if err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintf(os.Stderr, "demo: %v\n", err)
	os.Exit(1)
}

func run(ctx context.Context, c config, shop string) (err error) {
	s, err := newStage(filepath.Join(c.bin, "tulle"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.end(err != nil)) }()

	fmt.Println("Starting the mesh and the shop ...")
	if err := s.startMesh(ctx); err != nil {
		return err
	}
	load, err := s.startShop(ctx, shop, c.rate)
	if err != nil {
		return err
	}
	if err := show(ctx, s, c.long); err != nil {
		return err
	}
	counted, err := load.stop()
	if err != nil {
		return err
	}
	seen, err := s.api.settled(counted)
	if err != nil {
		return err
	}
	fmt.Print(summary(seen, counted))
	return verdict(seen, counted)
}

// show prints what goes on until ctx ends or the time is over: each second in
// place on a terminal, else now and then.
func show(ctx context.Context, s *stage, long time.Duration) error {
	if long > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, long)
		defer cancel()
	}
	terminal := term.IsTerminal(int(os.Stdout.Fd()))
	interval := 10 * time.Second
	if terminal {
		interval = time.Second
	}
	page, err := s.api.page()
	if err != nil {
		return err
	}
	fmt.Printf("The shop is open. Dashboard: %s\n", page)
	ticks := time.NewTicker(interval)
	defer ticks.Stop()
	for drawn := 0; ; {
		select {
		case <-ctx.Done():
			return nil
		case p := <-s.ended:
			return p.unexpected()
		case <-ticks.C:
		}
		seen, err := s.api.look("10s")
		if err != nil {
			return err
		}
		if terminal && drawn > 0 {
			fmt.Printf("\x1b[%dA\x1b[J", drawn)
		}
		table := "\n" + edgeTable(seen.edges) + "\n" + replicaTable(seen.replicas)
		if long == 0 {
			table += "\nCtrl-C ends the demo and prints the summary.\n"
		}
		drawn = strings.Count(table, "\n")
		if terminal { // a line that does not fit is cut: broken into two, it would be drawn over no more
			table = "\x1b[?7l" + table + "\x1b[?7h"
		}
		fmt.Print(table)
	}
}
