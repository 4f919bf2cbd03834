package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tulle-mesh/tulle/cmd/tulle/journal"
	"github.com/tulle-mesh/tulle/cmd/tulle/network"
	"github.com/tulle-mesh/tulle/cmd/tulle/workload"
)

// How long things may take to end when they are asked to.
const (
	workloadTimeout = 15 * time.Second // a `tulle run`: a bit more than it gives its command
	daemonTimeout   = 25 * time.Second // a daemon, its workloads included
	killTimeout     = 2 * time.Second  // what was killed
)

// Down ends the mesh whose run directory is given, and puts the host back as
// it was, whether its daemon lives or not. With purge, the certificate
// authority in state goes too. It says what it did on out.
func Down(ctx context.Context, run, state string, purge bool, out io.Writer) error {
	if _, err := os.Stat(run); errors.Is(err, fs.ErrNotExist) {
		say(out, "nothing is up")
		return purgeState(state, purge, out)
	}
	if err := endDaemon(ctx, run); err != nil {
		return err
	}
	if _, err := os.Stat(run); err == nil { // it was killed, or did not get to the end
		held, err := lock(run)
		if err != nil {
			return fmt.Errorf("%s: %w", lockPath(run), err)
		}
		defer func() { _ = held.Close() }()
		if err := endWorkloads(ctx, run); err != nil {
			return err
		}
		if err := restore(run); err != nil {
			return err
		}
	}
	say(out, "down; the host is as it was")
	return purgeState(state, purge, out)
}

func say(out io.Writer, format string, args ...any) {
	_, _ = fmt.Fprintf(out, "tulle: "+format+"\n", args...)
}

func purgeState(state string, purge bool, out io.Writer) error {
	if !purge {
		return nil
	}
	if err := os.RemoveAll(state); err != nil {
		return err
	}
	say(out, "removed the certificate authority in %s", state)
	return nil
}

// endDaemon asks the daemon to go down and waits until it has.
func endDaemon(ctx context.Context, run string) error {
	u, err := loadUp(run)
	if err != nil {
		return fmt.Errorf("read the daemon's state: %w", err)
	}
	if u == nil || !workload.Alive(u.Pid, u.PidStart) {
		return nil
	}
	if err := unix.Kill(u.Pid, unix.SIGTERM); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("stop the daemon (process %d): %w", u.Pid, err)
	}
	if waitGone(ctx, u.Pid, u.PidStart, daemonTimeout) {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	_ = unix.Kill(u.Pid, unix.SIGKILL)
	waitGone(ctx, u.Pid, u.PidStart, killTimeout)
	return nil
}

func waitGone(ctx context.Context, pid int, start uint64, timeout time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for workload.Alive(pid, start) {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(5 * time.Millisecond):
		}
	}
	return true
}

// endWorkloads ends every replica on record, without a daemon.
func endWorkloads(ctx context.Context, run string) error {
	records, err := loadRecords(run)
	errs := []error{err}
	for _, r := range records {
		if r.alive() {
			_ = unix.Kill(r.Pid, unix.SIGTERM)
		}
	}
	for _, r := range records {
		if !r.Exited {
			waitGone(ctx, r.Pid, r.PidStart, workloadTimeout)
			errs = append(errs, r.kill())
		}
	}
	return errors.Join(errs...)
}

// kill ends a replica's `tulle run` by force and removes what it leaves.
func (r *record) kill() error {
	if r.alive() {
		_ = unix.Kill(r.Pid, unix.SIGKILL)
		waitGone(context.Background(), r.Pid, r.PidStart, killTimeout)
	}
	return r.sweep()
}

// restore undoes what the journal holds and removes the run directory. The
// lock must be held.
func restore(run string) error {
	j, err := journal.Open(journalPath(run))
	if err != nil {
		return err
	}
	if err := j.Undo(network.Undo); err != nil {
		return fmt.Errorf("%w; when that is mended, type again: tulle down", err)
	}
	return clearDir(run)
}

// clearDir removes our files, and the directory if nothing else is in it. The
// lock file goes last: until then nobody else begins.
func clearDir(run string) error {
	for _, path := range []string{
		HostSocket(run), APISocket(run), upPath(run), namesPath(run), journalPath(run),
		filepath.Join(run, "workloads"), LogPath(run), LogPath(run) + ".1", lockPath(run),
	} {
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	err := os.Remove(run)
	if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
