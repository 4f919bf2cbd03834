package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tulle-mesh/tulle/cni/redirect"
)

// TestMain makes of the test's binary the program itself, and runs the tests in a
// mount namespace and a network namespace of their own.
func TestMain(m *testing.M) {
	if os.Getenv("TULLE_TEST_PROGRAM") != "" {
		main()
	}
	const inside = "TULLE_TEST_INSIDE"
	if os.Geteuid() != 0 || os.Getenv(inside) != "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(cmd.ProcessState.ExitCode())
}

// host is a machine's folders, as the agent's container sees them.
type host struct{ root string }

const conf = `{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "ptp"}]}`

// newHost has a bpffs or not.
func newHost(t *testing.T, bpffs bool) host {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("makes namespaces; type: sudo go test ./cmd/tulle-cni")
	}
	h := host{t.TempDir()}
	for _, dir := range []string{"net.d", "bin", "results", "run/netns", "sys/bpf", "sys/cgroup"} {
		if err := os.MkdirAll(filepath.Join(h.root, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(h.root, "net.d/10-a.conflist"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	h.mount(t, "none", "sys/cgroup", "cgroup2")
	if bpffs {
		h.mount(t, "bpf", "sys/bpf", "bpf")
	}
	return h
}

func (h host) mount(t *testing.T, source, at, kind string) {
	t.Helper()
	at = filepath.Join(h.root, at)
	if err := unix.Mount(source, at, kind, 0, ""); err != nil {
		t.Fatalf("mount %s: %v", kind, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// program is one of the program's commands, with the capabilities that the chart
// gives it and no others.
func (h host) program(command string, more ...string) *exec.Cmd {
	args := []string{"--bounding-set=-all,+sys_admin,+net_admin,+dac_override", "--inh-caps=-all", "/proc/self/exe", command}
	for flag, dir := range map[string]string{"conf": "net.d", "bin": "bin", "run": "run", "results": "results", "sys": "sys"} {
		args = append(args, "-"+flag+"="+filepath.Join(h.root, dir))
	}
	self, _ := os.Executable()
	args[2] = self
	cmd := exec.Command("setpriv", append(args, more...)...)
	cmd.Env = append(os.Environ(), "TULLE_TEST_PROGRAM=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	return cmd
}

// running is a command that goes on until it is killed.
type running struct {
	kill func()
	log  func() string
}

func (h host) start(t *testing.T, command string, more ...string) running {
	t.Helper()
	runtime.LockOSThread() // its parent's death is the thread's
	log, err := os.CreateTemp(t.TempDir(), "log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := h.program(command, more...)
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r := running{
		kill: sync.OnceFunc(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }),
		log:  func() string { b, _ := os.ReadFile(log.Name()); return string(b) },
	}
	t.Cleanup(r.kill)
	return r
}

// await waits until a command has said something.
func (r running) await(t *testing.T, want string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !strings.Contains(r.log(), want); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not said: %q; but\n%s", want, r.log())
		}
	}
}

// await waits until the readiness probe succeeds.
func (h host) await(t *testing.T, more ...string) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		out, err := h.program("status", more...).CombinedOutput()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("status %v: %v\n%s", more, err, out)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// pod makes a pod's network namespace, which ends with the returned function.
func (h host) pod(t *testing.T, name string) (end func()) {
	t.Helper()
	at := filepath.Join(h.root, "run/netns", name)
	if err := os.WriteFile(at, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	process := exec.Command("cat")
	stdin, err := process.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	process.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	err = unix.Mount(fmt.Sprintf("/proc/%d/ns/net", process.Process.Pid), at, "", unix.MS_BIND, "")
	stdin.Close()
	if err := errors.Join(err, process.Wait()); err != nil {
		t.Fatal(err)
	}
	gone := false
	end = func() {
		if !gone {
			gone = true
			if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
			os.Remove(at)
		}
	}
	t.Cleanup(end)
	return end
}

// add is what the runtime does when a pod starts, if the configuration has it.
func (h host) add(t *testing.T, pod string) {
	t.Helper()
	self, _ := os.Executable()
	cmd := exec.Command(self)
	netns := filepath.Join(h.root, "run/netns", pod)
	cmd.Env = append(os.Environ(), "TULLE_TEST_PROGRAM=1", "CNI_COMMAND=ADD", "CNI_NETNS="+netns, "CNI_ARGS=K8S_POD_NAMESPACE=a;K8S_POD_NAME="+pod)
	socket := filepath.Join(h.root, "run/tulle-cni/agent.sock")
	cmd.Stdin = strings.NewReader(`{"cniVersion":"1.0.0","name":"pods","type":"tulle-cni","socket":"` + socket + `","prevResult":{"ips":[]},` +
		`"runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"tulle.dev/injected":"1"}}}`)
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != `{"ips":[]}` {
		t.Fatalf("ADD: %v: %s", err, out)
	}
	// The CNI library keeps the result.
	result := `{"kind":"cniCacheV1","ifName":"eth0","cniArgs":[["K8S_POD_NAMESPACE","a"],["K8S_POD_NAME","` + pod + `"]],` +
		`"capabilityArgs":{"io.kubernetes.cri.pod-annotations":{"tulle.dev/injected":"1"}},` +
		`"result":{"interfaces":[{"name":"eth0","sandbox":"/run/netns/` + pod + `"}]}}`
	if err := os.WriteFile(filepath.Join(h.root, "results", pod), []byte(result), 0o600); err != nil {
		t.Fatal(err)
	}
}

// pinned returns what is in the bpffs of pods.
func (h host) pinned(t *testing.T) int {
	t.Helper()
	pins, err := filepath.Glob(filepath.Join(h.root, "sys/bpf/tulle-cni/inbound/*"))
	if err != nil {
		t.Fatal(err)
	}
	return len(pins)
}

// gone waits until the kernel has let go of the namespaces of pods that have ended.
func (h host) gone(t *testing.T) {
	t.Helper()
	node := redirect.Node{Pins: filepath.Join(h.root, "sys/bpf/tulle-cni")}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		pods, err := node.InUse()
		if err != nil {
			t.Fatal(err)
		}
		if pods == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d pods that have ended are still there", pods)
		}
	}
}

// TestNode is the life of a node's agent, with each redirect: it is killed, it is
// replaced by one that wants another redirect, it is removed while a pod lives, and
// after.
func TestNode(t *testing.T) {
	for _, bpffs := range []bool{true, false} {
		backend, other, pins := "ebpf", "nftables", 1
		if !bpffs {
			backend, other, pins = "nftables", "auto", 0
		}
		t.Run(backend, func(t *testing.T) {
			h := newHost(t, bpffs)
			end := h.pod(t, "web")
			agent := h.start(t, "agent")
			h.await(t)
			h.add(t, "web")
			agent.await(t, "pod=a/web backend="+backend)
			agent.kill()
			if s := agent.log(); !strings.Contains(s, `"redirect chosen" backend=`+backend) || !bpffs && !strings.Contains(s, "no bpffs is mounted") {
				t.Errorf("the agent does not say what it chose, and why:\n%s", s)
			}
			if n := h.pinned(t); n != pins {
				t.Errorf("%d pods are pinned after the agent was killed, want %d", n, pins)
			}
			agent = h.start(t, "agent", "-redirect="+other)
			agent.await(t, "pod=a/web backend="+backend)
			agent.kill()

			remove := h.start(t, "remove", "-patience=1s")
			h.await(t, "-removed")
			remove.kill()
			if n := h.pinned(t); n != pins {
				t.Errorf("%d pods are pinned after the agent was removed while one lives, want %d", n, pins)
			}
			end()
			h.gone(t)
			remove = h.start(t, "remove")
			remove.await(t, "the node is as it was")
			remove.kill()
			if out, err := h.program("status", "-removed").CombinedOutput(); err != nil {
				t.Errorf("status -removed: %v\n%s", err, out)
			}
			h.asItWas(t)
		})
	}
}

// asItWas compares the machine with what newHost has made.
func (h host) asItWas(t *testing.T) {
	t.Helper()
	for _, dir := range []string{"bin", "run/tulle-cni", "sys/bpf/tulle-cni"} {
		if left, _ := filepath.Glob(filepath.Join(h.root, dir, "*")); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
	if got, err := os.ReadFile(filepath.Join(h.root, "net.d/10-a.conflist")); err != nil || string(got) != conf {
		t.Errorf("configuration: %s, %v", got, err)
	}
}
