package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tulle-mesh/tulle/cmd/tulle/command"
	"github.com/tulle-mesh/tulle/cmd/tulle/network"
	"github.com/tulle-mesh/tulle/cmd/tulle/workload"
)

func testConfig(t *testing.T) Config {
	t.Helper()
	dir := t.TempDir()
	return Config{
		RunDir: filepath.Join(dir, "run"), StateDir: filepath.Join(dir, "state"),
		Network4: netip.MustParsePrefix("10.84.0.0/16"), Network6: netip.MustParsePrefix("fd84:7475:6c6c:e000::/64"),
		Masquerade: true, Redirect: "auto", Dashboard: "127.0.0.1:4180",
		Out: io.Discard, Log: slog.New(slog.DiscardHandler),
	}
}

// hostState is what a daemon changes.
func hostState(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		fmt.Fprintln(&b, l.Name)
	}
	for _, name := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv4/conf/all/accept_redirects"} {
		v, err := network.Sysctl(name)
		fmt.Fprintln(&b, name, v, err)
	}
	rules, _ := exec.Command("nft", "list", "ruleset").Output()
	b.Write(rules)
	return b.String()
}

// startDaemon returns once the daemon is up; its end comes by cancel.
func startDaemon(t *testing.T, c Config) (cancel context.CancelFunc, done <-chan error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ready := make(chan struct{})
	c.Ready = func() { close(ready) }
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, c) }()
	select {
	case <-ready:
	case err := <-ended:
		cancel()
		t.Fatalf("ended before it was ready: %v", err)
	}
	return cancel, ended
}

