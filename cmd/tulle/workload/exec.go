package workload

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/tulle-mesh/tulle/cmd/tulle/network"
)

// Exit codes of `tulle run`, those that a shell and docker use.
const (
	CodeOwn           = 125 // tulle itself has failed
	CodeNotExecutable = 126
	CodeNotFound      = 127
	codeSignal        = 128 // plus the number of the signal
)

// StartError is a command that could not be started.
type StartError struct {
	Code int // CodeNotFound or CodeNotExecutable
	msg  string
}

func (e *StartError) Error() string { return e.msg }

// process is a running command.
type process struct {
	cmd    *exec.Cmd
	output sync.WaitGroup // copying its output
}

// start runs argv on a thread of the replica's namespace, in the cgroup of a directory;
// nil: in that of tulle.
func start(thread *network.Thread, argv, env []string, who account, group *os.File, stdio Stdio) (*process, error) {
	p := &process{}
	stdout, release1, err := drain(stdio.Out, &p.output)
	if err != nil {
		return nil, err
	}
	defer release1()
	stderr, release2, err := drain(stdio.Err, &p.output)
	if err != nil {
		return nil, err
	}
	defer release2()
	p.cmd = &exec.Cmd{
		Args: argv, Env: env, Stdin: stdio.In, Stdout: stdout, Stderr: stderr,
		SysProcAttr: &syscall.SysProcAttr{
			Credential: who.credential,
			Pdeathsig:  unix.SIGKILL, // without us there is no network either
		},
	}
	if group != nil {
		p.cmd.SysProcAttr.UseCgroupFD, p.cmd.SysProcAttr.CgroupFD = true, int(group.Fd())
	}
	err = thread.Do(func() error {
		path, err := lookPath(argv[0], getenv(env, "PATH"))
		if err != nil {
			return err
		}
		p.cmd.Path = path
		return p.cmd.Start()
	})
	if err != nil && group != nil && removed(group) {
		return nil, fmt.Errorf("start %s: its cgroup was removed meanwhile; type the command again", argv[0])
	}
	if err != nil {
		return nil, startError(argv[0], err)
	}
	return p, nil
}

// removed tells whether a cgroup is no more, though its directory is open.
func removed(group *os.File) bool {
	return unix.Faccessat(int(group.Fd()), "cgroup.procs", unix.F_OK, 0) != nil
}

// wait returns the exit code as a shell would tell it.
func (p *process) wait() int {
	_ = p.cmd.Wait()
	status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if ok && status.Signaled() {
		return codeSignal + int(status.Signal())
	}
	return p.cmd.ProcessState.ExitCode()
}

func startError(name string, err error) error {
	var own *StartError
	switch {
	case errors.As(err, &own):
		return err
	case errors.Is(err, fs.ErrNotExist):
		return &StartError{CodeNotFound, fmt.Sprintf("%s: the program, or the interpreter it names, does not exist", name)}
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.ENOEXEC), errors.Is(err, unix.EISDIR):
		var errno syscall.Errno
		_ = errors.As(err, &errno)
		return &StartError{CodeNotExecutable, fmt.Sprintf("%s: cannot be executed: %v", name, errno)}
	}
	return fmt.Errorf("start %s: %w", name, err)
}

// lookPath finds a program as a shell does, by the workload's own PATH.
func lookPath(name, path string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	denied := false
	for _, dir := range filepath.SplitList(path) {
		if dir == "" {
			dir = "."
		}
		candidate := filepath.Join(dir, name)
		info, err := os.Stat(candidate)
		switch {
		case err != nil || info.IsDir():
		case info.Mode().Perm()&0o111 == 0:
			denied = true
		case dir == ".":
			return "./" + name, nil
		default:
			return candidate, nil
		}
	}
	if denied {
		return "", &StartError{CodeNotExecutable, name + ": cannot be executed: no execute permission"}
	}
	return "", &StartError{CodeNotFound, name + ": command not found"}
}

func getenv(env []string, key string) string {
	value := ""
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, key+"="); ok {
			value = v
		}
	}
	return value
}
