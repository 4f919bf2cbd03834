package network

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tulle-mesh/tulle/test/alone"
)

// TestMain runs the tests in network and mount namespaces that stand for the host.
func TestMain(m *testing.M) {
	alone.Main(m, unix.CLONE_NEWNET, func() error {
		return errors.Join(
			unix.Mount("tmpfs", "/run", "tmpfs", 0, ""),
			unix.Mount("sysfs", "/sys", "sysfs", 0, ""),
			setUpLoopback(),
		)
	})
}
