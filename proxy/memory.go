package proxy

import (
	"bufio"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// stackHalvings is how many collections come before memory is given back: each
// halves the stacks that are mostly unused.
const stackHalvings = 3

// trimMemory gives back what the last while needed and the next one may not:
// free heap, and the pages of the program's text that only starting up touched.
// Text comes back from the page cache, a minor fault per 64 KiB, when it is needed.
func trimMemory() {
	text := textMappings()
	dropStacks()
	for range stackHalvings {
		runtime.GC()
	}
	debug.FreeOSMemory()
	for _, m := range text {
		// Failing leaves the pages where they are, no more.
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, m.start, m.end-m.start, unix.MADV_DONTNEED)
	}
}

// The runtime keeps up to 63 ended goroutines for each processor with their stacks,
// which lie scattered over as many spans of 32 KiB. Those whose stack has grown
// lose it when they end.
const (
	keptGoroutines = 64
	grownStack     = 9 << 10
)

// dropStacks has the next collection free the stacks of ended goroutines.
func dropStacks() {
	for range keptGoroutines {
		go growStack()
	}
}

//go:noinline
func growStack() {
	var b [grownStack]byte
	touch(b[:])
}

//go:noinline
func touch(b []byte) {
	for i := 0; i < len(b); i += 4096 {
		b[i] = 1
	}
}

// mapping is a range of addresses.
type mapping struct{ start, end uintptr }

// textMappings returns where the program's file is mapped read-only and no page
// has become the process' own: dropping such a page would lose what was written
// to it (relocations of a position-independent program, say). See proc(5), smaps.
func textMappings() []mapping {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return nil
	}
	file, err := os.Open("/proc/self/smaps")
	if err != nil {
		return nil
	}
	defer file.Close()
	var found []mapping
	var current *mapping // nil: not of interest
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		switch {
		case len(fields) >= 6 && strings.Contains(fields[0], "-"):
			current = parseMapping(fields, exe)
		case current != nil && len(fields) >= 2 && fields[0] == "Anonymous:":
			if fields[1] == "0" {
				found = append(found, *current)
			}
			current = nil
		}
	}
	return found
}

// parseMapping parses "start-end perms offset dev inode path".
func parseMapping(fields []string, exe string) *mapping {
	if perms := fields[1]; fields[5] != exe || !strings.HasPrefix(perms, "r-") {
		return nil
	}
	from, to, _ := strings.Cut(fields[0], "-")
	start, err1 := strconv.ParseUint(from, 16, 64)
	end, err2 := strconv.ParseUint(to, 16, 64)
	if err1 != nil || err2 != nil || end <= start {
		return nil
	}
	return &mapping{uintptr(start), uintptr(end)}
}
