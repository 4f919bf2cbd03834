package e2e

import (
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Direct is the stage without the mesh: each server and the clients have a
// network namespace of their own, joined by a bridge.
type Direct struct {
	hosts string            // a hosts file that every namespace sees as /etc/hosts
	names map[string]string // what is in it: the lines of each name
	next  int               // last byte of the next address
	desk  *namespace        // of the clients
}

// namespace is a network and mount namespace, held by a sleeping process.
type namespace struct {
	pid  int
	addr string // IPv4
}

// Every link of this stage has a name that starts so.
const (
	plainPrefix = "plain"
	plainBridge = plainPrefix + "0"
)

// newDirect makes the bridge; the test's end takes it away.
func newDirect(t *testing.T) *Direct {
	t.Helper()
	d := &Direct{next: 10, names: map[string]string{"localhost": "127.0.0.1 localhost\n::1 localhost\n"}}
	d.hosts = write(t, scratch(t), "hosts", "%s", d.names["localhost"])
	must(t, "ip", "link", "add", plainBridge, "type", "bridge")
	t.Cleanup(func() { exec.Command("ip", "link", "del", plainBridge).Run() })
	must(t, "ip", "link", "set", plainBridge, "up")
	must(t, "ip", "address", "add", "10.90.0.1/16", "dev", plainBridge)
	must(t, "ip", "address", "add", "fd90::1/64", "dev", plainBridge, "nodad")
	d.desk = d.namespace(t)
	return d
}

// namespace makes one more and joins it to the bridge.
func (d *Direct) namespace(t *testing.T) *namespace {
	t.Helper()
	holder := exec.Command("sleep", "infinity")
	holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { holder.Process.Kill(); holder.Wait() })
	n := d.next
	d.next++
	ns := &namespace{pid: holder.Process.Pid, addr: fmt.Sprintf("10.90.0.%d", n)}
	outer := fmt.Sprintf("%s-%d", plainPrefix, n)
	must(t, "ip", "link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", strconv.Itoa(ns.pid))
	must(t, "ip", "link", "set", outer, "master", plainBridge, "up")
	must(t, ns.argv("sh", "-e", "-c", fmt.Sprintf(`mount --make-rprivate /
		mount --bind %s /etc/hosts
		mount --bind /dev/null /etc/resolv.conf
		ip link set lo up
		ip address add %s/16 dev eth0
		ip address add fd90::%d/64 dev eth0 nodad
		ip link set eth0 up`, d.hosts, ns.addr, n))...)
	return ns
}

// argv is the command line that runs a program in the namespace.
func (n *namespace) argv(argv ...string) []string {
	return append([]string{"nsenter", "--target", strconv.Itoa(n.pid), "--net", "--mount", "--"}, argv...)
}

func (d *Direct) serve(t *testing.T, s service) *process {
	t.Helper()
	ns := d.namespace(t)
	d.name(t, s.name, ns)
	p := start(t, ns.argv(asUser(s.user, s.argv)...)...)
	if s.port == 0 {
		p.awaitText(t, p.stderr, "listening")
		return p
	}
	eventually(t, func() error {
		conn, err := net.DialTimeout("tcp", fmt.Sprintf("%s:%d", ns.addr, s.port), time.Second)
		if err == nil {
			conn.Close()
		}
		return err
	})
	return p
}

// name points a name at a namespace: the newest server of a name has it.
func (d *Direct) name(t *testing.T, name string, ns *namespace) {
	t.Helper()
	last := filepath.Ext(ns.addr)[1:]
	d.names[name] = fmt.Sprintf("%[1]s %[2]s %[2]s.mesh\nfd90::%[3]s %[2]s %[2]s.mesh\n", ns.addr, name, last)
	// Written in place, since a bind mount holds on to the file itself.
	if err := os.WriteFile(d.hosts, []byte(strings.Join(slices.Collect(maps.Values(d.names)), "")), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (d *Direct) client(t *testing.T, user string, argv ...string) *process {
	t.Helper()
	return start(t, d.desk.argv(asUser(user, argv)...)...)
}

func asUser(user string, argv []string) []string {
	if user == "" {
		return argv
	}
	return append([]string{"setpriv", "--reuid", user, "--regid", user, "--init-groups", "--"}, argv...)
}

// TestDirect plays every scene twice without the mesh: what differs then is the
// scene's own fault.
func TestDirect(t *testing.T) {
	direct := newDirect(t)
	for _, s := range scenes() {
		t.Run(s.name, func(t *testing.T) {
			once := &references{direct: direct, seen: map[string]string{}}
			t.Run("once", func(t *testing.T) { s.record(t, once) })
			t.Run("again", func(t *testing.T) { s.compare(t, once, direct) })
		})
	}
}
