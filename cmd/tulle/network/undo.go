package network

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/tulle-mesh/tulle/cmd/tulle/journal"
	"github.com/tulle-mesh/tulle/cni/redirect"
)

// Undo takes one change of the host back. A change that was never made, or was
// undone already, is no error.
func Undo(c journal.Change) error {
	switch c.Kind {
	case journal.Link:
		return DeleteLink(c.Name)
	case journal.Sysctl:
		return restoreSysctl(c)
	case journal.Masquerade:
		return RemoveMasquerade(c.Name)
	case journal.Forward:
		return RemoveForward(c.Name)
	case journal.Redirect:
		return redirect.Node{Pins: c.Name}.Remove()
	case journal.Mount:
		return unmount(c.Name)
	case journal.Dir:
		err := ignoreMissing(os.Remove(c.Name))
		if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EBUSY) {
			return nil // in use by others by now
		}
		return err
	}
	return fmt.Errorf("unknown kind of change %q", c.Kind)
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
