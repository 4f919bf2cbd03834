package network

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// BPFFS is where the file system of pinned eBPF programs is mounted.
const BPFFS = "/sys/fs/bpf"

// HasBPFFS tells whether it is.
func HasBPFFS() bool {
	var st unix.Statfs_t
	return unix.Statfs(BPFFS, &st) == nil && uint32(st.Type) == unix.BPF_FS_MAGIC
}

// MountBPFFS mounts it, as systemd does.
func MountBPFFS() error {
	if err := unix.Mount("bpf", BPFFS, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=700"); err != nil {
		return fmt.Errorf("mount a bpffs at %s: %w", BPFFS, err)
	}
	return nil
}

// unmount leaves a file system alone that others have put something into.
func unmount(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return ignoreMissing(err)
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".debug") { // those the kernel itself puts into each bpffs
			return nil
		}
	}
	err = unix.Unmount(dir, 0)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EBUSY) { // not mounted, or in use by now
		return nil
	}
	return err
}
