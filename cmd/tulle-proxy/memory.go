package main

import (
	"io/fs"
	"strconv"
	"strings"
)

// Memory of a proxy, in bytes: what it may take at most of a host that sets no
// limit, and the least that it takes to be given.
const (
	mostMemory  = 256 << 20
	leastMemory = 32 << 20
)

// memory returns how much the process may take: its container's limit, in
// cgroup v2 or v1.
func memory(cgroup fs.FS) int64 {
	for _, file := range []string{"memory.max", "memory/memory.limit_in_bytes"} {
		text, err := fs.ReadFile(cgroup, file)
		if err != nil {
			continue
		}
		if limit, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil {
			return max(leastMemory, min(limit, mostMemory))
		}
	}
	return mostMemory
}
