package workload

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tulle-mesh/tulle/cmd/tulle/network"
	"github.com/tulle-mesh/tulle/mesh"
)

// Times of a proxy's life.
const (
	readyTimeout = 10 * time.Second       // to be certified and listening
	drainTimeout = 5 * time.Second        // to end its connections
	minRestart   = 100 * time.Millisecond // before a second restart in a row
	maxRestart   = 5 * time.Second
	steady       = 30 * time.Second // having lived so long, it may restart at once again
)

// proxy keeps a tulle-proxy running beside a workload. While there is none the
// workload's traffic is refused: the redirect leads to ports where nobody listens.
type proxy struct {
	name    string // of the replica
	program string
	args    []string
	roots   string // path of the trusted roots; the proxy gets an open file
	thread  *network.Thread
	tokens  func(context.Context) (string, error)
	log     io.Writer
	note    func(format string, args ...any)
	started func(pid int)

	stop chan struct{} // closed: drain and end
	done chan struct{} // closed: ended

	mu   sync.Mutex
	last string // the last line of the log
}

// start returns once the proxy serves, or with the reason why it does not. The
// proxy then lives until end.
func (p *proxy) start(ctx context.Context) error {
	p.stop, p.done = make(chan struct{}), make(chan struct{})
	if err := p.thread.Do(renounce); err != nil {
		return fmt.Errorf("drop the proxy's privileges: %w", err)
	}
	first, err := p.launch()
	if err != nil {
		return err
	}
	if err := first.wait(ctx); err != nil {
		first.kill()
		<-first.logged
		if last := p.lastLine(); last != "" {
			err = fmt.Errorf("%w: %s", err, last)
		}
		return fmt.Errorf("proxy of %s: %w", p.name, err)
	}
	go p.supervise(first)
	return nil
}

// end drains the proxy, at most for drainTimeout, and returns when it is gone.
func (p *proxy) end() {
	close(p.stop)
	<-p.done
}

// supervise restarts the proxy whenever it ends by itself.
func (p *proxy) supervise(current *instance) {
	defer close(p.done)
	restart := time.Duration(0)
	for {
		began := time.Now()
		select {
		case <-p.stop:
			current.drain()
			return
		case <-current.exited:
		}
		if time.Since(began) > steady {
			restart = 0
		}
		p.note("the proxy of %s ended (%s); its traffic is refused until the next one is ready", p.name, current.state())
		for {
			select {
			case <-p.stop:
				return
			case <-time.After(restart):
			}
			restart = min(max(2*restart, minRestart), maxRestart)
			next, err := p.launch()
			if err == nil {
				current = next
				break
			}
			p.note("%v", err)
		}
	}
}

// instance is one process of a proxy.
type instance struct {
	cmd    *exec.Cmd
	ready  chan error    // one value: whether it got ready
	exited chan struct{} // closed when the process has been waited for
	logged chan struct{} // closed when its log has been read to the end
	cancel context.CancelFunc
}

// Files that a proxy inherits.
const (
	tokenFD = 3 + iota
	readyFD
	rootsFD
	programFD
)

