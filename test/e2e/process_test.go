package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience bounds every wait of the tests. It is far above what anything takes,
// so that a loaded machine fails no test.
const patience = 60 * time.Second

// process is a program under test with what it printed.
type process struct {
	cmd            *exec.Cmd
	stdout, stderr *output
	ended          chan struct{}
}

// result is what a user sees of a program that has ended.
type result struct {
	stdout, stderr string
	code           int
}

func (r result) String() string {
	return fmt.Sprintf("exit code %d\nstdout: %sstderr: %s", r.code, block(r.stdout), block(r.stderr))
}

func block(s string) string {
	if len(s) > 6000 {
		s = s[:3000] + "\n…\n" + s[len(s)-3000:]
	}
	return strings.TrimRight("\n  "+strings.ReplaceAll(s, "\n", "\n  "), " ") + "\n"
}

// start runs a program until it ends, or until the end of the test.
func start(t *testing.T, argv ...string) *process {
	t.Helper()
	return startCommand(t, exec.Command(argv[0], argv[1:]...))
}

func startCommand(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{cmd: cmd, stdout: &output{}, stderr: &output{}, ended: make(chan struct{})}
	if cmd.Stdout == nil {
		cmd.Stdout = p.stdout
	}
	if cmd.Stderr == nil {
		cmd.Stderr = p.stderr
	}
	cmd.WaitDelay = 2 * time.Second // what a forked grandchild holds open does not count
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", strings.Join(cmd.Args, " "), err)
	}
	go func() {
		defer close(p.ended)
		cmd.Wait()
	}()
	t.Cleanup(func() {
		p.stop()
		if t.Failed() && p.stderr.String()+p.stdout.String() != "" {
			t.Logf("$ %s\n%s", strings.Join(cmd.Args, " "), p.result())
		}
	})
	return p
}

// wait returns what the program printed, after its end.
func (p *process) wait(t *testing.T) result {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(2 * patience):
		t.Errorf("still running: %s", strings.Join(p.cmd.Args, " "))
		p.stop()
	}
	return p.result()
}

// result is what there is so far.
func (p *process) result() result {
	r := result{stdout: p.stdout.String(), stderr: p.stderr.String(), code: -1}
	select {
	case <-p.ended:
		r.code = p.cmd.ProcessState.ExitCode()
		if ws, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			r.code = 128 + int(ws.Signal())
		}
	default:
	}
	return r
}

// stop ends the program: politely first, then not.
func (p *process) stop() {
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		p.signal(s)
		select {
		case <-p.ended:
			return
		case <-time.After(10 * time.Second):
		}
	}
}

func (p *process) signal(s syscall.Signal) {
	select {
	case <-p.ended:
	default:
		p.cmd.Process.Signal(s)
	}
}

// awaitText waits until a stream holds a text.
func (p *process) awaitText(t *testing.T, from *output, text string) {
	t.Helper()
	eventually(t, func() error {
		if strings.Contains(from.String(), text) {
			return nil
		}
		select {
		case <-p.ended:
			if !strings.Contains(from.String(), text) {
				t.Fatalf("ended before it said %q: %s\n%s", text, strings.Join(p.cmd.Args, " "), p.result())
			}
		default:
		}
		return fmt.Errorf("%s has not said %q", strings.Join(p.cmd.Args, " "), text)
	})
}

// output collects what a program prints while others read it.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// must runs a command of the system to its end and fails the test unless it succeeds.
func must(t *testing.T, argv ...string) string {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			out = append(out, exit.Stderr...)
		}
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
	return string(out)
}

// eventually waits until check returns nil.
func eventually(t *testing.T, check func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if err = check(); err == nil {
			return
		}
	}
	t.Fatalf("after %v: %v", patience, err)
}

func fileExists(path string) error {
	_, err := os.Stat(path)
	return err
}
