// Redirect measures what each way to send a workload's connections into its proxy
// costs: eBPF, nftables and iptables, as cni/redirect makes them, and none, side by
// side on this machine: with the product at both ends, and with stubs for proxies, that
// do as little as can be done, so that it is the redirect that is seen; and what the
// eBPF one costs processes that are not meshed. ../README.md explains how.
//
//	redirect [--rounds N] [--save FOLDER]
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/tulle-mesh/tulle/test/bench/figures"
)

// inside marks, in the environment, the process that runs in namespaces of its own.
const inside = "TULLE_BENCH_REDIRECT"

type config struct {
	rounds, connections int
	bin, save           string
}

// part returns what a process does that this program has started; nil: it is the first.
func part(name string) func(args []string) error {
	switch end := ends[name]; {
	case name == "box":
		return box
	case name == "stage":
		return onStage
	case end != nil:
		return func(args []string) error { return pinned(args, end) }
	}
	return nil
}

func main() {
	if len(os.Args) > 1 {
		if do := part(os.Args[1]); do != nil {
			exit(do(os.Args[2:]))
		}
	}
	self, err := os.Executable()
	if err != nil {
		exit(err)
	}
	var c config
	flag.IntVar(&c.rounds, "rounds", 17, "`rounds`, each measuring everything once")
	flag.IntVar(&c.connections, "connections", 1000, "so many short `connections`, and as many messages, in each measurement")
	flag.StringVar(&c.bin, "bin", filepath.Dir(filepath.Dir(self)), "folder of the `binaries` tulle and tulle-proxy")
	flag.StringVar(&c.save, "save", "", "`folder` to write redirect.json and redirect.md to")
	flag.Parse()
	if c.connections < blocks || c.rounds < 1 {
		exit(fmt.Errorf("--connections must be %d at least, and --rounds 1", blocks))
	}
	if os.Getenv(inside) == "" {
		exit(isolate())
	}
	if err = furnish(cgroups); err == nil {
		err = run(c)
	}
	exit(err)
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "redirect:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// isolate runs this program again in network, mount and process namespaces of its
// own: when that ends, the kernel ends all that is in there.
func isolate() error {
	if os.Geteuid() != 0 {
		return errors.New("network namespaces need root; type: sudo " + os.Args[0])
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), inside+"=1", "XTABLES_LOCKFILE=/run/xtables.lock")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID,
		Pdeathsig:  syscall.SIGKILL,
	}
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		os.Exit(max(exit.ExitCode(), 1)) // it has said why
	}
	return err
}

// run measures all works.
func run(c config) error {
	r := newResults(c)
	for _, w := range works {
		fmt.Fprintln(os.Stderr, w.name)
		if err := w.measure(c, r); err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
	}
	r.conclude()
	fmt.Print(r.markdown())
	if c.save == "" {
		return nil
	}
	return r.save(c.save)
}

// blocks are what a round is made of: in each all peers have their turn, a tenth of a
// second long. Of a figure its median over them counts, so that other work on the
// machine disturbs only if it lasts, and then disturbs all peers.
const blocks = 10

func (w work) measure(c config, r *results) (err error) {
	var players []*player
	defer func() {
		for _, p := range players {
			err = errors.Join(err, p.close())
		}
	}()
	for _, s := range w.stages {
		p, err := s.open(w.name, c.bin)
		if err != nil {
			return fmt.Errorf("%s: %w", s.peer, err)
		}
		players = append(players, p)
	}
	for round := range c.rounds + 1 { // the first is for all to get warm
		seen := make([]map[string][]float64, len(players))
		for turn := range blocks * len(players) {
			// Nobody comes always after the same one.
			i := (turn + turn/len(players)) % len(players)
			if (round+turn/len(players))%2 == 1 {
				i = len(players) - 1 - i
			}
			got := map[string]float64{}
			if err := players[i].ask(fmt.Sprint("block ", c.connections/blocks), &got); err != nil {
				return fmt.Errorf("%s: %w", w.stages[i].peer, err)
			}
			if seen[i] == nil {
				seen[i] = map[string][]float64{}
			}
			for figure, value := range got {
				seen[i][figure] = append(seen[i][figure], value)
			}
		}
		for i := range players {
			for _, figure := range figureNames {
				if round > 0 {
					r.add(w.name, w.stages[i].peer, figure, figures.Median(seen[i][figure]))
				}
			}
		}
	}
	for i, p := range players {
		got := map[string]float64{}
		if err := p.ask("entries", &got); err != nil {
			return fmt.Errorf("%s: %w", w.stages[i].peer, err)
		}
		if w.name != workBystander {
			r.add(w.name, w.stages[i].peer, figureEntries, got[figureEntries])
		}
	}
	return nil
}
