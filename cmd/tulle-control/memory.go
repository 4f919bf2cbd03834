package main

import (
	"io/fs"
	"math"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
)

// tuneMemory keeps the process small: memory is dearer here than CPU. GOGC and
// GOMEMLIMIT overrule it.
func tuneMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryTarget(os.DirFS("/sys/fs/cgroup")))
	}
}

// memoryTarget is what the process should try to stay below, in bytes: nine tenths
// of what its container may have, since the kernel counts more than the heap and
// kills who has too much.
func memoryTarget(cgroup fs.FS) int64 {
	for _, file := range []string{"memory.max", "memory/memory.limit_in_bytes"} { // of cgroup v2, v1
		text, err := fs.ReadFile(cgroup, file)
		if err != nil {
			continue
		}
		limit, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		if err == nil && limit < 1<<50 { // "max", and v1's number for it
			return limit / 10 * 9
		}
	}
	return math.MaxInt64 // there is none
}
