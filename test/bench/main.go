// Bench measures Tulle's pair of proxies against the pairs that one could use
// instead, side by side on this machine. README.md explains how.
//
//	bench [--quick] [--save] [WORK...]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

type config struct {
	bin    string
	quick  bool
	save   string
	rounds int
	long   time.Duration // of one measurement
	peers  string
	counts string // of connections
	works  []string
}

// programs are what this binary is besides the bench: the two ends of the
// connections that it measures.
var programs = map[string]func(args []string) error{
	"backend": runBackend,
	"hold":    runHold,
	"idle":    runIdle,
}

func main() {
	if len(os.Args) > 1 && programs[os.Args[1]] != nil {
		exit(programs[os.Args[1]](os.Args[2:]))
	}
	self, err := os.Executable()
	if err != nil {
		exit(err)
	}
	c, err := parse(os.Args[1:], filepath.Dir(filepath.Dir(self)))
	if errors.Is(err, flag.ErrHelp) {
		os.Exit(2)
	}
	if err != nil {
		exit(err)
	}
	if !isolated() {
		exit(isolate())
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err = run(ctx, c, self)
	stop()
	exit(err)
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func parse(args []string, bin string) (config, error) {
	c := config{rounds: 7, long: 4 * time.Second}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.StringVar(&c.bin, "bin", bin, "folder of the `binaries` tulle and tulle-proxy")
	flags.BoolVar(&c.quick, "quick", false, "fewer and shorter rounds, under two minutes: a glance, not a result")
	flags.StringVar(&c.save, "save", "", "`folder` to write results to, as JSON and as a table")
	flags.IntVar(&c.rounds, "rounds", c.rounds, "`rounds`, each measuring everything once")
	flags.DurationVar(&c.long, "long", c.long, "how `long` one measurement takes")
	flags.StringVar(&c.peers, "peers", "", "only these `peers`, comma-separated: "+strings.Join(peerNames(), ", "))
	flags.StringVar(&c.counts, "connections", "1,16,128", "`numbers` of connections of the http1 work, comma-separated")
	flags.Usage = func() {
		fmt.Fprintf(flags.Output(), "usage: bench [options] [WORK...]; works: %s\n", strings.Join(workNames(), ", "))
		flags.PrintDefaults()
	}
	// Options may stand before and after names.
	for len(args) > 0 {
		if err := flags.Parse(args); err != nil {
			return c, err
		}
		if args = flags.Args(); len(args) > 0 {
			c.works, args = append(c.works, args[0]), args[1:]
		}
	}
	if c.quick {
		c.rounds, c.long = 3, time.Second
	}
	if _, err := c.connections(); err != nil {
		return c, err
	}
	for _, name := range c.works {
		if !slices.Contains(workNames(), name) {
			return c, fmt.Errorf("no work is called %q; there are: %s", name, strings.Join(workNames(), ", "))
		}
	}
	for _, name := range c.chosenPeers() {
		if !slices.Contains(peerNames(), name) {
			return c, fmt.Errorf("no peer is called %q; there are: %s", name, strings.Join(peerNames(), ", "))
		}
	}
	return c, nil
}

func (c config) chosenPeers() []string {
	if c.peers == "" {
		return peerNames()
	}
	return strings.Split(c.peers, ",")
}

func (c config) connections() ([]int, error) {
	var counts []int
	for text := range strings.SplitSeq(c.counts, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return nil, fmt.Errorf("--connections %s: not numbers like 1,16,128", c.counts)
		}
		counts = append(counts, n)
	}
	return counts, nil
}

func (c config) chose(work string) bool { return len(c.works) == 0 || slices.Contains(c.works, work) }

func run(ctx context.Context, c config, self string) error {
	lab, err := newLab(c, self)
	if err != nil {
		return err
	}
	defer lab.close()
	rigs, err := lab.build(ctx)
	if err != nil {
		return err
	}
	results := newResults(c)
	for _, w := range works {
		if !c.chose(w.name) {
			continue
		}
		if err := w.run(ctx, lab, rigs, results); err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
	}
	fmt.Print("\n", results.table())
	if c.save != "" {
		return results.save(c.save)
	}
	return nil
}
