// Package journal remembers what was changed on the host, so that it can be
// put back by whoever comes next: the daemon at its end, `tulle down`, or the
// next `tulle up` after a crash.
//
// A change is written down, and is on the disk, before it is made. An entry may
// therefore tell of a change that never happened, and undoing has to bear that.
package journal

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// Kind says what was changed.
type Kind string

// Kinds of changes.
const (
	Link       Kind = "link"       // a network interface was added
	Sysctl     Kind = "sysctl"     // a value below /proc/sys was replaced
	Masquerade Kind = "masquerade" // a backend's masquerade rules were added
	Forward    Kind = "forward"    // accept rules were put into the host's own FORWARD chain
	Redirect   Kind = "redirect"   // eBPF programs were pinned in a folder
	Mount      Kind = "mount"      // a file system was mounted; unmounted if empty
	Dir        Kind = "dir"        // a directory was made; removed if empty
)

// Change is one entry. Entries are comparable.
type Change struct {
	Kind Kind   `json:"kind"`
	Name string `json:"name"` // interface, path below /proc/sys, backend or file name
	Old  string `json:"old,omitempty"`
	New  string `json:"new,omitempty"`
}

// content is the file. Boot tells whether the machine was started anew since,
// in which case only directories are left to undo.
type content struct {
	Boot    string   `json:"boot"`
	Changes []Change `json:"changes"`
}

// Journal is an open journal file; it may be used by many goroutines.
type Journal struct {
	path string

	mu      sync.Mutex
	content content
}

// Open reads the journal at path; one that does not exist is empty.
func Open(path string) (*Journal, error) {
	j := &Journal{path: path}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		j.content.Boot = bootID()
		return j, nil
	}
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	if err := json.Unmarshal(data, &j.content); err != nil {
		return nil, fmt.Errorf("journal %s: %w", path, err)
	}
	if j.content.Boot != bootID() {
		j.content.Boot = bootID()
		j.content.Changes = slices.DeleteFunc(j.content.Changes, func(c Change) bool {
			return c.Kind != Dir
		})
	}
	return j, nil
}

func bootID() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
}

// Changes returns the entries, oldest first.
func (j *Journal) Changes() []Change {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.content.Changes)
}

// Record writes changes down; it has to be called before they are made. An
// entry for the same thing is kept as it is: it holds the value from before
// the first change, which is the one to restore.
func (j *Journal) Record(changes ...Change) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	next := slices.Clone(j.content.Changes)
	for _, c := range changes {
		known := slices.ContainsFunc(next, func(o Change) bool { return o.Kind == c.Kind && o.Name == c.Name })
		if !known {
			next = append(next, c)
		}
	}
	return j.storeLocked(next)
}

// Undo undoes every change, newest first, and forgets those that undo took
// back. It goes on after an error, and returns all of them.
func (j *Journal) Undo(undo func(Change) error) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	var left []Change
	var errs []error
	for _, c := range slices.Backward(j.content.Changes) {
		if err := undo(c); err != nil {
			left = append(left, c)
			errs = append(errs, fmt.Errorf("restore %s %s: %w", c.Kind, c.Name, err))
		}
	}
	slices.Reverse(left)
	if err := j.storeLocked(left); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (j *Journal) storeLocked(changes []Change) error {
	c := content{Boot: j.content.Boot, Changes: changes}
	if len(changes) == 0 { // takes no room, where there may be none
		if err := os.Remove(j.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("journal: %w", err)
		}
		j.content = c
		return nil
	}
	data, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	if err := WriteFile(j.path, append(data, '\n')); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	j.content = c
	return nil
}

// WriteFile replaces path as a whole, readable for its owner only, and returns
// once it is on the disk. A crash leaves the old file or the new one.
func WriteFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
