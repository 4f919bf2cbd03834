package agent

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tulle-mesh/tulle/cni/redirect"
	"github.com/tulle-mesh/tulle/mesh/cluster"
)

// fake is a kernel that records what is asked of its redirects.
type fake struct {
	refuse error            // answer to each Apply
	unfit  map[string]error // answers to Probe, and to Load as "ebpf"
	has    string           // backend of every namespace

	mu      sync.Mutex
	applied []redirect.Rules
	by      []string // the backends of those
}

func (f *fake) Load() error                                      { return f.unfit["ebpf"] }
func (f *fake) Collect() error                                   { return nil }
func (f *fake) Applied(*os.File) (string, error)                 { return f.has, nil }
func (f *fake) Backend(name string, _ *os.File) redirect.Backend { return backend{f, name} }

type backend struct {
	*fake
	name string
}

func (b backend) Name() string  { return b.name }
func (b backend) Probe() error  { return b.unfit[b.name] }
func (b backend) Remove() error { return nil }
func (b backend) Apply(r redirect.Rules) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.applied, b.by = append(b.applied, r), append(b.by, b.name)
	return b.refuse
}

// start runs an agent until the test ends.
func start(t *testing.T, k *fake) (*Agent, Config) {
	t.Helper()
	dir := t.TempDir()
	c := Config{
		Socket: filepath.Join(dir, "run", "agent.sock"), Results: filepath.Join(dir, "results"), Run: dir,
		Redirect: redirect.Auto, Log: slog.New(slog.DiscardHandler), kernel: k,
	}
	a, end := run(t, c)
	t.Cleanup(end)
	return a, c
}

// run runs an agent until end, which waits for that.
func run(t *testing.T, c Config) (a *Agent, end func()) {
	t.Helper()
	a, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { done <- a.Run(ctx) }()
	<-a.Ready()
	return a, sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func namespace(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestAsk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("the agent answers root only")
	}
	meshed := func(more ...string) map[string]string {
		m := map[string]string{cluster.InjectedAnnotation: "1"}
		for i := 0; i < len(more); i += 2 {
			m[more[i]] = more[i+1]
		}
		return m
	}
	for _, c := range []struct {
		name    string
		request Request
		netns   bool
		refuse  error
		want    []redirect.Rules
		err     string
	}{
		{name: "status", request: Request{Command: Status}},
		{name: "not meshed", request: Request{Command: Add}, netns: true},
		{name: "meshed", request: Request{Command: Add, Annotations: meshed()}, netns: true, want: []redirect.Rules{{}}},
		{name: "ports", request: Request{Command: Add, Annotations: meshed(cluster.SkipInboundPorts, "9, 7-8,8", cluster.SkipOutboundPorts, "5432")}, netns: true,
			want: []redirect.Rules{{SkipInbound: []int{7, 8, 9}, SkipOutbound: []int{5432}}}},
		{name: "redirected by an init container", request: Request{Command: Add, Annotations: meshed(cluster.RedirectAnnotation, cluster.RedirectInit)}, netns: true},
		{name: "no namespace", request: Request{Command: Add, Annotations: meshed()}, err: "no network namespace"},
		{name: "bad port", request: Request{Command: Add, Annotations: meshed(cluster.SkipInboundPorts, "70000")}, netns: true, err: "annotation tulle.dev/skip-inbound-ports"},
		{name: "too many ports", request: Request{Command: Add, Annotations: meshed(cluster.SkipOutboundPorts, "1-65535")}, netns: true, err: "at most 1024"},
		{name: "kernel refuses", request: Request{Command: Add, Annotations: meshed()}, netns: true, refuse: errors.New("no such module"), want: []redirect.Rules{{}}, err: "no such module"},
		{name: "unknown", request: Request{Command: "FROB"}, err: "unknown command"},
		{name: "too long", request: Request{Command: Add, Annotations: meshed("tulle.dev/x", strings.Repeat("x", maxPacket))}, err: "annotations have"},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := &fake{refuse: c.refuse}
			_, config := start(t, k)
			var netns *os.File
			if c.netns {
				netns = namespace(t)
			}
			err := Ask(t.Context(), config.Socket, c.request, netns)
			if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
				t.Errorf("error %v, want %q", err, c.err)
			}
			if diff := cmp.Diff(c.want, k.applied); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// The next agent of a node may be there before the last one has ended.
func TestTwoAtOnce(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("the agent answers root only")
	}
	dir := t.TempDir()
	c := Config{
		Socket: filepath.Join(dir, "agent.sock"), Results: filepath.Join(dir, "results"), Run: dir,
		Redirect: redirect.Auto, Log: slog.New(slog.DiscardHandler), kernel: &fake{},
	}
	_, endLast := run(t, c)
	t.Cleanup(endLast)
	_, endNext := run(t, c)
	t.Cleanup(endNext)
	endLast()
	if err := Ask(t.Context(), c.Socket, Request{Command: Status}, nil); err != nil {
		t.Errorf("after the end of the last one: %v", err)
	}
	endNext()
	if _, err := os.Lstat(c.Socket); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
}

func TestNobodyThere(t *testing.T) {
	err := Ask(t.Context(), filepath.Join(t.TempDir(), "none"), Request{Command: Status}, nil)
	if err == nil || !strings.Contains(err.Error(), "DaemonSet tulle-cni") {
		t.Errorf("error %v, want where to look", err)
	}
}

const result = `{"kind":"cniCacheV1","containerId":"c","ifName":"eth0","networkName":"pods",
"cniArgs":[["K8S_POD_NAMESPACE","shop"],["K8S_POD_NAME","web-0"]],
"capabilityArgs":{"io.kubernetes.cri.pod-annotations":{"tulle.dev/injected":"1","tulle.dev/skip-inbound-ports":"99"},"portMappings":[]},
"result":{"interfaces":[{"name":"vethx","mac":"x"},{"name":"eth0","sandbox":"/var/run/netns/cni-1"}]}}`

func TestRepair(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("the agent answers root only")
	}
	k := &fake{}
	a, c := start(t, k)
	for name, content := range map[string]string{
		"results/pods-a-eth0": result,
		"results/pods-b-eth0": strings.Replace(result, "cni-1", "gone", 1),
		"results/pods-c-eth0": strings.Replace(result, "tulle.dev/injected", "other", 1),
		"results/pods-d-eth0": "{",
	} {
		name = filepath.Join(c.Run, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// The pod's is this process's own.
	if err := os.Mkdir(filepath.Join(c.Run, "netns"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/proc/self/ns/net", filepath.Join(c.Run, "netns/cni-1")); err != nil {
		t.Fatal(err)
	}
	if err := a.Repair(); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]redirect.Rules{{SkipInbound: []int{99}}}, k.applied); diff != "" {
		t.Error(diff)
	}
	k.refuse = errors.New("no")
	if err := a.Repair(); err == nil || !strings.Contains(err.Error(), "pod shop/web-0: no") {
		t.Errorf("error %v, want which pod", err)
	}
}

func FuzzResult(f *testing.F) {
	f.Add([]byte(result))
	f.Add([]byte(`{"kind":"cniCacheV1","cniArgs":[["a"]]}`))
	f.Fuzz(func(t *testing.T, content []byte) {
		c, err := parseResult(content)
		if err != nil {
			return
		}
		_ = c.name()
		if below := c.namespace(); strings.HasPrefix(below, "../") || filepath.IsAbs(below) {
			t.Errorf("namespace %q is outside of /run", below)
		}
	})
}
