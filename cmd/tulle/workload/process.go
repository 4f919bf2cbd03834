package workload

import (
	"os"
	"strconv"
	"strings"
)

// StartTime returns when a process was started, in clock ticks since boot, and
// false if there is no such process. Together with the pid it names a process
// for good: pids come round again.
func StartTime(pid int) (uint64, bool) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, false
	}
	// proc_pid_stat(5): the name, field 2, may hold anything, parentheses too.
	_, rest, ok := cutLast(string(text), ") ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return 0, false
	}
	start, err := strconv.ParseUint(fields[22-3], 10, 64)
	return start, err == nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// Alive tells whether the process with this pid is still the one that was
// started at start.
func Alive(pid int, start uint64) bool {
	now, ok := StartTime(pid)
	return ok && now == start
}
