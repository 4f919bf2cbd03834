// Command tulle-control is the control plane of a Kubernetes cluster: it signs
// certificates, tells proxies what is behind an address, puts proxies into new
// pods, and shows what the mesh sees. `tulle install` starts it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/tulle-mesh/tulle/mesh"
)

const version = mesh.Version

func main() {
	os.Exit(run(os.Args[1:], os.Stderr))
}

func run(args []string, stderr io.Writer) int {
	c, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintf(stderr, "tulle-control: %v\n", err)
		return 2
	}
	tuneMemory()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal does not wait
	to, err := connect(&c)
	if err == nil {
		err = serve(ctx, &c, to)
	}
	if err != nil && ctx.Err() == nil {
		c.Log.Error("control plane ended", "error", err)
		return 1
	}
	return 0
}
