package workload

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
	"github.com/tulle-mesh/tulle/cmd/tulle/network"
)

// buffer is written by several goroutines.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// config is a run of a shell script.
func (d *daemon) config(script string) (Config, *buffer, *buffer) {
	out, errs := &buffer{}, &buffer{}
	return Config{
		Service: "web", Replicas: 1, Command: []string{"/bin/sh", "-c", script}, Environ: os.Environ(),
		Stdout: out, Stderr: errs, RunDir: d.run, Proxy: filepath.Join(d.run, "proxy"), Host: d.client,
	}, out, errs
}

// checkClean fails the test if a run has left something behind.
func checkClean(t *testing.T) {
	t.Helper()
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if l.Name != "lo" && l.Name != testBridge.Name {
			t.Errorf("left link %s", l.Name)
		}
	}
	for _, pattern := range []string{network.NamespaceDir + "/*", cgroupRoot() + "/tulle/web-*." + strconv.Itoa(os.Getpid()) + ".*"} {
		if left, _ := filepath.Glob(pattern); len(left) > 0 {
			t.Errorf("left %v", left)
		}
	}
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range procs {
		if cmd, err := os.ReadFile(path); err == nil && bytes.Contains(cmd, []byte("sleep")) {
			t.Errorf("left process %s: %q", filepath.Dir(path), cmd)
		}
	}
}

func TestExitCodesPassThrough(t *testing.T) {
	d := startDaemon(t)
	for _, tc := range []struct {
		name    string
		command []string
		code    int
		err     string
	}{
		{"success", []string{"true"}, 0, ""},
		{"code", []string{"sh", "-c", "exit 7"}, 7, ""},
		{"signal", []string{"sh", "-c", "kill -9 $$"}, 137, ""},
		{"not found", []string{"no-such-command"}, 127, "no-such-command: command not found"},
		{"not found by path", []string{"/no/such"}, 127, "does not exist"},
		{"not executable", []string{"/etc/passwd"}, 126, "permission denied"},
		{"a directory", []string{"/etc"}, 126, "cannot be executed"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, _, _ := d.config("")
			c.Command = tc.command
			code, err := Run(t.Context(), c)
			if code != tc.code || (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
				t.Errorf("got %d, %v; want %d, %q", code, err, tc.code, tc.err)
			}
			checkClean(t)
		})
	}
}

func TestWorkloadSeesItsOwnNetwork(t *testing.T) {
	d := startDaemon(t)
	c, out, errs := d.config(`
		ls /sys/class/net | tr '\n' ' '
		cat /etc/resolv.conf
		ls /run/netns | wc -l
		echo "$TULLE_NAME $TULLE_REPLICA $A"
		ls /proc/self/fd | wc -l`)
	c.Env = []string{"A=b c"}
	if code, err := Run(t.Context(), c); code != 0 || err != nil {
		t.Fatal(code, err, errs)
	}
	for _, want := range []string{"eth0 lo ", "nameserver 10.84.0.1\n", "nameserver fd84::1\n", "search mesh", "web 1 b c"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("output lacks %q:\n%s", want, out)
		}
	}
	checkClean(t)
}

func TestProxyHasNoPower(t *testing.T) {
	d := startDaemon(t)
	// The proxy's last words may reach its log after it has said that it is ready.
	log := filepath.Join(d.run, "workloads/web-1/proxy.log")
	c, out, _ := d.config("for i in $(seq 500); do grep -q ^cwd " + log + " && break; sleep 0.02; done; cat " + log)
	if code, err := Run(t.Context(), c); code != 0 || err != nil {
		t.Fatal(code, err)
	}
	for _, want := range []string{
		"token secret\n", "Uid:\t2102\t2102\t2102\t2102\n", "Gid:\t2102\t2102\t2102\t2102\n", "Groups:\t \n",
		"CapInh:\t0000000000000000\n", "CapPrm:\t0000000000000000\n", "CapEff:\t0000000000000000\n", "CapBnd:\t0000000000000000\n",
		"NoNewPrivs:\t1\n", "cwd / roots roots args --workload web-1 --service web --identity spiffe://tulle.local/ns/default/sa/web",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("log lacks %q:\n%s", want, out)
		}
	}
}

func TestNothingOutlivesTheCommand(t *testing.T) {
	d := startDaemon(t)
	// One left in the session, one out of it, one that also left the cgroup.
	c, _, errs := d.config(`
		sleep 1001 & setsid sleep 1002 &
		sh -c 'echo $$ > ` + cgroupRoot() + `/cgroup.procs; exec setsid sleep 1003' &
		sleep 0.1; exit 4`)
	if code, err := Run(t.Context(), c); code != 4 || err != nil {
		t.Fatal(code, err, errs)
	}
	checkClean(t)
}

