package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

const (
	startPatience = 30 * time.Second
	stopPatience  = 15 * time.Second
	bridge        = "tulle0"
	netnsPattern  = "/run/netns/tulle-*"
)

// stage is the running mesh and shop. One goroutine uses it.
type stage struct {
	tulle     string
	logs      string // a folder of our own
	api       *api
	processes []*process // in the order they were started
	ended     chan *process
}

// process is one program of the demo.
type process struct {
	name string
	log  string
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // set before done is closed
}

func (p *process) unexpected() error {
	tail, _ := os.ReadFile(p.log)
	if len(tail) > 2000 {
		tail = tail[len(tail)-2000:]
	}
	how := "without an error"
	if p.err != nil {
		how = p.err.Error()
	}
	return fmt.Errorf("%s ended too early, %s; it said:\n%s", p.name, how, bytes.TrimSpace(tail))
}

func newStage(tulle string) (*stage, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("network namespaces need root; type: sudo " + os.Args[0])
	}
	if _, err := os.Stat(tulle); err != nil {
		return nil, fmt.Errorf("%w; type: ./just build", err)
	}
	if _, err := exec.LookPath("redis-server"); err != nil {
		return nil, fmt.Errorf("%w; type: sudo apt-get install redis-server", err)
	}
	api := newAPI()
	if api.answers() {
		return nil, fmt.Errorf("a mesh is up on this machine already; the demo wants its own. Stop that one first: sudo %s down", tulle)
	}
	logs, err := os.MkdirTemp("", "tulle-demo-")
	if err != nil {
		return nil, err
	}
	return &stage{tulle: tulle, logs: logs, api: api, ended: make(chan *process, 16)}, nil
}

// startMesh returns once the mesh answers.
func (s *stage) startMesh(ctx context.Context) error {
	// An authority of its own, gone with the demo.
	if _, err := s.start("up", nil, nil, "up", "--state", filepath.Join(s.logs, "authority")); err != nil {
		return err
	}
	return s.await(ctx, "the mesh to answer", func() (bool, error) { return s.api.answers(), nil })
}

// startShop returns once every program is ready and the load is on.
func (s *stage) startShop(ctx context.Context, shop string, rate int) (*load, error) {
	for _, args := range [][]string{
		{"redis:6379", "--", "redis-server", "--port", "6379", "--bind", "0.0.0.0", "::", "--protected-mode", "no", "--save", "", "--appendonly", "no"},
		{"catalog:8080", "--replicas", "3", "--", shop, "catalog"},
		{"web:8080", "--", shop, "web"},
	} {
		name, _, _ := net.SplitHostPort(args[0])
		if _, err := s.start(name, nil, nil, append([]string{"run"}, args...)...); err != nil {
			return nil, err
		}
	}
	wanted := map[string]int{"redis": 1, "catalog": 3, "web": 1}
	err := s.await(ctx, "the shop to be ready", func() (bool, error) { return s.api.ready(wanted) })
	if err != nil {
		return nil, err
	}
	return s.startLoad(shop, rate)
}

// start runs tulle with some arguments, in a process group of its own, so that
// a Ctrl-C of the terminal reaches us only and the end stays in order.
func (s *stage) start(name string, stdin, stdout *os.File, args ...string) (*process, error) {
	log, err := os.Create(filepath.Join(s.logs, name+".log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p := &process{name: name, log: log.Name(), cmd: exec.Command(s.tulle, args...), done: make(chan struct{})}
	p.cmd.Dir = s.logs
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if stdin != nil {
		p.cmd.Stdin = stdin
	}
	if stdout != nil {
		p.cmd.Stdout = stdout
	}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	s.processes = append(s.processes, p)
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
		s.ended <- p
	}()
	return p, nil
}

// await polls until ok, a process ends, or patience does.
func (s *stage) await(ctx context.Context, what string, ok func() (bool, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startPatience, fmt.Errorf("waited %v for %s", startPatience, what))
	defer cancel()
	ticks := time.NewTicker(50 * time.Millisecond)
	defer ticks.Stop()
	for {
		if done, err := ok(); done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case p := <-s.ended:
			return p.unexpected()
		case <-ticks.C:
		}
	}
}

// end stops everything, latest first, and looks whether anything is left. The
// logs are kept if the demo has failed.
func (s *stage) end(failed bool) error {
	var errs []error
	for _, p := range slices.Backward(s.processes) {
		if p.name != "up" {
			errs = append(errs, p.end())
		}
	}
	if len(s.processes) > 0 {
		out, err := exec.Command(s.tulle, "down").CombinedOutput()
		if err != nil {
			errs = append(errs, fmt.Errorf("tulle down: %w\n%s", err, out))
		}
		errs = append(errs, s.processes[0].end())
	}
	if left, _ := filepath.Glob(netnsPattern); len(left) > 0 {
		errs = append(errs, fmt.Errorf("left behind: %v; type: sudo %s down", left, s.tulle))
	}
	if _, err := net.InterfaceByName(bridge); err == nil {
		errs = append(errs, fmt.Errorf("left behind: network link %s; type: sudo %s down", bridge, s.tulle))
	}
	err := errors.Join(errs...)
	if failed || err != nil {
		return errors.Join(err, fmt.Errorf("what each program said is in %s", s.logs))
	}
	return os.RemoveAll(s.logs)
}

func (p *process) end() error {
	select {
	case <-p.done:
		return nil
	default:
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // an error means that it has ended just now
	select {
	case <-p.done:
		return nil
	case <-time.After(stopPatience):
	}
	_ = p.cmd.Process.Kill()
	<-p.done
	return fmt.Errorf("%s did not end within %v of SIGTERM", p.name, stopPatience)
}
