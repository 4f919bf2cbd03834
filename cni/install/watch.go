package install

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Watch chains the plugin, and does so again whenever somebody changes the
// folder, until ctx ends. Each time it had to, it calls chained: pods may have
// started meanwhile without it. Against a program that takes it out again and again
// it does not race: it waits longer each time, and says so.
func (n Node) Watch(ctx context.Context, chained func()) error {
	changes, err := watch(n.Conf)
	if err != nil {
		return err
	}
	defer func() { _ = changes.Close() }()
	defer context.AfterFunc(ctx, func() { _ = changes.Close() })()
	var quarrel quarrel
	for {
		switch changed, err := n.Chain(); {
		case errors.Is(err, fs.ErrNotExist):
			n.Log.Info("waiting for the cluster's network plugin", "error", err)
		case err != nil:
			n.Log.Error("cannot chain the plugin", "error", err)
		case changed:
			n.Log.Info("chained the plugin", "folder", n.Conf)
			chained()
			if pause := quarrel.again(time.Now()); pause > 0 {
				n.Log.Warn("another program keeps taking the plugin out of the chain; meshed pods that start meanwhile have to wait. "+
					"Have it leave others' entries alone (Cilium: cni.exclusive=false)", "folder", n.Conf, "chaining again in", pause)
				select {
				case <-ctx.Done():
				case <-time.After(pause):
				}
			}
		}
		err := changes.wait()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("watch %s: %w", n.Conf, err)
		}
	}
}

// A quarrel is one with another program about the same file. Rewriting it now and
// then is none.
type quarrel struct {
	last   time.Time // when the plugin was chained
	rounds int       // how often in a row, soon after the time before
}

const (
	quarrelSoon   = 10 * time.Second // beyond the last pause
	quarrelRounds = 3                // are without a pause
	quarrelPause  = time.Second      // doubled each round
	quarrelMax    = time.Minute
)

// again notes that the plugin had to be chained, and returns how long to leave it
// alone.
func (q *quarrel) again(now time.Time) time.Duration {
	if now.Sub(q.last) > quarrelSoon+q.pause() {
		q.rounds = 0
	}
	q.last = now
	q.rounds++
	return q.pause()
}

func (q *quarrel) pause() time.Duration {
	if q.rounds <= quarrelRounds {
		return 0
	}
	return min(quarrelPause<<min(q.rounds-quarrelRounds-1, 6), quarrelMax)
}

// changes tells when a folder's files change, see inotify(7).
type changes struct {
	file *os.File
}

// watch starts watching a folder. What changes from now on, wait reports.
func watch(folder string) (*changes, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	file := os.NewFile(uintptr(fd), "inotify") // non-blocking, hence Close ends wait
	const finished = unix.IN_CLOSE_WRITE | unix.IN_MOVED_TO | unix.IN_MOVED_FROM | unix.IN_DELETE
	if _, err := unix.InotifyAddWatch(fd, folder, finished|unix.IN_ONLYDIR); err != nil {
		file.Close()
		return nil, &os.PathError{Op: "watch", Path: folder, Err: err}
	}
	return &changes{file}, nil
}

// wait returns after at least one change. Which one is of no interest: many
// events are one change, and an overflow of the queue is an event like others.
func (c *changes) wait() error {
	buffer := make([]byte, 64*(unix.SizeofInotifyEvent+unix.NAME_MAX+1))
	_, err := c.file.Read(buffer)
	return err
}

// Close ends wait.
func (c *changes) Close() error { return c.file.Close() }
