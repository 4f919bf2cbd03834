package main

import (
	"context"
	"flag"
	"io"

	"github.com/tulle-mesh/tulle/cni/agent"
	"github.com/tulle-mesh/tulle/cni/redirect"
	"github.com/tulle-mesh/tulle/mesh/cluster"
)

// runInit redirects the traffic of the pod it runs in, which needs the
// capabilities NET_ADMIN and NET_RAW, and ends.
func runInit(_ context.Context, args []string, stderr io.Writer) error {
	f := flag.NewFlagSet("init", flag.ContinueOnError)
	f.SetOutput(stderr)
	inbound := f.String("skip-inbound-ports", "", "ports that others reach directly, as in 3306,4000-4010")
	outbound := f.String("skip-outbound-ports", "", "ports that the pod reaches directly")
	want := f.String("backend", redirect.Auto, "which redirect to use: auto, nftables or iptables")
	if err := f.Parse(args); err != nil {
		return err
	}
	rules, err := agent.Rules(map[string]string{
		cluster.SkipInboundPorts:  *inbound,
		cluster.SkipOutboundPorts: *outbound,
	})
	if err != nil {
		return err
	}
	backend, reason, err := redirect.Pick(*want, nil)
	if err != nil {
		return err
	}
	newLog(stderr).Info("redirect", "backend", backend.Name(), "reason", reason)
	return backend.Apply(rules)
}
