package main

import (
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// takeTerminal makes this process alone the terminal's foreground, so that a
// Ctrl-C reaches it and not `just` too, which would call the end an error.
func takeTerminal() (giveBack func()) {
	fd := int(os.Stdin.Fd())
	before, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP)
	if err != nil || before != unix.Getpgrp() {
		return func() {} // no terminal, or in the background
	}
	signal.Ignore(unix.SIGTTOU) // giving the terminal back is done from the background
	if unix.Setpgid(0, 0) != nil || unix.IoctlSetPointerInt(fd, unix.TIOCSPGRP, os.Getpid()) != nil {
		return func() {}
	}
	return func() { _ = unix.IoctlSetPointerInt(fd, unix.TIOCSPGRP, before) }
}
