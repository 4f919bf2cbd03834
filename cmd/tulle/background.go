package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"

	"github.com/tulle-mesh/tulle/cmd/tulle/command"
)

// backgroundFD is where a command that was sent to the background tells the
// one in the foreground how its start went.
const backgroundFD = 3

// backgroundFlag marks the process in the background.
const backgroundFlag = "background"

// started is that word, as one JSON object.
type started struct {
	Replicas []string `json:"replicas,omitempty"`
	Error    string   `json:"error,omitempty"`
	Code     int      `json:"code"`
}

// toBackground starts the same command again, without a terminal, and waits
// until it says how its start went. Output goes to log, nil for nowhere. If ctx ends
// before that, it is ended.
func toBackground(ctx context.Context, name string, args []string, log *os.File) (started, error) {
	self, err := os.Executable()
	if err != nil {
		return started{}, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return started{}, err
	}
	defer func() { _ = r.Close() }()
	cmd := exec.Command(self, append([]string{name, "--" + backgroundFlag}, args...)...)
	if log != nil { // a nil *os.File would be a non-nil io.Writer
		cmd.Stdout, cmd.Stderr = log, log
	}
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_ = w.Close()
	if err != nil {
		return started{}, err
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })
	word, err := io.ReadAll(r)
	interrupted := !stop()
	if err != nil {
		return started{}, err
	}
	if interrupted {
		_ = cmd.Wait() // it cleans up before it ends
		return started{}, errors.New("interrupted; it was not started")
	}
	if len(word) == 0 {
		_ = cmd.Wait()
		return started{}, fmt.Errorf("the process in the background ended (%s) before it was ready", cmd.ProcessState)
	}
	var s started
	if err := json.Unmarshal(word, &s); err != nil {
		return started{}, err
	}
	if s.Error != "" {
		_ = cmd.Wait() // it cleans up before it ends
	}
	return s, nil
}

// teller returns how a process in the background gives its word; only the
// first one counts.
func teller() func(started) {
	f := os.NewFile(backgroundFD, "background")
	syscall.CloseOnExec(backgroundFD)
	return func(s started) {
		if f == nil {
			return
		}
		_ = json.NewEncoder(f).Encode(s)
		_ = f.Close()
		f = nil
	}
}

// failCode prints an error and returns code in place of the usual one.
func failCode(env *command.Env, err error, code int) int {
	env.Errorf("%v", err)
	return code
}

// needRoot explains why a command cannot do its work.
func needRoot(name string) error {
	if os.Geteuid() == 0 {
		return nil
	}
	return command.WithHint(errors.New("tulle "+name+" needs root"), "type: sudo tulle "+name+" …")
}
