// Bench measures Tulle's pair of proxies against the pairs that one could use
// instead, side by side on this machine. README.md explains how.
//
//	bench [--quick] [--save FOLDER] [WORK...]
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/tulle-mesh/tulle/test/bench/ends"
)

type config struct {
	bin    string
	quick  bool
	save   string
	rounds int
	long   time.Duration // of one measurement
	peers  string
	envoy  string // its program
	works  []string
}

func main() {
	if len(os.Args) > 1 && ends.Programs[os.Args[1]] != nil {
		exit(ends.Programs[os.Args[1]](os.Args[2:])) // one of the ends of what is measured
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
	measured := os.Getenv(inside)
	if measured == "" {
		exit(run(c))
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	c.works = strings.Split(measured, ",")
	err = runInside(ctx, c, self)
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
	c := config{rounds: 5, long: 2 * time.Second}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.StringVar(&c.bin, "bin", bin, "folder of the `binaries` tulle and tulle-proxy")
	flags.BoolVar(&c.quick, "quick", false, "fewer and shorter rounds, under two minutes: a glance, not a result")
	flags.StringVar(&c.save, "save", "", "`folder` to write results to, as JSON and as a table; works that are there and were not measured now stay")
	flags.IntVar(&c.rounds, "rounds", c.rounds, "`rounds`, each measuring everything once")
	flags.DurationVar(&c.long, "long", c.long, "how `long` one measurement takes")
	flags.StringVar(&c.peers, "peers", "", "only these `peers`, comma-separated: "+strings.Join(peerNames(), ", "))
	flags.StringVar(&c.envoy, "envoy", filepath.Join(filepath.Dir(bin), ".tools/envoy/envoy/_bin/envoy"), "the `program`")
	flags.Usage = func() {
		fmt.Fprintf(flags.Output(), "usage: bench [options] [WORK...]; a name stands for all works that begin so: %s\n", strings.Join(workNames(), ", "))
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
		c.rounds, c.long = 1, time.Second
	}
	for _, name := range c.works {
		if !slices.ContainsFunc(works, func(w work) bool { return w.called(name) }) {
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
	if c.peers != "" {
		return strings.Split(c.peers, ",")
	}
	var names []string
	for _, p := range peers {
		if p.glance || !c.quick {
			names = append(names, p.name)
		}
	}
	return names
}

func (c config) chose(w work) bool {
	if len(c.works) == 0 {
		return w.glance || !c.quick
	}
	return slices.ContainsFunc(c.works, w.called)
}

// groups are the works that were chosen, each with those that can be measured
// after it with the same processes.
func (c config) groups() [][]string {
	var groups [][]string
	var before work
	for _, w := range works {
		if !c.chose(w) {
			continue
		}
		if len(groups) == 0 || w.fresh || before.fresh {
			groups = append(groups, nil)
		}
		last := &groups[len(groups)-1]
		*last = append(*last, w.name)
		before = w
	}
	return groups
}

// run measures what was chosen, and saves each group as soon as it is there.
func run(c config) error {
	total := newResults(c)
	for _, group := range c.groups() {
		part, err := isolate(group)
		if err != nil {
			return err
		}
		total.adopt(part)
		if c.save != "" {
			if err := part.save(c.save); err != nil {
				return err
			}
		}
	}
	fmt.Print("\n", total.table())
	return nil
}

// runInside measures one group, and writes the results to the standard output.
func runInside(ctx context.Context, c config, self string) error {
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
		if !c.chose(w) {
			continue
		}
		if err := w.run(ctx, lab, rigs, results.sheet(w.name)); err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
	}
	return json.NewEncoder(os.Stdout).Encode(results)
}