func TestServerThatForksIsExplained(t *testing.T) {
	d := startDaemon(t)
	c, _, errs := d.config("setsid sleep 1001 &")
	c.Ports = []uint16{80}
	if code, err := Run(t.Context(), c); code != 0 || err != nil {
		t.Fatal(code, err)
	}
	if !strings.Contains(errs.String(), "the command of web-1 ended and left 1 processes in the background") {
		t.Errorf("stderr: %q", errs)
	}
	checkClean(t)
}

func TestReplicasArePrefixed(t *testing.T) {
	d := startDaemon(t)
	c, out, errs := d.config(`echo "I am $TULLE_REPLICA"; printf last >&2; exit $((TULLE_REPLICA - 1))`)
	c.Replicas = 3
	if code, err := Run(t.Context(), c); code != 1 || err != nil {
		t.Fatal(code, err)
	}
	for _, want := range []string{"web-1 | I am 1\n", "web-2 | I am 2\n", "web-3 | I am 3\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("output lacks %q:\n%s", want, out)
		}
	}
	if !strings.Contains(errs.String(), "web-2 | last\n") {
		t.Errorf("stderr: %s", errs)
	}
	for i, reg := range d.joined {
		if reg.GetAdd() != (i > 0) {
			t.Errorf("join %d: add %v", i, reg.GetAdd())
		}
	}
	checkClean(t)
}

// background is a Run in a goroutine.
func background(ctx context.Context, c Config) <-chan int {
	done := make(chan int, 1)
	go func() {
		code, err := Run(ctx, c)
		if err != nil {
			code = -1
		}
		done <- code
	}()
	return done
}

