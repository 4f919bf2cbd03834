package peer

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"syscall"
)

// exit ends with a code, or by a signal of its own: exit CODE | exit SIGNAL-NUMBER signal.
func exit(args []string) int {
	if len(args) == 0 {
		return 2
	}
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return 2
	}
	if len(args) > 1 {
		syscall.Kill(os.Getpid(), syscall.Signal(n))
		select {}
	}
	return n
}

// forker leaves children of its own behind and ends: forker COUNT. Each child
// has left the session, as a daemon would.
func forker(args []string) int {
	count := 1
	if len(args) > 0 {
		count, _ = strconv.Atoi(args[0])
	}
	for range count {
		child := exec.Command("sleep", "86399")
		child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := child.Start(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	fmt.Println("forked", count)
	return 0
}

// signals prints the name of each signal it gets, and ends on SIGTERM with
// code 7.
func signals([]string) int {
	got := make(chan os.Signal, 8)
	signal.Notify(got, syscall.SIGHUP, syscall.SIGINT, syscall.SIGUSR1, syscall.SIGWINCH, syscall.SIGTERM)
	fmt.Println("ready")
	for s := range got {
		fmt.Println("got", s)
		if s == syscall.SIGTERM {
			return 7
		}
	}
	return 1
}
