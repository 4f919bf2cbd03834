package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// tick is the unit of /proc/PID/stat; Linux has told user space 100 Hz on every
// architecture that Go runs on for decades.
const tick = 10 * time.Millisecond

// cpu returns the user and system time that the processes have used.
func cpu(pids []int) (time.Duration, error) {
	var total time.Duration
	for _, pid := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return 0, err
		}
		// The name, in parentheses, may hold anything. Field 14 and 15 of
		// proc(5) are the 12th and 13th after it.
		_, rest, _ := strings.Cut(string(text), ") ")
		fields := strings.Fields(rest)
		if len(fields) < 13 {
			return 0, fmt.Errorf("/proc/%d/stat: %q", pid, text)
		}
		for _, f := range fields[11:13] {
			n, err := strconv.Atoi(f)
			if err != nil {
				return 0, err
			}
			total += time.Duration(n) * tick
		}
	}
	return total, nil
}

// memory is what processes keep resident, in bytes, added up.
type memory struct{ anon, file int }

func (m memory) rss() int { return m.anon + m.file }

func memoryOf(pids ...int) (memory, error) {
	var m memory
	for _, pid := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return m, err
		}
		for line := range strings.Lines(string(text)) {
			for prefix, into := range map[string]*int{"RssAnon:": &m.anon, "RssFile:": &m.file} {
				if rest, ok := strings.CutPrefix(line, prefix); ok {
					kb, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")))
					if err != nil {
						return m, err
					}
					*into += kb << 10
				}
			}
		}
	}
	return m, nil
}

// memoryWithChildren is memoryOf the processes and those that they have started.
func memoryWithChildren(pids []int) (memory, error) {
	all, err := withChildren(pids)
	if err != nil {
		return memory{}, err
	}
	return memoryOf(all...)
}

// withChildren adds the processes that the given ones have started.
func withChildren(pids []int) ([]int, error) {
	all := slices.Clone(pids)
	for _, pid := range pids {
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
		if err != nil || len(tasks) == 0 {
			return nil, fmt.Errorf("process %d has ended", pid)
		}
		for _, name := range tasks {
			text, err := os.ReadFile(name)
			if err != nil {
				continue // a thread that has ended
			}
			for _, field := range strings.Fields(string(text)) {
				child, err := strconv.Atoi(field)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", name, err)
				}
				all = append(all, child)
			}
		}
	}
	return all, nil
}

// processIn returns the one process of that name in a named network namespace.
func processIn(netns, name string) (int, error) {
	var want, have syscall.Stat_t
	if err := syscall.Stat("/run/netns/"+netns, &want); err != nil {
		return 0, fmt.Errorf("namespace %s: %w", netns, err)
	}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	var found []int
	for _, dir := range dirs {
		comm, err := os.ReadFile(dir + "/comm")
		if err != nil || strings.TrimSpace(string(comm)) != name {
			continue
		}
		if syscall.Stat(dir+"/ns/net", &have) == nil && have.Ino == want.Ino {
			pid, err := strconv.Atoi(filepath.Base(dir))
			if err != nil {
				return 0, err
			}
			found = append(found, pid)
		}
	}
	slices.Sort(found)
	if len(found) != 1 {
		return 0, fmt.Errorf("namespace %s: %d processes are called %s, not one: %v", netns, len(found), name, found)
	}
	return found[0], nil
}
