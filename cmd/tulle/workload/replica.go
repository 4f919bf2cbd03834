package workload

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
	"github.com/tulle-mesh/tulle/cmd/tulle/dns"
	"github.com/tulle-mesh/tulle/cmd/tulle/network"
	"github.com/tulle-mesh/tulle/cni/redirect"
	"github.com/tulle-mesh/tulle/mesh"
)

// Stdio is what a command reads and writes. Files are handed over as they are.
type Stdio struct {
	In       *os.File // nil: nothing to read
	Out, Err io.Writer
}

// replica is one workload. Its fields are set in the order in which up makes
// the things they stand for, and down takes them away in reverse.
type replica struct {
	config *Config
	index  int // 1, 2, …
	lease  *Lease
	dir    string // files of this replica; the daemon made it
	stdio  Stdio
	output *Log // where stdio writes, if detached
	note   func(format string, args ...any)

	log      *Log // of the proxy
	ns       *network.Namespace
	wire     network.Wire
	backend  redirect.Backend // to Remove; nil: there is no need to
	leave    func() error     // the host's network; nil: it is not in there
	aside    *network.Thread  // the proxy's
	proxy    *proxy
	group    Cgroup
	entered  *os.File // in the host's network: the cgroup whose connections are redirected
	proxyPID atomic.Int64
	conf     resolvConf
	names    *standIn
	process  *process

	watch   sync.WaitGroup // the readiness check
	unwatch context.CancelFunc

	closing sync.Once
	closed  error // what close returned
}

func (r *replica) name() string { return r.lease.Grant.Replica }

// up makes everything a command needs to run in the mesh. After an error, as
// after a success, down has to be called.
func (r *replica) up(ctx context.Context) error {
	if err := r.writeFiles(); err != nil {
		return fmt.Errorf("%s: %w", r.name(), err)
	}
	if err := r.connect(); err != nil {
		return fmt.Errorf("%s: %w", r.name(), err)
	}
	r.names.attach(r.ns.Thread, r.conf)
	// Before the proxy, whose first connection would otherwise begin untracked and
	// then, in mid-handshake, be taken for a forgery by the redirect's guard.
	if err := r.ns.Do(r.redirect); err != nil {
		return fmt.Errorf("%s: %w", r.name(), err)
	}
	// The proxy gets its certificate while the rest is done.
	proxied := make(chan error, 1)
	go func() { proxied <- r.startProxy(ctx) }()
	err := r.ns.Do(func() error { return privateFiles(r.conf.path, !r.config.HostNetwork) })
	if err != nil {
		err = fmt.Errorf("%s: %w", r.name(), err)
	}
	return errors.Join(err, <-proxied)
}

func (r *replica) writeFiles() error {
	host, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		host = nil // privateFiles has more to say about it
	}
	var servers []netip.Addr
	for _, s := range []string{r.lease.Grant.Gateway4, r.lease.Grant.Gateway6} {
		if addr, err := netip.ParseAddr(s); err == nil {
			servers = append(servers, addr)
		}
	}
	r.conf, err = newResolvConf(filepath.Join(r.dir, "resolv.conf"), dns.ParseResolvConf(string(host)), servers, r.names.addr.Addr(), r.lease.Grant.DnsDomain)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(r.dir, "roots.pem"), r.lease.Grant.RootsPem, 0o644); err != nil {
		return err
	}
	r.log, err = OpenLog(filepath.Join(r.dir, "proxy.log"))
	return err
}

// connect gives the replica its namespace and its place on the bridge.
func (r *replica) connect() error {
	g := r.lease.Grant
	var err error
	if r.wire, err = wireOf(g); err != nil {
		return err
	}
	if r.config.HostNetwork {
		return r.connectHost()
	}
	if r.ns, err = network.NewNamespace(NamespaceName(g.Replica)); err != nil {
		return err
	}
	return r.ns.Connect(r.wire)
}

func wireOf(g *tullev1.Lease) (network.Wire, error) {
	w := network.Wire{Bridge: g.Bridge, MTU: int(g.Mtu)}
	var errs []error
	for _, p := range []struct {
		text string
		into *netip.Prefix
	}{{g.Address4, &w.Address4}, {g.Address6, &w.Address6}} {
		if p.text == "" {
			continue
		}
		var err error
		*p.into, err = netip.ParsePrefix(p.text)
		errs = append(errs, err)
	}
	for _, a := range []struct {
		text string
		into *netip.Addr
	}{{g.Gateway4, &w.Gateway4}, {g.Gateway6, &w.Gateway6}} {
		if a.text == "" {
			continue
		}
		var err error
		*a.into, err = netip.ParseAddr(a.text)
		errs = append(errs, err)
	}
	if !w.Address4.IsValid() {
		errs = append(errs, errors.New("the lease has no IPv4 address"))
	}
	if err := errors.Join(errs...); err != nil {
		return w, err
	}
	w.Link = network.LinkName(w.Address4.Addr())
	return w, nil
}

