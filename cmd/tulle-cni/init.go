package main

import (
	"context"
	"flag"
	"io"

	"github.com/tulle-mesh/tulle/cni/agent"
	"github.com/tulle-mesh/tulle/cni/redirect"
	"github.com/tulle-mesh/tulle/mesh/cluster"
)

// runInit redirects the traffic of the pod it runs in, which needs the capability
// NET_ADMIN, and ends. It is always nftables: eBPF is for the whole machine, and
// iptables needs programs beside this one.
func runInit(_ context.Context, args []string, stderr io.Writer) error {
	f := flag.NewFlagSet("init", flag.ContinueOnError)
	f.SetOutput(stderr)
	inbound := f.String("skip-inbound-ports", "", "ports that others reach directly, as in 3306,4000-4010")
	outbound := f.String("skip-outbound-ports", "", "ports that the pod reaches directly")
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
	return redirect.NFTables(nil).Apply(rules)
}
