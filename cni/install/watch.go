package install

import (
	"os"

	"golang.org/x/sys/unix"
)

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