// redirect runs on the namespace's thread.
func (r *replica) redirect() error {
	if r.config.HostNetwork {
		return r.redirectHost()
	}
	backend, _, err := redirect.Pick(r.lease.Grant.Redirect, nil)
	if err != nil {
		return err
	}
	if backend.Name() == mesh.RedirectEBPF {
		r.backend = backend // the others' rules go with the namespace
	}
	return backend.Apply(redirect.Rules{})
}

func (r *replica) startProxy(ctx context.Context) error {
	var err error
	if r.aside, err = r.ns.Another(); err != nil {
		return fmt.Errorf("%s: %w", r.name(), err)
	}
	g := r.lease.Grant
	policy := "permissive"
	if r.config.Strict {
		policy = "strict"
	}
	var shared []string
	if r.config.HostNetwork {
		shared = r.proxyAddresses()
	}
	p := &proxy{
		name: g.Replica, program: r.config.Proxy, roots: filepath.Join(r.dir, "roots.pem"),
		args: append([]string{
			"--workload", g.Replica, "--service", g.Service, "--identity", g.Identity,
			"--control", g.ControlAddress, "--roots-file", fmt.Sprintf("/proc/self/fd/%d", rootsFD),
			"--networks", strings.Join(g.Networks, ","), "--redirect", g.Redirect, "--policy", policy,
			"--token-fd", strconv.Itoa(tokenFD), "--ready-fd", strconv.Itoa(readyFD),
		}, shared...),
		thread: r.aside, tokens: r.lease.Token, log: r.log, note: r.note,
		started: func(pid int) {
			r.proxyPID.Store(int64(pid))
			r.lease.Report(func(s *tullev1.Status) { s.ProxyPid = int32(pid) })
		},
	}
	if err := p.start(ctx); err != nil {
		return err
	}
	r.proxy = p
	return nil
}

// begin starts the command and the check for its readiness.
func (r *replica) begin(who account) error {
	dir, err := r.cgroup()
	if err != nil {
		return fmt.Errorf("%s: cgroup: %w", r.name(), err)
	}
	if dir != nil {
		defer func() { _ = dir.Close() }()
	}
	env := append(r.environ(who), "TULLE_NAME="+r.lease.Grant.Service, "TULLE_REPLICA="+strconv.Itoa(r.index))
	env = append(env, r.config.Env...)
	p, err := start(r.ns.Thread, r.config.Command, env, who, dir, r.stdio)
	if err != nil {
		return err
	}
	r.process = p
	r.lease.Report(func(s *tullev1.Status) {
		s.CommandPid = int32(p.cmd.Process.Pid)
		s.Ready = len(r.config.Ports) == 0
	})
	var ctx context.Context
	ctx, r.unwatch = context.WithCancel(context.Background())
	if len(r.config.Ports) > 0 {
		r.watch.Go(func() { r.watchPorts(ctx) })
	}
	return nil
}

// cgroup returns the directory of the cgroup that the command shall start in; nil
// where there is no need for one. The caller has to close it.
func (r *replica) cgroup() (*os.File, error) {
	if r.config.HostNetwork {
		dir := r.entered // and no other one, were it of the same name: the redirect hangs on it
		if r.entered = nil; dir == nil {
			return nil, errors.New("there is none, and without it nothing would be redirected")
		}
		return dir, nil
	}
	since, _ := StartTime(os.Getpid())
	r.group = CgroupFor(r.name(), os.Getpid(), since)
	if r.group.Dir == "" {
		return nil, nil
	}
	dir, err := r.group.open()
	if errors.Is(err, unix.EROFS) || errors.Is(err, fs.ErrPermission) {
		return nil, nil // inside a container: the network namespace has to do to find what is left
	}
	return dir, err
}

func (r *replica) environ(who account) []string {
	env := append([]string(nil), r.config.Environ...)
	if who.credential != nil {
		env = append(env, "HOME="+who.home, "USER="+who.name, "LOGNAME="+who.name)
	}
	return env
}

// Readiness is read from the kernel's list of listeners, not found out by
// connecting: the application would see a client that says nothing, and some (MariaDB)
// lock such clients out.

// How often the ports are looked at: a start is noticed at once, a stop within
// a second.
const (
	eagerCheck = 20 * time.Millisecond
	eagerTime  = 10 * time.Second
	lazyCheck  = time.Second
)

