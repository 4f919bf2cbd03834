package workload

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
	"github.com/tulle-mesh/tulle/cmd/tulle/dns"
)

// Config is a `tulle run`.
type Config struct {
	Service  string
	Ports    []uint16 // declared; none: ready as soon as it runs
	Replicas int
	Add      bool // to a service that runs already
	Strict   bool // only the mesh's own clients may call
	// HostNetwork leaves the command in the host's network.
	HostNetwork bool
	Remove      bool // leave no trace after the end
	Detached    bool // output goes to the replica's log
	User        string
	Env         []string // "KEY=VALUE", on top of Environ
	Environ     []string
	Command     []string

	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer

	RunDir string // of the daemon
	Proxy  string // path of tulle-proxy
	Host   tullev1.HostClient
	// Names and Upstreams answer the workloads' DNS questions while the daemon is away.
	Names     dns.Names
	Upstreams func() []netip.AddrPort
	// Started is told once all commands run; nil: nobody.
	Started func(replicas []string)
}

// Validate reports what is wrong with the Config.
func (c *Config) Validate() error {
	var errs []error
	if len(c.Command) == 0 {
		errs = append(errs, fmt.Errorf("what shall it run? type: tulle run %s -- COMMAND", c.Service))
	}
	if c.Replicas < 1 || c.Replicas > 1000 {
		errs = append(errs, fmt.Errorf("--replicas %d: must be 1 to 1000", c.Replicas))
	}
	if c.HostNetwork {
		errs = append(errs, c.checkHostNetwork())
	}
	return errors.Join(errs...)
}

// runner is the state of one Run.
type runner struct {
	*Config
	who      account
	replicas []*replica
	leases   context.Context
	leased   sync.WaitGroup

	lines sync.Mutex // one line at a time on Stdout and Stderr
}

// Run runs the replicas until all of them have ended, takes everything down
// again and returns the exit code: the first that is not zero, in the order of
// the replicas. It handles the process's signals.
func Run(ctx context.Context, c Config) (code int, err error) {
	if err := c.Validate(); err != nil {
		return CodeOwn, err
	}
	r := &runner{Config: &c}
	if r.who, err = lookupUser(c.User); err != nil {
		return CodeOwn, err
	}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, forwarded...)
	defer signal.Stop(signals)

	// The leases outlive ctx: they are given back at the end.
	leases, cancel := context.WithCancel(context.WithoutCancel(ctx))
	r.leases = leases
	defer r.leased.Wait()
	defer cancel()
	defer func() { err = errors.Join(err, r.down()) }()

	if interrupted, err := r.setUp(ctx, signals); interrupted != nil {
		return codeSignal + int(interrupted.(syscall.Signal)), nil
	} else if err != nil {
		return CodeOwn, err
	}
	for _, rep := range r.replicas {
		if err := rep.begin(r.who); err != nil {
			rep.fail(err)
			return startCode(err), err
		}
	}
	r.tellStarted()
	return r.wait(signals), nil
}

func startCode(err error) int {
	var start *StartError
	if errors.As(err, &start) {
		return start.Code
	}
	return CodeOwn
}

// setUp joins the mesh and makes all replicas ready to begin; a signal
// meanwhile ends it.
func (r *runner) setUp(ctx context.Context, signals <-chan os.Signal) (os.Signal, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		err := r.join()
		if err == nil {
			err = r.upAll(ctx)
		}
		done <- err
	}()
	for {
		select {
		case err := <-done:
			return nil, err
		case sig := <-signals:
			if sig == unix.SIGWINCH {
				continue
			}
			cancel()
			<-done
			return sig, nil
		}
	}
}

