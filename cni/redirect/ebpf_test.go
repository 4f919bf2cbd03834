package redirect

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// newNode loads the programs, in a folder of the test's own.
func newNode(t *testing.T) Node {
	t.Helper()
	dir, err := os.MkdirTemp("/sys/fs/bpf", "test")
	if err != nil {
		t.Fatal(err)
	}
	n := Node{Pins: dir}
	t.Cleanup(func() {
		if err := n.Remove(); err != nil {
			t.Error(err)
		}
	})
	if err := n.Load(); err != nil {
		t.Fatal(err)
	}
	return n
}

// Mounts of the kinds of machines there are.
func TestCgroupMount(t *testing.T) {
	const (
		unified   = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
		hybrid    = "30 23 0:26 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro\n31 30 0:27 / /sys/fs/cgroup/unified rw shared:10 - cgroup2 cgroup2 rw\n32 30 0:28 / /sys/fs/cgroup/cpu rw shared:11 - cgroup cgroup rw,cpu\n"
		legacy    = "30 23 0:26 / /sys/fs/cgroup/cpu rw shared:9 - cgroup cgroup rw,cpu\n"
		part      = "90 23 0:26 /kubepods/pod1 /run/part rw - cgroup2 cgroup rw\n"
		elsewhere = "91 23 0:26 / /mnt/cg rw - cgroup2 none rw\n"
	)
	for name, tc := range map[string]struct {
		mountinfo, hidden, want string
	}{
		"unified":                      {unified, "", "/sys/fs/cgroup"},
		"v1 hybrid":                    {hybrid, "", "/sys/fs/cgroup/unified"},
		"elsewhere":                    {legacy + elsewhere, "", "/mnt/cg"},
		"a part of it comes first":     {part + unified, "", "/sys/fs/cgroup"},
		"hidden by another":            {unified + elsewhere, "/sys/fs/cgroup", "/mnt/cg"},
		"a container sees a part":      {part, "", "/run/part"},
		"v1 only":                      {legacy, "", ""},
		"nothing":                      {"", "", ""},
		"what is not a mountinfo":      {"cgroup2 - cgroup2 \n - \n", "", ""},
		"hidden, and there is no more": {unified, "/sys/fs/cgroup", ""},
	} {
		got, err := cgroupMount(strings.NewReader(tc.mountinfo), func(dir string) bool { return dir != tc.hidden })
		if got != tc.want || (err == nil) != (tc.want != "") || err != nil && !strings.Contains(err.Error(), "type: mount -t cgroup2") {
			t.Errorf("%s: got %q, %v, want %q", name, got, err, tc.want)
		}
	}
}

// dumpEBPF says what the maps hold about a namespace, without generations.
func dumpEBPF(t *testing.T, n Node, netns *os.File) string {
	t.Helper()
	var lines []string
	err := n.EBPF(netns).(*ebpfBackend).change(func(tables *tables, _ *os.File, cookie uint64) error {
		var entry kernelNamespace
		namespaces := tables.namespaces.Iterate()
		for key := uint64(0); namespaces.Next(&key, &entry); {
			if key == cookie {
				entry.Generation = 0
				lines = append(lines, fmt.Sprintf("namespace %+v", entry))
			}
		}
		ports, one := tables.ports.Iterate(), uint8(0)
		for key := (kernelPortKey{}); ports.Next(&key, &one); {
			if key.Netns == cookie {
				lines = append(lines, fmt.Sprintf("port %d %d", key.Direction, key.Port))
			}
		}
		subnets := tables.subnets.Iterate()
		for key := (kernelSubnetKey{}); subnets.Next(&key, &one); {
			if key.Netns == cookie {
				lines = append(lines, fmt.Sprintf("subnet %x/%d %d", key.Address.Word, key.Bits, one))
			}
		}
		if _, err := os.Stat(pin(n.inbound(), cookie, "")); err == nil {
			lines = append(lines, "inbound")
		}
		return errors.Join(namespaces.Err(), ports.Err(), subnets.Err())
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
