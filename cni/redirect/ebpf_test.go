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
