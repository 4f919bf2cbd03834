package workload

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tulle-mesh/tulle/cni/redirect"
	"github.com/tulle-mesh/tulle/mesh"
)

func TestHostNetworkIsChecked(t *testing.T) {
	for name, tc := range map[string]struct {
		replicas int
		ports    []uint16
		want     string // "": fine
	}{
		"one port":               {1, []uint16{8080, 8081}, ""},
		"replicas without ports": {3, nil, ""},
		"replicas with a port":   {2, []uint16{8080}, "all would listen on port 8080 of this host"},
		"the control plane's":    {1, []uint16{mesh.ControlPort}, "is the mesh's own on this host"},
		"the name server's":      {1, []uint16{8080, 53}, "port 53: is the mesh's own on this host"},
	} {
		t.Run(name, func(t *testing.T) {
			c := Config{Service: "web", Replicas: tc.replicas, Ports: tc.ports, HostNetwork: true, Command: []string{"true"}}
			err := c.Validate()
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
			c.HostNetwork = false
			if err := c.Validate(); err != nil {
				t.Errorf("in a network of its own: %v", err)
			}
		})
	}
}

// The connections of a command in the host's network are redirected because of the
// cgroup that it is in. It does not start in another one, or in none.
func TestHostNetworkNeedsItsCgroup(t *testing.T) {
	if cgroupRoot() == "" {
		t.Skip("there is no cgroup2 here")
	}
	if err := unix.Mount("bpf", "/sys/fs/bpf", "bpf", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount("/sys/fs/bpf", unix.MNT_DETACH) })
	if err := (redirect.Node{}).Load(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := (redirect.Node{}).Remove(); err != nil {
			t.Error(err)
		}
	})
	// The proxy asks for its token between the two.
	for name, spoil := range map[string]func(group string) error{
		"removed":         os.Remove,
		"another by name": func(group string) error { return errors.Join(os.Remove(group), os.Mkdir(group, 0o755)) },
		"as it shall be":  nil,
	} {
		t.Run(name, func(t *testing.T) {
			d := startDaemon(t)
			d.onToken = func() {
				groups, _ := filepath.Glob(fmt.Sprintf("%s/%s/web-1.%d.*", cgroupRoot(), cgroupParent, os.Getpid()))
				if len(groups) != 1 {
					t.Errorf("cgroups %q, want one", groups)
				} else if spoil != nil {
					if err := spoil(groups[0]); err != nil {
						t.Error(err)
					}
				}
			}
			c, out, _ := d.config("echo started")
			c.HostNetwork = true
			code, err := Run(t.Context(), c)
			switch {
			case spoil == nil && (code != 0 || err != nil || out.String() != "started\n"):
				t.Errorf("got %d, %v, %q", code, err, out)
			case spoil != nil && (code != CodeOwn || err == nil || out.String() != ""):
				t.Errorf("got %d, %v, %q", code, err, out)
			case spoil != nil && (!strings.Contains(err.Error(), "its cgroup was removed meanwhile") || strings.Contains(err.Error(), "\n")):
				t.Errorf("got %q", err)
			}
			checkClean(t)
		})
	}
}

// Each replica in the host's network answers names at a place of its own.
func TestStandInsInTheHostsNetworkAreApart(t *testing.T) {
	seen := map[netip.AddrPort]bool{standInAddr: true}
	for _, a := range []string{"10.84.0.2", "10.84.0.3", "10.84.1.2"} {
		at := standInOf(netip.MustParseAddr(a))
		if seen[at] || !at.Addr().IsLoopback() {
			t.Errorf("%s: %s", a, at)
		}
		seen[at] = true
	}
}