// launch starts a process, and what serves it: tokens, log.
func (p *proxy) launch() (*instance, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socketpair: %w", err)
	}
	if err := unix.SetNonblock(pair[0], true); err != nil { // so that Close ends a Read
		return nil, fmt.Errorf("socketpair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "token"), os.NewFile(uintptr(pair[1]), "token")
	var open files
	open.add(theirs)
	readyR, readyW, err1 := os.Pipe()
	logR, logW, err2 := os.Pipe()
	open.add(readyW, logW)
	roots, err3 := os.Open(p.roots)
	program, err4 := os.Open(p.program)
	open.add(roots, program)
	defer open.close()
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return nil, fmt.Errorf("proxy of %s: %w", p.name, err)
	}
	cmd := &exec.Cmd{
		Path: p.program, Dir: "/",
		Args: append([]string{"tulle-proxy"}, p.args...),
		Env:  []string{"PATH=/usr/bin:/bin"},
		// Its own process group: a Ctrl-C on the terminal is for the workload. Not
		// its own session: the kernel shares out processors by session where it is
		// told nothing else (sched(7), autogroup), and to whom sleeps as much as a
		// proxy, little.
		SysProcAttr: &syscall.SysProcAttr{
			Setpgid: true, Pdeathsig: unix.SIGKILL,
			Credential: &syscall.Credential{Uid: mesh.ProxyUID, Gid: mesh.ProxyUID},
		},
		Stdout: logW, Stderr: logW,
		ExtraFiles: []*os.File{theirs, readyW, roots, program},
	}
	if !reachable(p.program) {
		// Somewhere below a home directory, say: the open file is as good.
		cmd.Path = fmt.Sprintf("/proc/self/fd/%d", programFD)
	}
	if err := p.thread.Do(cmd.Start); err != nil {
		_, _, _ = ours.Close(), readyR.Close(), logR.Close()
		return nil, fmt.Errorf("start %s: %w", p.program, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	i := &instance{cmd: cmd, ready: make(chan error, 1), exited: make(chan struct{}), logged: make(chan struct{}), cancel: cancel}
	p.started(cmd.Process.Pid)
	go p.copyLog(logR, i.logged)
	go i.awaitReady(readyR)
	go p.serveTokens(ctx, ours)
	go i.reap()
	return i, nil
}

func (i *instance) reap() {
	_ = i.cmd.Wait()
	i.cancel()
	close(i.exited)
}

func (i *instance) awaitReady(r *os.File) {
	defer func() { _ = r.Close() }()
	line, err := bufio.NewReader(r).ReadString('\n')
	if err == nil && line != "ready\n" {
		err = fmt.Errorf("said %q instead of ready", line)
	} else if err != nil {
		err = errors.New("ended before it was ready")
	}
	i.ready <- err
}

// wait returns once the process is ready.
func (i *instance) wait(ctx context.Context) error {
	select {
	case err := <-i.ready:
		return err
	case <-time.After(readyTimeout):
		return fmt.Errorf("not ready within %s", readyTimeout)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (i *instance) drain() {
	_ = i.cmd.Process.Signal(unix.SIGTERM)
	select {
	case <-i.exited:
	case <-time.After(drainTimeout):
		i.kill()
	}
}

func (i *instance) kill() {
	_ = i.cmd.Process.Kill()
	<-i.exited
}

func (i *instance) state() string { return i.cmd.ProcessState.String() }

// serveTokens answers each "token" line of the proxy with a fresh join token.
func (p *proxy) serveTokens(ctx context.Context, conn *os.File) {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	defer func() { _ = conn.Close() }()
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		if lines.Text() != "token" {
			continue
		}
		token, err := p.tokens(ctx)
		if err != nil {
			return
		}
		if _, err := io.WriteString(conn, token+"\n"); err != nil {
			return
		}
	}
}

func (p *proxy) copyLog(r *os.File, end chan<- struct{}) {
	defer close(end)
	defer func() { _ = r.Close() }()
	lines := bufio.NewReaderSize(r, 16<<10)
	for {
		line, err := lines.ReadSlice('\n')
		if len(line) > 0 {
			_, _ = p.log.Write(line)
			p.mu.Lock()
			p.last = strings.TrimSpace(string(line))
			p.mu.Unlock()
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}

func (p *proxy) lastLine() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.last
}

// reachable tells whether any user may walk to path.
func reachable(path string) bool {
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil || info.Mode().Perm()&0o001 == 0 {
			return false
		}
		if dir == "/" || dir == "." {
			return true
		}
	}
}

// files are closed together.
type files []*os.File

func (f *files) add(more ...*os.File) { *f = append(*f, more...) }

func (f files) close() {
	for _, file := range f {
		if file != nil {
			_ = file.Close()
		}
	}
}
