// Shop is the small shop that the demo runs: a web front, a catalog behind it
// that asks Redis, and a source of load. These are ordinary programs; none of
// them knows of the mesh.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// parts are the programs that this binary can be.
var parts = []struct {
	name string
	run  func(ctx context.Context, args []string) error
}{
	{"web", runWeb},
	{"catalog", runCatalog},
	{"load", runLoad},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "shop:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) > 0 {
		for _, p := range parts {
			if p.name == args[0] {
				return p.run(ctx, args[1:])
			}
		}
	}
	return errors.New("say which part to be: web, catalog or load")
}

// serve answers HTTP until ctx ends, then lets requests in flight finish.
func serve(ctx context.Context, addr string, handler http.Handler) error {
	server := &http.Server{Addr: addr, Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	ended := make(chan error, 1)
	go func() { ended <- server.ListenAndServe() }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	return server.Shutdown(grace)
}
