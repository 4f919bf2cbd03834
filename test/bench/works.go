package main

import (
	"context"
	"fmt"
	"os"

	"github.com/tulle-mesh/tulle/test/bench/ends"
)

// A work is one thing to measure, of every peer.
type work struct {
	name   string
	glance bool // --quick does it
	run    func(ctx context.Context, l *lab, rigs []*rig, sheet *sheet) error
}

// works are measured in this order. Memory comes first, when the proxies are new.
var works = []work{
	{"memory", true, newMemory},
	{"idle-http-1000", true, idle{httpDoor, 1000}.measure},
	{"idle-http-10000", false, idle{httpDoor, 10000}.measure},
	{"idle-tcp-1000", true, idle{tcpDoor, 1000}.measure},
	{"idle-tcp-10000", false, idle{tcpDoor, 10000}.measure},
	{"idle-grpc-1000", false, idle{grpcDoor, 1000}.measure},
	{"burst", false, burst},

	{"http1-256B-c1", true, load{httpDoor, "request", wrk("/", 1)}.measure},
	{"http1-256B-c16", true, load{httpDoor, "request", wrk("/", 16)}.measure},
	{"http1-256B-c128", true, load{httpDoor, "request", wrk("/", 128)}.measure},
	{"http1-16KB-c1", false, load{httpDoor, "request", wrk(ends.Large, 1)}.measure},
	{"http1-16KB-c16", false, load{httpDoor, "request", wrk(ends.Large, 16)}.measure},
	{"http1-16KB-c128", false, load{httpDoor, "request", wrk(ends.Large, 128)}.measure},
	{"paced-1000", false, load{httpDoor, "request", program("paced", "--rate", "1000")}.measure},
	{"paced-2000", true, load{httpDoor, "request", program("paced", "--rate", "2000")}.measure},

	{"grpc-s1", false, load{grpcDoor, "call", program("calls")}.measure},
	{"grpc-s16", true, load{grpcDoor, "call", program("calls", "--streams", "16")}.measure},
	{"grpc-s128", true, load{grpcDoor, "call", program("calls", "--connections", "8", "--streams", "16")}.measure},
	{"grpc-stream-1KB", false, load{grpcDoor, "message", program("calls", "--stream")}.measure},

	{"bulk-1", true, load{tcpDoor, "", program("bulk")}.measure},
	{"bulk-8", false, load{tcpDoor, "", program("bulk", "--connections", "8")}.measure},
	{"short", true, load{tcpDoor, "connection", program("short")}.measure},

	{"start", true, startTimes},
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
