package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/tulle-mesh/tulle/cmd/tulle/command"
	"github.com/tulle-mesh/tulle/cmd/tulle/host"
)

const logsAbout = `
Prints what a workload that was run with --detach has written, at most the last
16 MB. NAME is a replica or a service.`

func runLogs(ctx context.Context, env *command.Env, args []string) int {
	f := command.NewFlags("logs NAME [flags]", logsAbout)
	run := f.RunDir()
	follow := f.Bool("follow", false, "go on until the workload ends")
	f.Short("f", "follow")
	ofProxy := f.Bool("proxy", false, "print the log of the proxy instead")
	operands, err := f.Parse(env, args)
	switch {
	case errors.Is(err, command.ErrHelp):
		return command.OK
	case err == nil && len(operands) != 1:
		err = command.Usagef("which one? type: tulle logs NAME; names: tulle ps")
	}
	if err == nil {
		err = needRoot("logs")
	}
	if err != nil {
		return env.Fail(err)
	}
	file := "log"
	if *ofProxy {
		file = "proxy.log"
	}
	paths, err := logPaths(*run, operands[0], file)
	if err != nil {
		return env.Fail(err)
	}
	var wg sync.WaitGroup
	errs := make([]error, len(paths))
	for i, path := range paths {
		t := tail{path: path, out: env.Stdout, ended: func() bool { return host.Ended(*run, filepath.Base(filepath.Dir(path))) }}
		if *follow {
			wg.Go(func() { errs[i] = t.follow(ctx) })
		} else {
			errs[i] = t.print()
		}
	}
	wg.Wait()
	return env.Fail(errors.Join(errs...))
}

// logPaths finds the logs of a replica, or of all replicas of a service.
func logPaths(run, name, file string) ([]string, error) {
	replicas, err := host.Replicas(run, name)
	if err != nil {
		return nil, err
	}
	if len(replicas) == 0 {
		return nil, command.WithHint(fmt.Errorf("no workload %q", name), "see: tulle ps")
	}
	var paths []string
	for _, r := range replicas {
		path := filepath.Join(host.WorkloadDir(run, r), file)
		if _, err := os.Stat(path); err == nil {
			paths = append(paths, path)
		}
	}
	if len(paths) == 0 {
		return nil, fmt.Errorf("%s writes to the terminal it was run from; with tulle run --detach there is a log", strings.Join(replicas, ", "))
	}
	return paths, nil
}

// tail reads one log, across the point where a new file is begun.
type tail struct {
	path  string
	out   io.Writer
	ended func() bool
}

func (t tail) print() error {
	for _, path := range []string{t.path + ".1", t.path} {
		f, err := os.Open(path)
		if err != nil {
			continue
		}
		_, err = io.Copy(t.out, f)
		_ = f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func (t tail) follow(ctx context.Context) error {
	if old, err := os.Open(t.path + ".1"); err == nil {
		_, _ = io.Copy(t.out, old)
		_ = old.Close()
	}
	f, err := os.Open(t.path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	for {
		ended := t.ended() // before the read, so that nothing written until then is missed
		if _, err := io.Copy(t.out, f); err != nil {
			return err
		}
		if next := t.replaced(f); next != nil {
			_, _ = io.Copy(t.out, f) // what came between the read and the change
			_ = f.Close()
			f = next
			continue
		}
		if ended {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// replaced returns the file that has taken f's place, or nil.
func (t tail) replaced(f *os.File) *os.File {
	now, err := os.Stat(t.path)
	if err != nil {
		return nil
	}
	was, err := f.Stat()
	if err != nil || os.SameFile(now, was) {
		return nil
	}
	next, err := os.Open(t.path)
	if err != nil {
		return nil
	}
	return next
}
