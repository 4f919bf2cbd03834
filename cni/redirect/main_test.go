package redirect

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tulle-mesh/tulle/test/alone"
)

// TestMain runs the tests in a mount namespace, with a bpffs that is theirs.
func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		os.Exit(m.Run()) // those that need root skip themselves
	}
	alone.Main(m, 0, func() error {
		if err := unix.Mount("bpf", "/sys/fs/bpf", "bpf", 0, ""); err != nil {
			return fmt.Errorf("mount a bpffs: %w", err)
		}
		return nil
	})
}
