package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Exit codes that commands share.
const (
	OK      = 0
	Failure = 1
	Usage   = 2
)

// DefaultRun is where a running mesh keeps its sockets and state.
const DefaultRun = "/run/tulle"

// Env is the world outside, as main hands it to a command.
type Env struct {
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
	// Environ is the process environment, "KEY=VALUE".
	Environ []string
	// Cluster is the Kubernetes cluster that is looked at; "": it is this host.
	Cluster string
}

// Getenv returns the value of the last entry for key, "" if there is none.
func (e *Env) Getenv(key string) string {
	value := ""
	for _, kv := range e.Environ {
		if k, v, ok := strings.Cut(kv, "="); ok && k == key {
			value = v
		}
	}
	return value
}

// Command is one row of the CLI's table.
type Command struct {
	Name string
	Help string // one line, no full stop
	// Run does the work and returns the exit code. It returns early when ctx
	// ends, which is when the user wants the command to stop.
	Run func(ctx context.Context, env *Env, args []string) int
}

// Hint is an error together with what to type next.
type Hint struct {
	Err  error
	Next string // a command or an instruction, no full stop
}

func (h *Hint) Error() string { return h.Err.Error() + "; " + h.Next }

// Unwrap returns the bare error.
func (h *Hint) Unwrap() error { return h.Err }

// WithHint adds what to type next to err, unless it already carries that.
func WithHint(err error, next string) error {
	var h *Hint
	if err == nil || errors.As(err, &h) {
		return err
	}
	return &Hint{Err: err, Next: next}
}

// Fail prints err as the one line the user sees and returns Failure, or Usage
// for an error in the command line itself. Nil prints nothing and returns OK.
func (e *Env) Fail(err error) int {
	if err == nil {
		return OK
	}
	e.Errorf("%v", err)
	var bad *UsageError
	if errors.As(err, &bad) {
		return Usage
	}
	return Failure
}

// Errorf prints one line on stderr, prefixed as all of tulle's are.
func (e *Env) Errorf(format string, args ...any) {
	line := strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", "; ")
	_, _ = fmt.Fprintf(e.Stderr, "tulle: %s\n", line)
}
