package agent

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/tulle-mesh/tulle/cni/redirect"
	"github.com/tulle-mesh/tulle/mesh/cluster"
)

var (
	errNoEBPF = errors.New("no programs here")
	errNoNFT  = errors.New("no tables here")
)

// TestChoose is about machines.
func TestChoose(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		unfit      map[string]error
		first      string
		says       string
	}{
		{"eBPF", "auto", nil, "ebpf", "the first choice"},
		{"not eBPF", "auto", map[string]error{"ebpf": errNoEBPF}, "nftables", "ebpf: no programs here"},
		{"neither", "auto", map[string]error{"ebpf": errNoEBPF, "nftables": errNoNFT}, "", "ebpf: no programs here; nftables: no tables here"},
		{"eBPF is a must", "ebpf", map[string]error{"ebpf": errNoEBPF}, "", "cannot redirect traffic: ebpf"},
		{"eBPF is not wanted", "nftables", nil, "nftables", "asked for"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var log bytes.Buffer
			a := &Agent{config: Config{Redirect: tt.want, Log: slog.New(slog.NewTextHandler(&log, nil))}, kernel: &fake{unfit: tt.unfit}}
			err := a.choose()
			if a.first != tt.first || (err == nil) != (tt.first != "") {
				t.Errorf("chose %q, %v, want %q", a.first, err, tt.first)
			}
			if err != nil {
				log.WriteString(err.Error())
			}
			if !strings.Contains(log.String(), tt.says) {
				t.Errorf("said %q, want %q", log.String(), tt.says)
			}
		})
	}
}

// TestBackend is about pods.
func TestBackend(t *testing.T) {
	for _, tt := range []struct {
		name  string
		first string
		has   string
		late  bool
		unfit map[string]error
		want  string
	}{
		{name: "starts", first: "ebpf", want: "ebpf"},
		{name: "starts without eBPF", first: "nftables", want: "nftables"},
		{name: "runs", first: "ebpf", late: true, want: "nftables"},
		{name: "runs without nftables", first: "ebpf", late: true, unfit: map[string]error{"nftables": errNoNFT}, want: "ebpf"},
		{name: "has nftables", first: "ebpf", has: "nftables", late: true, want: "nftables"},
		{name: "has eBPF", first: "nftables", has: "ebpf", late: true, want: "ebpf"},
		{name: "has eBPF that is broken", first: "nftables", has: "ebpf", late: true, unfit: map[string]error{"ebpf": errNoEBPF}},
		{name: "starts where it broke", first: "nftables", unfit: map[string]error{"nftables": errNoNFT}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k := &fake{has: tt.has, unfit: tt.unfit}
			a := &Agent{config: Config{Log: slog.New(slog.DiscardHandler)}, kernel: k, first: tt.first}
			err := a.redirect("a/b", map[string]string{cluster.InjectedAnnotation: "1"}, namespace(t), tt.late)
			var want []string
			if tt.want != "" {
				want = []string{tt.want}
			}
			if !slices.Equal(k.by, want) || (err == nil) != (tt.want != "") {
				t.Errorf("used %v, %v, want %q", k.by, err, tt.want)
			}
		})
	}
}

// TestOwnUsers starts a process that has, as a pod may, users of its own.
func TestOwnUsers(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("makes namespaces; type: sudo go test ./cni/agent")
	}
	if foreign, err := ownUsers(namespace(t)); foreign || err != nil {
		t.Errorf("the own namespace: %v, %v", foreign, err)
	}
	cmd := exec.Command("cat")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{HostID: 100000, Size: 65536}},
		GidMappings: []syscall.SysProcIDMap{{HostID: 100000, Size: 65536}},
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { stdin.Close(); _ = cmd.Wait() }()
	netns, err := os.Open("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer netns.Close()
	if foreign, err := ownUsers(netns); !foreign || err != nil {
		t.Errorf("a namespace of other users: %v, %v", foreign, err)
	}
	k := &fake{}
	a := &Agent{config: Config{Log: slog.New(slog.NewTextHandler(io.Discard, nil))}, kernel: k, first: "ebpf"}
	if err := a.redirect("a/b", map[string]string{cluster.InjectedAnnotation: "1"}, netns, false); err != nil || !slices.Equal(k.by, []string{nftables}) {
		t.Errorf("used %v, %v", k.by, err)
	}
}

// TestMachine loads nothing where there is nothing to load into.
func TestMachine(t *testing.T) {
	m := machine{redirect.Node{Pins: t.TempDir() + "/tulle", Cgroup: t.TempDir()}}
	if err := m.Load(); err == nil || !strings.Contains(err.Error(), "not the root of cgroup2") {
		t.Errorf("error %v, want where cgroup2 is not", err)
	}
}
