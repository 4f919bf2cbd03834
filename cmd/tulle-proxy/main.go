// Command tulle-proxy is the data plane of one workload. `tulle run` and the
// Kubernetes injector start it; nobody else needs to.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"syscall"

	"github.com/tulle-mesh/tulle/proxy"
)

func main() {
	os.Exit(run(os.Args[1:], os.Stderr))
}

func run(args []string, stderr io.Writer) int {
	if slices.Equal(args, []string{"-await-ready"}) {
		return awaitReady(stderr)
	}
	config, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintf(stderr, "tulle-proxy: %v\n", err)
		return 2
	}
	tuneMemory()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal does not wait for the drain
	p, err := proxy.New(config)
	if err == nil {
		err = p.Run(ctx)
	}
	if err != nil && ctx.Err() == nil {
		config.Log.Error("proxy ended", "error", err)
		return 1
	}
	return 0
}

// tuneMemory trades a little CPU for a small heap: the data path allocates
// next to nothing per request, so collections are rare all the same.
func tuneMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
}

func newLog(w io.Writer, level slog.Level) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}))
}
