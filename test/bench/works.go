package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/tulle-mesh/tulle/test/bench/ends"
)

// A work is one thing to measure, of every peer.
type work struct {
	name   string
	glance bool // --quick does it
	fresh  bool // wants processes that have done nothing yet
	run    func(ctx context.Context, l *lab, rigs []*rig, sheet *sheet) error
}

// called tells whether a name given on the command line means the work: its own,
// or, if no work has just that one, one with which it begins.
func (w work) called(name string) bool {
	exact := slices.Contains(workNames(), name)
	return w.name == name || !exact && strings.HasPrefix(w.name, name)
}

// works are measured in this order.
var works = []work{
	{name: "memory", glance: true, fresh: true, run: newMemory},
	{name: "idle-http-1000", glance: true, fresh: true, run: idle{httpDoor, 1000}.measure},
	{name: "idle-http-10000", fresh: true, run: idle{httpDoor, 10000}.measure},
	{name: "idle-tcp-1000", glance: true, fresh: true, run: idle{tcpDoor, 1000}.measure},
	{name: "idle-tcp-10000", fresh: true, run: idle{tcpDoor, 10000}.measure},
	{name: "idle-grpc-1000", fresh: true, run: idle{grpcDoor, 1000}.measure},
	{name: "burst", fresh: true, run: burst},

	{name: "http1-256B-c1", glance: true, run: load{httpDoor, "request", wrk("/", 1)}.measure},
	{name: "http1-256B-c16", glance: true, run: load{httpDoor, "request", wrk("/", 16)}.measure},
	{name: "http1-256B-c128", glance: true, run: load{httpDoor, "request", wrk("/", 128)}.measure},
	{name: "http1-16KB-c1", run: load{httpDoor, "request", wrk(ends.Large, 1)}.measure},
	{name: "http1-16KB-c16", run: load{httpDoor, "request", wrk(ends.Large, 16)}.measure},
	{name: "http1-16KB-c128", run: load{httpDoor, "request", wrk(ends.Large, 128)}.measure},
	{name: "paced-1000", run: load{httpDoor, "request", program("paced", "--rate", "1000")}.measure},
	{name: "paced-2000", glance: true, run: load{httpDoor, "request", program("paced", "--rate", "2000")}.measure},

	{name: "grpc-s1", run: load{grpcDoor, "call", program("calls")}.measure},
	{name: "grpc-s16", glance: true, run: load{grpcDoor, "call", program("calls", "--streams", "16")}.measure},
	{name: "grpc-s128", glance: true, run: load{grpcDoor, "call", program("calls", "--connections", "8", "--streams", "16")}.measure},
	{name: "grpc-stream-1KB", run: load{grpcDoor, "message", program("calls", "--stream")}.measure},

	{name: "bulk-1", glance: true, run: load{tcpDoor, "", program("bulk")}.measure},
	{name: "bulk-8", run: load{tcpDoor, "", program("bulk", "--connections", "8")}.measure},
	{name: "short", glance: true, run: load{tcpDoor, "connection", program("short")}.measure},

	{name: "start", glance: true, run: startTimes},
}

func workNames() []string {
	names := make([]string, len(works))
	for i, w := range works {
		names[i] = w.name
	}
	return names
}

// progress tells, on the terminal only, what is going on.
func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
}
