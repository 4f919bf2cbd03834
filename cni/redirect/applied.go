package redirect

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/tulle-mesh/tulle/mesh"
)

// Applied returns the name of the backend whose rules are in the network namespace
// that netns refers to, "" if there are none. A workload keeps its backend for as
// long as it lives: two at once are in each other's way. iptables is not looked for.
func (n Node) Applied(netns *os.File) (name string, err error) {
	err = inside(netns, func() error {
		cookie, err := netnsCookie()
		if err == nil { // else there is no eBPF here
			_, err = os.Stat(pin(n.inbound(), cookie, ""))
			if err == nil {
				name = mesh.RedirectEBPF
				return nil
			}
			if !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		found, err := hasTable()
		if found {
			name = (&nftablesBackend{}).Name()
		}
		return err
	})
	return name, err
}

// hasTable tells whether our table is in the thread's network namespace.
func hasTable() (bool, error) {
	conn, err := nftables.New()
	if err != nil {
		return false, explainNetlink(err)
	}
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
	switch {
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EAFNOSUPPORT):
		return false, nil // without nf_tables there are none
	case err != nil:
		return false, fmt.Errorf("list tables: %w", explainNetlink(err))
	}
	for _, t := range tables {
		if t.Name == tableName {
			return true, nil
		}
	}
	return false, nil
}

// InUse returns how many network namespaces are redirected, once those that have
// gone are collected.
func (n Node) InUse() (int, error) {
	if err := n.Collect(); err != nil {
		return 0, err
	}
	cookies, err := numbers(n.inbound(), "")
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil // nothing was ever loaded
	}
	return len(cookies), err
}
