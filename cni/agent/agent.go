package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tulle-mesh/tulle/cni/redirect"
	"github.com/tulle-mesh/tulle/mesh/cluster"
)

// Config is what an agent needs.
type Config struct {
	// Socket is where it is asked. Its folder is made, for root alone.
	Socket string
	// Results is the folder in which the runtime's CNI library keeps the
	// results of its plugins, usually /var/lib/cni/results.
	Results string
	// Run is the machine's /run, as this process sees it: the results name
	// network namespaces below that.
	Run string
	// Redirect is one of Redirects; redirect.Auto takes the best that the
	// machine can.
	Redirect string
	// Node is where eBPF programs are pinned and attached. This process may live in
	// namespaces of its own: both paths have to be given.
	Node redirect.Node
	Log  *slog.Logger

	kernel kernel // nil, but in tests: this machine's
}

// Validate reports everything that is wrong.
func (c Config) Validate() error {
	var errs []error
	for what, value := range map[string]string{"socket": c.Socket, "results": c.Results, "run": c.Run} {
		if !filepath.IsAbs(value) {
			errs = append(errs, fmt.Errorf("%s: %q is not an absolute path", what, value))
		}
	}
	if !slices.Contains(Redirects, c.Redirect) {
		errs = append(errs, fmt.Errorf("redirect: %q is none of %s", c.Redirect, strings.Join(Redirects, ", ")))
	}
	if c.Log == nil {
		errs = append(errs, errors.New("log: must be given"))
	}
	return errors.Join(errs...)
}

// Agent redirects the traffic of pods. Its methods may be called from many
// goroutines.
type Agent struct {
	config Config
	kernel kernel
	ready  chan struct{}
	first  string // backend for pods that start; constant once ready
}

// New returns an agent that does nothing until it is run.
func New(c Config) (*Agent, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if c.kernel == nil {
		c.kernel = machine{c.Node}
	}
	return &Agent{config: c, kernel: c.kernel, ready: make(chan struct{})}, nil
}

// Ready is closed once the agent can be asked.
func (a *Agent) Ready() <-chan struct{} { return a.ready }

// Run makes the machine ready, and serves until ctx ends; it returns when all
// requests are answered. The socket of an agent that was killed is taken over.
func (a *Agent) Run(ctx context.Context) error {
	if err := a.choose(); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(a.config.Socket), 0o700); err != nil {
		return err
	}
	if err := os.Remove(a.config.Socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	listener, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: a.config.Socket, Net: "unixpacket"})
	if err != nil {
		return err
	}
	listener.SetUnlinkOnClose(false) // it would remove the next agent's as well
	own, err := os.Lstat(a.config.Socket)
	if err == nil {
		err = os.Chmod(a.config.Socket, 0o600)
	}
	if err != nil {
		_ = listener.Close()
		return err
	}
	defer context.AfterFunc(ctx, func() {
		if now, err := os.Lstat(a.config.Socket); err == nil && os.SameFile(own, now) {
			_ = os.Remove(a.config.Socket)
		}
		_ = listener.Close() // only now: as long as it is open, no other file has its number
	})()
	close(a.ready)
	var all sync.WaitGroup
	defer all.Wait()
	collecting, end := context.WithCancel(ctx)
	defer end()
	all.Go(func() { a.collect(collecting) })
	for {
		conn, err := listener.AcceptUnix()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept on %s: %w", a.config.Socket, err)
		}
		all.Go(func() { a.serve(conn) })
	}
}

// serve answers one request.
func (a *Agent) serve(conn *net.UnixConn) {
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(patience))
	var reply Reply
	if err := a.answer(conn); err != nil {
		reply.Error = err.Error()
	}
	packet, err := json.Marshal(reply)
	if err == nil {
		_, err = conn.Write(packet)
	}
	if err != nil {
		a.config.Log.Warn("the plugin did not wait for its answer", "error", err)
	}
}

func (a *Agent) answer(conn *net.UnixConn) error {
	if err := onlyRoot(conn); err != nil {
		return err
	}
	request, netns, err := receive(conn)
	if err != nil {
		return fmt.Errorf("read the plugin's request: %w", err)
	}
	if netns != nil {
		defer netns.Close()
	}
	switch request.Command {
	case Status:
		return nil
	case Add:
		err = a.redirect(request.Pod, request.Annotations, netns, false)
	default:
		return fmt.Errorf("unknown command %q", request.Command)
	}
	if err != nil {
		a.config.Log.Error("pod not redirected", "command", request.Command, "pod", request.Pod, "error", err)
	}
	return err
}

// onlyRoot refuses peers that are not root: the socket's mode does, too, but a
// mode is changed more easily than a program.
func onlyRoot(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var peer *unix.Ucred
	var asked error
	err = raw.Control(func(fd uintptr) { peer, asked = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(err, asked); err != nil {
		return err
	}
	if peer.Uid != 0 {
		return fmt.Errorf("only root may ask, not user %d", peer.Uid)
	}
	return nil
}

// redirect makes the kernel send the traffic of the pod in netns to its proxy,
// if the pod has one; late: it runs already.
func (a *Agent) redirect(pod string, annotations map[string]string, netns *os.File, late bool) error {
	if !Meshed(annotations) {
		return nil
	}
	if netns == nil {
		return errors.New("no network namespace came with the request")
	}
	rules, err := Rules(annotations)
	if err != nil {
		return err
	}
	backend, err := a.backend(netns, late)
	if err != nil {
		return err
	}
	if err := backend.Apply(rules); err != nil {
		return err
	}
	a.config.Log.Info("pod redirected", "pod", pod, "backend", backend.Name())
	return nil
}

// Meshed tells whether a pod has a proxy to which we have to send its traffic: no
// container of its own does. Where that annotation lies, the proxy's startup
// probe is never answered. The webhook takes off one that was copied.
func Meshed(annotations map[string]string) bool {
	return annotations[cluster.InjectedAnnotation] != "" && annotations[cluster.RedirectAnnotation] != cluster.RedirectInit
}