func TestUpAndDownRestoresTheHost(t *testing.T) {
	before := hostState(t)
	c := testConfig(t)
	for range 2 { // the second time with the authority of the first
		cancel, done := startDaemon(t, c)
		if hostState(t) == before {
			t.Error("nothing has changed")
		}
		for path, mode := range map[string]os.FileMode{
			c.RunDir: 0o700, HostSocket(c.RunDir): 0o600, APISocket(c.RunDir): 0o600, journalPath(c.RunDir): 0o600, upPath(c.RunDir): 0o600,
		} {
			if info, err := os.Stat(path); err != nil || info.Mode().Perm() != mode {
				t.Errorf("%s: %v, %v", path, info, err)
			}
		}
		if server, err := NameServer(c.RunDir); err != nil || server.String() != "10.84.0.1:53" {
			t.Errorf("name server %v, %v", server, err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if after := hostState(t); after != before {
			t.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
		if _, err := os.Stat(c.RunDir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the run directory is left: %v", err)
		}
	}
}

// TestRunDirectoryRemoved: what up has done is undone though nobody can read any
// more what that was.
func TestRunDirectoryRemoved(t *testing.T) {
	before := hostState(t)
	c := testConfig(t)
	cancel, done := startDaemon(t, c)
	for os.RemoveAll(c.RunDir) != nil { // the daemon has just written the names down
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if after := hostState(t); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	if _, err := os.Stat(c.RunDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the run directory is back: %v", err)
	}
}

// TestStray: a process that holds the lock of a run directory is found, whether or
// not the file is there; one that only waits for the lock, or has another, is not.
func TestStray(t *testing.T) {
	dir := t.TempDir()
	run := filepath.Join(dir, "run")
	link := filepath.Join(dir, "link")
	if err := errors.Join(os.Mkdir(run, 0o700), os.Symlink(run, link)); err != nil {
		t.Fatal(err)
	}
	if pid := Stray(run); pid != 0 {
		t.Errorf("nobody there, found %d", pid)
	}
	holder := func(script string) *exec.Cmd {
		cmd := exec.Command("sh", "-c", script+"; echo; read end", "sh", lockPath(run))
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = in.Close(); _ = cmd.Wait() })
		if _, err := out.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	holder(`exec 9>"$1"`) // has it open, and no more
	if pid := Stray(run); pid != 0 {
		t.Errorf("nobody holds the lock, found %d", pid)
	}
	daemon := holder(`exec 9>"$1"; flock -x 9`)
	for _, remove := range []func() error{
		func() error { return nil },
		func() error { return os.Remove(lockPath(run)) },
		func() error { return os.RemoveAll(run) },
	} {
		if err := remove(); err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{run, link} {
			if _, err := os.Stat(run); err != nil && path == link {
				continue // it leads nowhere
			}
			if pid := Stray(path); pid != daemon.Process.Pid {
				t.Errorf("%s: found %d, want %d", path, pid, daemon.Process.Pid)
			}
		}
	}
	if err := ErrStray(run); err == nil || !strings.Contains(err.Error(), "type: tulle down --run "+run+" && tulle up -d --run "+run) {
		t.Errorf("it says: %v", err)
	}
	if err := ErrStray(filepath.Join(dir, "another")); err != nil {
		t.Errorf("of another directory: %v", err)
	}
}

func TestDownAfterACrash(t *testing.T) {
	before := hostState(t)
	c := testConfig(t)
	// As far as a daemon gets before it is killed.
	d := &daemon{Config: c}
	held, err := d.takeDir()
	if err != nil {
		t.Fatal(err)
	}
	d.mtu, d.backend = 1500, "nftables"
	for _, step := range []func() error{d.recover, d.connect} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	_ = held.Close()
	u, err := loadUp(c.RunDir)
	if err != nil {
		t.Fatal(err)
	}
	u.PidStart++ // so that it is not we
	if err := u.save(c.RunDir); err != nil {
		t.Fatal(err)
	}
	out := &bytes.Buffer{}
	for _, want := range []string{"the host is as it was", "nothing is up"} {
		out.Reset()
		if err := Down(t.Context(), c.RunDir, c.StateDir, false, out); err != nil || !strings.Contains(out.String(), want) {
			t.Errorf("got %q, %v; want %q", out, err, want)
		}
		if after := hostState(t); after != before {
			t.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
	}
}

func TestSecondUp(t *testing.T) {
	c := testConfig(t)
	cancel, done := startDaemon(t, c)
	err := Run(t.Context(), c)
	var hint *command.Hint
	if !errors.As(err, &hint) || !strings.Contains(err.Error(), "up already") || !strings.Contains(hint.Next, "tulle down") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(HostSocket(c.RunDir)); err != nil {
		t.Errorf("the first one's socket: %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestUnreadableRecords: a daemon whose record is garbage has its workloads taken
// over all the same, and down leaves alone only the replica that it cannot read of.
func TestUnreadableRecords(t *testing.T) {
	before := hostState(t)
	c := testConfig(t)
	d := &daemon{Config: c}
	held, err := d.takeDir()
	if err != nil {
		t.Fatal(err)
	}
	living := record{Replica: "web-1", Service: "web", Pid: os.Getpid()}
	living.PidStart, _ = workload.StartTime(living.Pid)
	broken := record{Replica: "web-2"}
	if err := errors.Join(living.save(c.RunDir), broken.save(c.RunDir)); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{upPath(c.RunDir), broken.path(c.RunDir)} {
		if err := os.WriteFile(path, []byte(`{"pid`), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.recover(); err != nil || len(d.leftovers) != 1 {
		t.Errorf("%d taken over, %v", len(d.leftovers), err)
	}
	living.Exited = true // so that nobody ends this test
	if err := errors.Join(living.save(c.RunDir), held.Close()); err != nil {
		t.Fatal(err)
	}
	out := &bytes.Buffer{}
	if err := Down(t.Context(), c.RunDir, c.StateDir, false, out); err != nil || !strings.Contains(out.String(), "web-2/state.json") || !strings.Contains(out.String(), "the host is as it was") {
		t.Errorf("got %q, %v", out, err)
	}
	if after := hostState(t); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

func TestFailedStartLeavesNothing(t *testing.T) {
	before := hostState(t)
	listen := func(addr string) func(*testing.T, *Config) {
		return func(t *testing.T, _ *Config) {
			l, err := net.Listen("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = l.Close() })
		}
	}
	for _, tc := range []struct {
		name  string
		spoil func(*testing.T, *Config)
		want  string
	}{
		{"dashboard port taken", listen("127.0.0.1:4180"), "--dashboard"},
		{"dashboard at another machine's address", func(_ *testing.T, c *Config) { c.Dashboard = "192.0.2.1:4180" }, "--dashboard"},
		{"control port taken", listen("0.0.0.0:4190"), "sport = :4190"},
		{"name server port taken", listen("0.0.0.0:53"), "sport = :53"},
		{"no such backend", func(_ *testing.T, c *Config) { c.Redirect = "magic" }, "magic"},
		{"bad catalog", func(t *testing.T, c *Config) {
			c.Catalog = filepath.Join(t.TempDir(), "c.yaml")
			if err := os.WriteFile(c.Catalog, []byte("services: 7\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "c.yaml:1"},
		{"full disk", func(t *testing.T, c *Config) {
			c.StateDir = t.TempDir()
			if err := unix.Mount("tmpfs", c.StateDir, "tmpfs", 0, "size=4k,mode=700"); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = unix.Unmount(c.StateDir, unix.MNT_DETACH) })
			_ = os.WriteFile(filepath.Join(c.StateDir, "fill"), make([]byte, 8192), 0o600)
		}, "no space left"},
		{"networks overlap", func(t *testing.T, _ *Config) {
			other := network.Bridge{Name: "other0", MTU: 1500, Gateway4: netip.MustParsePrefix("10.84.9.1/24")}
			if err := other.Create(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = network.DeleteLink("other0") })
		}, "--network4"},
		{"a broken journal", func(t *testing.T, c *Config) {
			if err := os.MkdirAll(c.RunDir, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(journalPath(c.RunDir), []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.RemoveAll(c.RunDir) })
		}, "/restore.json && tulle up -d && tulle down"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := testConfig(t)
			t.Cleanup(func() {
				if after := hostState(t); after != before {
					t.Errorf("before:\n%s\nafter:\n%s", before, after)
				}
			})
			tc.spoil(t, &c)
			err := Run(t.Context(), c)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want one with %q", err, tc.want)
			}
			if _, err := os.Stat(c.RunDir); tc.name != "a broken journal" && !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the run directory is left: %v", err)
			}
		})
	}
}

func TestClearDirKeepsWhatIsNotOurs(t *testing.T) {
	run := t.TempDir()
	for _, path := range []string{"mine", "up.json", "lock", "workloads/web-1/log"} {
		path = filepath.Join(run, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := clearDir(run); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(run + "/*"); len(left) != 1 || filepath.Base(left[0]) != "mine" {
		t.Errorf("left %v", left)
	}
}

func TestNamesForTheTimeWithoutADaemon(t *testing.T) {
	run := t.TempDir()
	l := newLeases(t, run)
	mustJoinAnd := func(service string) {
		if _, err := l.state.Join(discoveryJoin(service)); err != nil {
			t.Fatal(err)
		}
	}
	mustJoinAnd("web")
	n := names{state: l.state, networks: []netip.Prefix{netip.MustParsePrefix("10.84.0.0/16")}}
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // it writes once, and then sees that it is to end
	if err := n.publish(ctx, run); err != nil {
		t.Fatal(err)
	}
	last := LastNames(run)
	for _, name := range []string{"web", "web-1"} {
		want, ok := n.Lookup(name)
		got, known := last.Lookup(name)
		if !ok || !known || len(got) != 1 || got[0] != want[0] {
			t.Errorf("%s: got %v, want %v", name, got, want)
		}
		if back, _ := last.Reverse(got[0]); back != name {
			t.Errorf("%s: reverse is %q", name, back)
		}
		if back, inside := n.Reverse(got[0]); back != name || !inside {
			t.Errorf("%s: the daemon's reverse is %q", name, back)
		}
	}
	if _, ok := last.Lookup("nope"); ok {
		t.Error("knows a name that is not")
	}
	if _, ok := LastNames(t.TempDir()).Lookup("web"); ok {
		t.Error("knows names without a file")
	}
}

// Workloads that run on hold certificates of the authority that was there: another
// one is not made beside them.
func TestAuthorityIsNotMadeAnewForThoseWhoRun(t *testing.T) {
	c := testConfig(t)
	start, ok := workload.StartTime(os.Getpid())
	if !ok {
		t.Fatal("no start time")
	}
	living, dead := &record{Pid: os.Getpid(), PidStart: start}, &record{Pid: os.Getpid(), PidStart: start + 1}
	for _, state := range []string{c.StateDir, t.TempDir()} {
		d := &daemon{Config: c, leftovers: []*record{dead, living}}
		d.StateDir = state
		if err := d.openAuthority(); err == nil || !strings.Contains(err.Error(), "tulle down && tulle up -d") {
			t.Errorf("%s: %v", state, err)
		}
		if left, _ := os.ReadDir(state); len(left) > 0 {
			t.Errorf("made %v", left)
		}
	}
	d := &daemon{Config: c, leftovers: []*record{dead}}
	if err := d.openAuthority(); err != nil {
		t.Errorf("nobody runs: %v", err)
	}
	d.leftovers = []*record{living}
	if err := d.openAuthority(); err != nil {
		t.Errorf("it is there: %v", err)
	}
}
