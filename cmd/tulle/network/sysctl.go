package network

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/tulle-mesh/tulle/cmd/tulle/journal"
)

const procSys = "/proc/sys"

// Sysctl returns the value of name, for instance "net/ipv4/ip_forward", in the
// calling thread's network namespace.
func Sysctl(name string) (string, error) {
	b, err := os.ReadFile(filepath.Join(procSys, name))
	return strings.TrimSpace(string(b)), err
}

// writeSysctl leaves a value alone that is as it should be: inside a container
// /proc/sys may be read-only.
func writeSysctl(name, value string) error {
	if now, err := Sysctl(name); err == nil && now == value {
		return nil
	}
	if err := os.WriteFile(filepath.Join(procSys, name), []byte(value), 0o644); err != nil {
		return fmt.Errorf("set %s to %s: %w", strings.ReplaceAll(name, "/", "."), value, err)
	}
	return nil
}

// ForwardingChanges returns what has to change so that the host forwards
// packets of both families, in order; nothing if it does so already.
func ForwardingChanges(ipv6 bool) ([]journal.Change, error) {
	var changes []journal.Change
	if v, err := Sysctl("net/ipv4/ip_forward"); err != nil {
		return nil, fmt.Errorf("read net.ipv4.ip_forward: %w", err)
	} else if v == "0" {
		// The kernel couples these to ip_forward, in both directions.
		changes = append(changes, keep("net/ipv4/conf/all/accept_redirects")...)
		changes = append(changes, keepOn("net/ipv4/conf/*/forwarding")...)
		changes = append(changes, journal.Change{Kind: journal.Sysctl, Name: "net/ipv4/ip_forward", Old: v, New: "1"})
	}
	const all = "net/ipv6/conf/all/forwarding"
	if v, err := Sysctl(all); !ipv6 || err != nil || v != "0" {
		return changes, nil //nolint:nilerr // a kernel without IPv6 has nothing to change
	}
	// A host that forwards IPv6 no longer listens to router advertisements, and
	// drops the default routes it learned from them, unless accept_ra is 2.
	for _, c := range keepOn("net/ipv6/conf/*/accept_ra") {
		c.New = "2"
		changes = append(changes, c)
	}
	changes = append(changes, keepOn("net/ipv6/conf/*/forwarding")...)
	return append(changes, journal.Change{Kind: journal.Sysctl, Name: all, Old: "0", New: "1"}), nil
}

// keep notes a value that changes as a side effect of a later entry, so that
// it is restored after that one.
func keep(name string) []journal.Change {
	v, err := Sysctl(name)
	if err != nil {
		return nil
	}
	return []journal.Change{{Kind: journal.Sysctl, Name: name, Old: v, New: v}}
}

// keepOn notes all values matching pattern that are 1.
func keepOn(pattern string) []journal.Change {
	paths, err := filepath.Glob(filepath.Join(procSys, pattern))
	if err != nil {
		return nil // a bad pattern; ours are constants
	}
	var changes []journal.Change
	for _, path := range paths {
		for _, c := range keep(strings.TrimPrefix(path, procSys+"/")) {
			if c.Old == "1" {
				changes = append(changes, c)
			}
		}
	}
	return changes
}

// Apply makes the sysctl changes, which must be in the journal by now.
func Apply(changes []journal.Change) error {
	for _, c := range changes {
		if c.Kind != journal.Sysctl {
			continue
		}
		err := writeSysctl(c.Name, c.New)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // its interface has gone meanwhile
			return err
		}
	}
	return nil
}

// restoreSysctl puts the old value back, unless somebody else has set yet
// another one since. The interface it is of may be gone.
func restoreSysctl(c journal.Change) error {
	now, err := Sysctl(c.Name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if now != c.New && c.New != c.Old {
		return nil
	}
	return writeSysctl(c.Name, c.Old)
}