func TestReadyFollowsTheListener(t *testing.T) {
	d := startDaemon(t)
	c, _, _ := d.config(`read x < ` + filepath.Join(d.run, "go") + `; exec python3 -c '
import socket, time
s = socket.socket(); s.bind(("0.0.0.0", 8080)); s.listen(); time.sleep(1000)'`)
	if err := unix.Mkfifo(filepath.Join(d.run, "go"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.Ports = []uint16{8080}
	done := background(t.Context(), c)
	d.await(func() bool { s := d.statuses["web-1"]; return s.GetCommandPid() > 0 })
	d.mu.Lock()
	if d.statuses["web-1"].GetReady() {
		t.Error("ready before it listens")
	}
	d.mu.Unlock()
	if err := os.WriteFile(filepath.Join(d.run, "go"), []byte("go\n"), 0); err != nil {
		t.Fatal(err)
	}
	d.await(func() bool { return d.statuses["web-1"].GetReady() })
	close(d.stop)
	if code := <-done; code != 128+int(unix.SIGTERM) {
		t.Errorf("exit code %d", code)
	}
	if s := d.statuses["web-1"]; s.GetReady() || !s.GetExited() || s.GetExitCode() != 143 {
		t.Errorf("last status: %v", s)
	}
	checkClean(t)
}

func TestSignalsAreForwarded(t *testing.T) {
	d := startDaemon(t)
	c, out, _ := d.config(`trap 'echo usr1' USR1; trap 'echo term; exit 9' TERM; echo trapped > ` + filepath.Join(d.run, "trapped") + `
		while :; do sleep 0.02; done`)
	done := background(t.Context(), c)
	awaitFile(t, filepath.Join(d.run, "trapped"))
	for _, sig := range []syscall.Signal{unix.SIGUSR1, unix.SIGTERM} {
		if err := syscall.Kill(os.Getpid(), sig); err != nil {
			t.Fatal(err)
		}
		for sig == unix.SIGUSR1 && !strings.Contains(out.String(), "usr1") {
			time.Sleep(5 * time.Millisecond)
		}
	}
	if code := <-done; code != 9 || out.String() != "usr1\nterm\n" {
		t.Errorf("code %d, output %q", code, out)
	}
}

func awaitFile(t *testing.T, path string) {
	t.Helper()
	for {
		if _, err := os.Stat(path); err == nil {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestDeadProxyIsReplaced(t *testing.T) {
	d := startDaemon(t)
	c, _, errs := d.config("sleep 1000")
	done := background(t.Context(), c)
	d.await(func() bool { return d.statuses["web-1"].GetCommandPid() > 0 })
	d.mu.Lock()
	first := d.statuses["web-1"].GetProxyPid()
	d.mu.Unlock()
	if err := syscall.Kill(int(first), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	d.await(func() bool { return d.statuses["web-1"].GetProxyPid() != first })
	close(d.stop)
	<-done
	if got := errs.String(); !strings.Contains(got, "the proxy of web-1 ended (signal: killed)") {
		t.Errorf("stderr: %q", got)
	}
	checkClean(t)
}

func TestLeaseIsTakenUpAgain(t *testing.T) {
	d := startDaemon(t)
	c, _, errs := d.config("sleep 1000")
	done := background(t.Context(), c)
	d.await(func() bool { return d.statuses["web-1"].GetCommandPid() > 0 })
	d.restart(t)
	d.await(func() bool { return len(d.joined) == 2 })
	second := d.joined[1]
	if second.GetReplica() != "web-1" || second.GetAddress4() != "10.84.0.2/16" || second.GetAddress6() != "fd84::2/64" || second.GetAdd() {
		t.Errorf("joined again as %v", second)
	}
	d.change(func() { delete(d.statuses, "web-1") })
	close(d.stop)
	if code := <-done; code != 143 {
		t.Errorf("exit code %d", code)
	}
	for _, want := range []string{"the mesh's daemon is away", "web-1 has joined again"} {
		if !strings.Contains(errs.String(), want) {
			t.Errorf("stderr lacks %q: %s", want, errs)
		}
	}
	checkClean(t)
}

// oneName is a mesh of one service.
type oneName struct{}

func (oneName) Lookup(name string) ([]netip.Addr, bool) {
	return []netip.Addr{netip.MustParseAddr("10.84.128.9")}, name == "api"
}

func (oneName) Reverse(netip.Addr) (string, bool) { return "", false }

func TestNamesAreKnownWhileTheDaemonIsAway(t *testing.T) {
	d := startDaemon(t)
	if err := unix.Mkfifo(filepath.Join(d.run, "go"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, out, _ := d.config("read x < " + filepath.Join(d.run, "go") + "; getent ahostsv4 api | head -1")
	c.Names, c.Upstreams = oneName{}, func() []netip.AddrPort { return nil }
	done := background(t.Context(), c)
	d.await(func() bool { return d.statuses["web-1"].GetCommandPid() > 0 })
	d.server.Stop()
	for { // until the stand-in serves
		conf, err := os.ReadFile(filepath.Join(d.run, "workloads/web-1/resolv.conf"))
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(string(conf), "nameserver "+standInAddr.Addr().String()) {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	if err := os.WriteFile(filepath.Join(d.run, "go"), []byte("go\n"), 0); err != nil {
		t.Fatal(err)
	}
	if code := <-done; code != 0 || !strings.HasPrefix(out.String(), "10.84.128.9 ") {
		t.Errorf("code %d, output %q", code, out)
	}
	checkClean(t)
}

func TestFailedStartLeavesNothing(t *testing.T) {
	d := startDaemon(t)
	for _, tc := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"name taken", func(c *Config) { c.Service = "taken" }, "name taken"},
		{"proxy fails", func(c *Config) { c.Proxy = "/bin/false" }, "proxy of web-"},
		{"no proxy", func(c *Config) { c.Proxy = "/no/proxy" }, "/no/proxy"},
		{"the proxy's user", func(c *Config) { c.User = "2102" }, "the proxy's own user"},
		{"no command", func(c *Config) { c.Command = nil }, "tulle run web -- COMMAND"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, _, _ := d.config("true")
			tc.change(&c)
			code, err := Run(t.Context(), c)
			if code != CodeOwn || err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %d, %v", code, err)
			}
			checkClean(t)
		})
	}
}

func TestSweepRemovesWhatAKilledRunLeaves(t *testing.T) {
	startDaemon(t)
	ns, err := network.NewNamespace(NamespaceName("web-1"))
	if err != nil {
		t.Fatal(err)
	}
	wire, err := wireOf(&tullev1.Lease{Address4: "10.84.0.2/16", Gateway4: "10.84.0.1", Bridge: testBridge.Name, Mtu: 1500})
	if err != nil {
		t.Fatal(err)
	}
	if err := ns.Connect(wire); err != nil {
		t.Fatal(err)
	}
	since, _ := StartTime(os.Getpid())
	var dir *os.File
	if group := CgroupFor("web-1", os.Getpid(), since); group.Dir != "" {
		if dir, err = group.open(); err != nil {
			t.Fatal(err)
		}
	}
	p, err := start(ns.Thread, []string{"sleep", "1000"}, os.Environ(), account{}, dir, Stdio{Out: os.Stdout, Err: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	_ = dir.Close()
	reaped := make(chan int, 1)
	go func() { reaped <- p.wait() }()
	for range 2 { // the second time nothing is left to do
		if err := Sweep("web-1", os.Getpid(), since, wire.Link); err != nil {
			t.Error(err)
		}
	}
	if code := <-reaped; code != 137 {
		t.Errorf("exit code %d", code)
	}
	ns.Thread.Close()
	checkClean(t)
}

func TestUnavailableDaemon(t *testing.T) {
	d := startDaemon(t)
	d.server.Stop()
	c, _, _ := d.config("true")
	code, err := Run(t.Context(), c)
	if code != CodeOwn || err == nil || errors.Is(err, context.Canceled) {
		t.Errorf("got %d, %v", code, err)
	}
}
