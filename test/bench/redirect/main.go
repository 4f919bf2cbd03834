// Redirect measures what each way to send a workload's connections into its proxy
// costs: eBPF, nftables and iptables, as cni/redirect makes them, and none, side by
// side on this machine; and what the eBPF one costs processes that are not meshed.
// The proxies are stubs that do as little as can be done, so that it is the redirect
// that is seen. ../README.md explains how.
//
//	redirect [--rounds N] [--save FOLDER]
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// inside marks, in the environment, the process that runs in namespaces of its own.
const inside = "TULLE_BENCH_REDIRECT"

type config struct {
	rounds, connections, pings int
	save                       string
}

func main() {
	if len(os.Args) > 1 && ends[os.Args[1]] != nil {
		exit(ends[os.Args[1]](os.Args[2:]))
	}
	var c config
	flag.IntVar(&c.rounds, "rounds", 9, "`rounds`, each measuring everything once")
	flag.IntVar(&c.connections, "connections", 3000, "so many short `connections` in each measurement")
	flag.IntVar(&c.pings, "pings", 10000, "so many `messages` there and back in each")
	flag.StringVar(&c.save, "save", "", "`folder` to write redirect.json and redirect.md to")
	flag.Parse()
	if os.Getenv(inside) == "" {
		exit(isolate())
	}
	err := furnish()
	if err == nil {
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

// furnish gives the new namespaces what the redirects expect of a host.
func furnish() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for _, m := range []struct{ kind, at string }{{"proc", "/proc"}, {"tmpfs", "/run"}, {"bpf", "/sys/fs/bpf"}} {
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	return nil
}

// run measures everything once in each round, in another order each time.
func run(c config) error {
	r := newResults(c)
	for round := range c.rounds {
		fmt.Fprintf(os.Stderr, "round %d of %d\n", round+1, c.rounds)
		for i := range ways {
			w := ways[(i+round)%len(ways)]
			if err := w.measure(c, r); err != nil {
				return fmt.Errorf("%s: %w", w.name, err)
			}
		}
		for i := range presences {
			p := presences[(i+round)%len(presences)]
			if err := p.measure(c, r); err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
		}
	}
	fmt.Print(r.markdown())
	if c.save == "" {
		return nil
	}
	return r.save(c.save)
}
