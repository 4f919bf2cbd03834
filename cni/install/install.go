// Package install puts the CNI plugin on a node and keeps it there: the
// program into the folder where the runtime looks for plugins, and a last
// entry into the chain of the network configuration that the runtime uses.
//
//	i := install.Node{...}
//	err := i.Program()    // copies the program
//	err = i.Watch(ctx, f) // chains it, again whenever another CNI writes its own configuration anew
//	err = i.Remove()      // the node as it was
//
// The configuration in use is, for every runtime, the first by name of those
// in the folder. Files take their names when they are whole, so that the
// runtime never reads half of one.
package install

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/tulle-mesh/tulle/cni/plugin"
)

// Node is where things are on the machine, as this process sees it.
type Node struct {
	Conf   string // folder of network configurations, usually /etc/cni/net.d
	Bin    string // folder of plugins, usually /opt/cni/bin
	Self   string // the program to install
	Socket string // the agent's, as the plugin will see it
	Log    *slog.Logger
}

// aside is what a file's name ends with once a list has taken its place.
const aside = ".before-tulle"

// singles are what the names of files with a single plugin end with.
var singles = []string{".conf", ".json"}

// Program copies the plugin to where the runtime finds it.
func (n Node) Program() error {
	content, err := os.ReadFile(n.Self)
	if err != nil {
		return err
	}
	return write(filepath.Join(n.Bin, plugin.Name), content, 0o755)
}

// Chain makes the plugin the last of the chain that the runtime uses, and
// tells whether it was not. It returns fs.ErrNotExist as long as there is no
// configuration.
func (n Node) Chain() (changed bool, err error) {
	name, list, changed, err := n.first()
	if err != nil || !changed {
		return false, err
	}
	if err := n.replace(name, list); err != nil {
		return false, fmt.Errorf("%s: %w", name, err)
	}
	return true, nil
}

// first returns the file that the runtime uses, how it should be, and whether that
// is a change.
func (n Node) first() (name string, list []byte, changed bool, err error) {
	names, err := n.configurations()
	if err != nil {
		return "", nil, false, err
	}
	for _, name := range names {
		conf, err := os.ReadFile(name)
		if err == nil {
			list, changed, err = chain(conf, n.Socket)
		}
		if errors.Is(err, errNotYet) {
			continue // the runtime passes it over as well
		}
		if err != nil {
			return "", nil, false, fmt.Errorf("%s: %w", name, err)
		}
		return name, list, changed, nil
	}
	return "", nil, false, fmt.Errorf("%s: no network configuration: %w", n.Conf, fs.ErrNotExist)
}

// replace puts a list in the place of the configuration that it was made from.
func (n Node) replace(name string, list []byte) error {
	info, err := os.Stat(name)
	if err != nil {
		return err
	}
	target := strings.TrimSuffix(name, filepath.Ext(name)) + ".conflist" // others are read as a single plugin, whatever is inside
	if err := n.spare(target, name); err != nil {
		return err
	}
	if err := write(target, list, info.Mode().Perm()); err != nil {
		return err
	}
	if target != name {
		return os.Rename(name, name+aside)
	}
	return nil
}

// spare keeps what others wrote to target, which is about to become the list that
// was made from name, if Remove would not find it in there.
func (n Node) spare(target, name string) error {
	info, err := os.Stat(target)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	conf, err := os.ReadFile(target)
	if err != nil {
		return err
	}
	bare, ours, err := unchain(conf)
	if err != nil {
		return err
	}
	made := false // it stands in for another file
	for _, ext := range singles {
		_, err := os.Stat(strings.TrimSuffix(target, filepath.Ext(target)) + ext + aside)
		made = made || err == nil
	}
	if made && ours || target == name && !made {
		return nil
	}
	return write(target+aside, bare, info.Mode().Perm())
}

// Chained reports why the runtime does not call the plugin, if so.
func (n Node) Chained() error {
	if _, err := os.Stat(filepath.Join(n.Bin, plugin.Name)); err != nil {
		return fmt.Errorf("the plugin is not installed: %w", err)
	}
	name, _, changed, err := n.first()
	if err != nil {
		return err
	}
	if changed {
		return fmt.Errorf("%s does not have %s last in its chain: another program writes this file; have it leave others' entries alone (Cilium: cni.exclusive=false)",
			filepath.Base(name), plugin.Name)
	}
	return nil
}

// configurations returns what a runtime would look at, in its order.
func (n Node) configurations() ([]string, error) {
	entries, err := os.ReadDir(n.Conf)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries { // sorted
		if slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(e.Name())) {
			names = append(names, filepath.Join(n.Conf, e.Name()))
		}
	}
	return names, nil
}

// Remove takes the plugin out of every chain and, unless one still needs it,
// deletes the program. It goes on where something cannot be undone.
func (n Node) Remove() error {
	names, err := n.configurations()
	errs := []error{err}
	for _, name := range names {
		errs = append(errs, n.unchainFile(name))
	}
	if err := errors.Join(errs...); err != nil {
		return err // no pod of the node would start if a chain named a program that is gone
	}
	return remove(filepath.Join(n.Bin, plugin.Name))
}

func (n Node) unchainFile(name string) error {
	info, err := os.Stat(name)
	if err != nil {
		return err
	}
	conf, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	list, changed, err := unchain(conf)
	if err != nil || !changed {
		return nil //nolint:nilerr // not one of ours
	}
	stem, made := strings.TrimSuffix(name, filepath.Ext(name)), false
	for _, ext := range singles {
		err := os.Rename(stem+ext+aside, stem+ext)
		made = made || err == nil
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := os.Rename(name+aside, name); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if made {
		return os.Remove(name)
	}
	return write(name, list, info.Mode().Perm())
}

func remove(name string) error {
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// write makes a file that is there in full or not at all.
func write(name string, content []byte, mode fs.FileMode) error {
	part, err := os.CreateTemp(filepath.Dir(name), ".tulle-*")
	if err != nil {
		return err
	}
	defer os.Remove(part.Name())
	_, err = part.Write(content)
	if err = errors.Join(err, part.Chmod(mode), part.Sync(), part.Close()); err != nil {
		return err
	}
	return os.Rename(part.Name(), name)
}