// watchPorts reports the replica as ready while all its declared ports have a
// listener.
func (r *replica) watchPorts(ctx context.Context) {
	began := time.Now()
	warned := false
	for {
		var listeners []netip.AddrPort
		_ = r.ns.Do(func() (err error) { // an error is as good as no listener
			listeners, err = network.Listeners()
			return err
		})
		ready, hidden := served(r.config.Ports, listeners)
		r.lease.Report(func(s *tullev1.Status) { s.Ready = ready && !s.Exited })
		if len(hidden) > 0 && !warned && time.Since(began) > time.Second {
			warned = true
			r.note("%s listens on 127.0.0.1:%d only, where nobody else can reach it; let it listen on 0.0.0.0 or [::]", r.name(), hidden[0])
		}
		wait := lazyCheck
		if !ready && time.Since(began) < eagerTime {
			wait = eagerCheck
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// served tells whether all ports have a listener that others can reach, and
// which ones have only one on loopback.
func served(ports []uint16, listeners []netip.AddrPort) (all bool, hidden []uint16) {
	all = true
	for _, p := range ports {
		open, local := false, false
		for _, l := range listeners {
			if l.Port() == p {
				local = local || l.Addr().IsLoopback()
				open = open || !l.Addr().IsLoopback()
			}
		}
		all = all && open
		if local && !open {
			hidden = append(hidden, p)
		}
	}
	return all, hidden
}

// Times of a replica's end.
const (
	// vanishTime lets the callers' proxies hear that the replica goes, before it
	// stops accepting.
	vanishTime = 100 * time.Millisecond
	// stopTimeout is how long a command that was asked to end may take.
	stopTimeout = 10 * time.Second
)

// fail reports a command that could not be started.
func (r *replica) fail(err error) {
	r.lease.Report(func(s *tullev1.Status) { s.Exited, s.ExitCode = true, int32(startCode(err)) })
}

// finish waits for the command to end, by itself or because the daemon asks
// for it, and returns its exit code.
func (r *replica) finish() int {
	exited := make(chan int, 1)
	go func() { exited <- r.process.wait() }()
	var code int
	select {
	case code = <-exited:
	case <-r.lease.Stop():
		r.lease.Report(func(s *tullev1.Status) { s.Ready = false })
		time.Sleep(vanishTime)
		r.signal(unix.SIGTERM)
		select {
		case code = <-exited:
		case <-time.After(stopTimeout):
			r.note("%s did not end within %s of being asked to; it is killed", r.name(), stopTimeout)
			r.signal(unix.SIGKILL)
			code = <-exited
		}
	}
	r.lease.Report(func(s *tullev1.Status) { s.Ready, s.Exited, s.ExitCode = false, true, int32(code) })
	r.explainFork(code)
	return code
}

// explainFork speaks up when a server has sent itself to the background, as
// many do unless told otherwise: to us that looks like the end.
func (r *replica) explainFork(code int) {
	if code != 0 || len(r.config.Ports) == 0 {
		return
	}
	if n := len(remains(r.group, r.ns.Path, int(r.proxyPID.Load()))); n > 0 {
		r.note("the command of %s ended and left %d processes in the background, which end with it; let it stay in the foreground (nginx: -g 'daemon off;')", r.name(), n)
	}
}

func (r *replica) signal(sig os.Signal) {
	if r.process != nil {
		_ = r.process.cmd.Process.Signal(sig)
	}
}

// close takes everything down and gives the lease back; only the first call
// does anything.
func (r *replica) close() error {
	r.closing.Do(func() {
		r.closed = r.down()
		r.lease.Report(func(s *tullev1.Status) {
			if !s.Exited {
				s.Ready, s.Exited, s.ExitCode = false, true, CodeOwn
			}
		})
		r.lease.Leave()
	})
	return r.closed
}

// down takes away whatever up and begin have made.
func (r *replica) down() error {
	r.names.detach()
	if r.unwatch != nil {
		r.unwatch()
		r.watch.Wait()
	}
	var errs []error
	if r.ns != nil {
		errs = append(errs, KillRemains(r.group, r.ns.Path, int(r.proxyPID.Load())))
	}
	if r.process != nil {
		r.process.output.Wait()
	}
	if r.proxy != nil {
		r.proxy.end()
	}
	if r.aside != nil {
		r.aside.Close()
	}
	if r.config.HostNetwork {
		errs = append(errs, r.leaveHost())
	} else if r.ns != nil && r.wire.Link != "" {
		errs = append(errs, network.DeleteLink(r.wire.Link)) // before the redirect: what may still live gets nowhere
	}
	if r.backend != nil {
		errs = append(errs, r.ns.Do(r.backend.Remove))
	}
	if r.ns != nil {
		errs = append(errs, r.ns.Close())
	}
	for _, log := range []*Log{r.log, r.output} {
		if log != nil {
			errs = append(errs, log.Close())
		}
	}
	return errors.Join(errs...)
}