// join takes the leases. The first decides whether the name is free, so the
// others come after it.
func (r *runner) join() error {
	for i := range r.Replicas {
		reg := &tullev1.Register{
			Service: r.Service, Add: r.Add || i > 0, Pid: int32(os.Getpid()), Command: r.Command,
			Strict: r.Strict, Remove: r.Remove, HostNetwork: r.HostNetwork,
		}
		for _, p := range r.Ports {
			reg.Ports = append(reg.Ports, uint32(p))
		}
		rep := &replica{config: r.Config, index: i + 1}
		rep.note = func(format string, args ...any) { r.notef(rep, format, args...) }
		rep.names = &standIn{names: r.Names, upstreams: r.Upstreams}
		lease, err := Join(r.leases, r.Host, reg, rep.note, rep.names.set)
		if err != nil {
			return err
		}
		rep.lease, rep.names.domain = lease, lease.Grant.DnsDomain
		rep.names.addr = standInAddr
		if p, err := netip.ParsePrefix(lease.Grant.Address4); err == nil && r.HostNetwork {
			rep.names.addr = standInOf(p.Addr())
		}
		rep.dir = filepath.Join(r.RunDir, "workloads", lease.Grant.Replica)
		r.replicas = append(r.replicas, rep)
		r.leased.Go(func() { lease.Run(r.leases) })
	}
	return nil
}

// upAll makes all replicas at once.
func (r *runner) upAll(ctx context.Context) error {
	for _, rep := range r.replicas {
		var err error
		if rep.stdio, err = r.stdioOf(rep); err != nil {
			return err
		}
	}
	errs := make([]error, len(r.replicas))
	var wg sync.WaitGroup
	for i, rep := range r.replicas {
		wg.Go(func() { errs[i] = rep.up(ctx) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// stdioOf decides where a replica's command reads and writes.
func (r *runner) stdioOf(rep *replica) (Stdio, error) {
	switch {
	case r.Detached:
		log, err := OpenLog(filepath.Join(rep.dir, "log"))
		if err != nil {
			return Stdio{}, err
		}
		rep.output = log
		return Stdio{Out: log, Err: log}, nil
	case r.Replicas > 1:
		prefix := []byte(rep.name() + " | ")
		return Stdio{
			Out: &prefixer{mu: &r.lines, out: r.Stdout, prefix: prefix},
			Err: &prefixer{mu: &r.lines, out: r.Stderr, prefix: prefix},
		}, nil
	}
	in, _ := r.Stdin.(*os.File)
	return Stdio{In: in, Out: r.Stdout, Err: r.Stderr}, nil
}

// notef prints a line of tulle's own about a replica.
func (r *runner) notef(rep *replica, format string, args ...any) {
	out := r.Stderr
	if rep.output != nil {
		out = rep.output
	}
	r.lines.Lock()
	defer r.lines.Unlock()
	_, _ = fmt.Fprintf(out, "tulle: "+format+"\n", args...)
}

func (r *runner) tellStarted() {
	if r.Started == nil {
		return
	}
	names := make([]string, len(r.replicas))
	for i, rep := range r.replicas {
		names[i] = rep.name()
	}
	r.Started(names)
}

// wait forwards signals until every command has ended.
func (r *runner) wait(signals <-chan os.Signal) int {
	codes := make([]int, len(r.replicas))
	done := make(chan struct{})
	go func() {
		defer close(done)
		var wg sync.WaitGroup
		for i, rep := range r.replicas {
			wg.Go(func() {
				codes[i] = rep.finish()
				_ = rep.close() // kept for the end
			})
		}
		wg.Wait()
	}()
	for {
		select {
		case sig := <-signals:
			if fromTerminal(sig) {
				continue // the commands got it, too
			}
			for _, rep := range r.replicas {
				rep.signal(sig)
			}
		case <-done:
			for _, code := range codes {
				if code != 0 {
					return code
				}
			}
			return 0
		}
	}
}

// down takes down, all at once, the replicas that are still there.
func (r *runner) down() error {
	errs := make([]error, len(r.replicas))
	var wg sync.WaitGroup
	for i, rep := range r.replicas {
		wg.Go(func() { errs[i] = rep.close() })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// forwarded are the signals that are passed on to the commands.
var forwarded = []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGWINCH}

// fromTerminal tells whether a signal came from the keyboard. A terminal sends
// those to its whole foreground process group, and the commands are in ours:
// that is what makes job control work, and forwarding would double the signal.
func fromTerminal(sig os.Signal) bool {
	if sig != unix.SIGINT && sig != unix.SIGQUIT && sig != unix.SIGWINCH {
		return false
	}
	tty, err := os.Open("/dev/tty")
	if err != nil {
		return false // no terminal
	}
	defer func() { _ = tty.Close() }()
	foreground, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && foreground == unix.Getpgrp()
}
