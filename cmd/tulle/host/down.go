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

	"github.com/tulle-mesh/tulle/cmd/tulle/command"
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
	pid, start := daemonOf(run)
	if _, err := os.Stat(run); errors.Is(err, fs.ErrNotExist) && pid == 0 {
		if network.Exists(BridgeName) {
			return command.WithHint(fmt.Errorf("nothing is up, but the link %s is here, of a mesh whose files in %s were removed", BridgeName, run),
				"to undo what can be undone type: tulle up -d && tulle down")
		}
		say(out, "nothing is up")
		return purgeState(state, purge, out)
	}
	if err := endDaemon(ctx, pid, start); err != nil {
		return err
	}
	if _, err := os.Stat(run); err == nil { // it was killed, or did not get to the end
		held, err := lock(run)
		if err != nil {
			return fmt.Errorf("%s: %w", lockPath(run), err)
		}
		defer func() { _ = held.Close() }()
		if err := endWorkloads(ctx, run, out); err != nil {
			return err
		}
		j, err := openJournal(run)
		if err != nil {
			return err
		}
		if err := restore(j, run); err != nil {
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

// daemonOf finds the daemon of a run directory, also if its record is gone; pid is
// 0 if none lives.
func daemonOf(run string) (pid int, start uint64) {
	if u, err := loadUp(run); err == nil && u != nil && workload.Alive(u.Pid, u.PidStart) {
		return u.Pid, u.PidStart
	}
	if pid = Stray(run); pid != 0 {
		start, _ = workload.StartTime(pid)
	}
	return pid, start
}

// endDaemon asks the daemon to go down, if pid is one, and waits until it has.
func endDaemon(ctx context.Context, pid int, start uint64) error {
	if pid == 0 {
		return nil
	}
	if err := unix.Kill(pid, unix.SIGTERM); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("stop the daemon (process %d): %w", pid, err)
	}
	if waitGone(ctx, pid, start, daemonTimeout) {
		return nil
	}
	if ctx.Err() != nil {
		return command.WithHint(errors.New("interrupted; the mesh goes down all the same"), "to wait for that type: tulle down")
	}
	_ = unix.Kill(pid, unix.SIGKILL)
	waitGone(ctx, pid, start, killTimeout)
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

// endWorkloads ends every replica on record, without a daemon. Of one whose record
// cannot be read it only says so: all others, and the host, are not to suffer from that.
func endWorkloads(ctx context.Context, run string, out io.Writer) error {
	records, err := loadRecords(run)
	if err != nil {
		say(out, "left alone, since its record is unreadable: %v; if it runs, end it: ps -C tulle -f", err)
	}
	var errs []error
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

// openJournal opens the journal of a run directory, or says how to do without.
func openJournal(run string) (*journal.Journal, error) {
	j, err := journal.Open(journalPath(run))
	if err != nil {
		return nil, command.WithHint(fmt.Errorf("what was changed on this host cannot be read: %w", err),
			fmt.Sprintf("to undo all but kernel settings type: rm %s && tulle up -d && tulle down", journalPath(run)))
	}
	return j, nil
}

// restore undoes what the journal holds and removes the run directory. The
// lock must be held.
func restore(j *journal.Journal, run string) error {
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
