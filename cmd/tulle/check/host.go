package check

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/tulle-mesh/tulle/cmd/tulle/host"
	"github.com/tulle-mesh/tulle/cmd/tulle/network"
	"github.com/tulle-mesh/tulle/cni/redirect"
	"github.com/tulle-mesh/tulle/mesh"
)

func root(context.Context, *Config) []Result {
	r := Result{Check: "may change the network", Verdict: OK}
	if os.Geteuid() != 0 {
		r.Verdict, r.Detail, r.Fix = Failed, "not root", "sudo tulle check"
	}
	return []Result{r}
}

// backends tells which ways to redirect work, and that one at least does.
func backends(context.Context, *Config) []Result {
	if os.Geteuid() != 0 {
		return nil
	}
	var results []Result
	works := 0
	for _, b := range redirect.Backends(nil) {
		r := Result{Check: "kernel can redirect by " + b.Name(), Verdict: OK, Detail: merits[b.Name()]}
		if err := probe(b); err != nil {
			r.Verdict, r.Detail = Warning, err.Error()
		} else {
			works++
		}
		results = append(results, r)
	}
	if works == 0 {
		for i := range results {
			results[i].Verdict = Failed
		}
		results[len(results)-1].Fix = "modprobe nf_tables nft_chain_nat nft_redir nft_masq, or install iptables; a kernel without either cannot run a mesh"
	}
	return results
}

// merits says what the user gets by a backend.
var merits = map[string]string{
	"ebpf":     "no address translation, no connection tracking, applications see their clients' addresses, and services can stay in the host's network",
	"nftables": "applications see their proxy as the client",
	"iptables": "applications see their proxy as the client",
}

// probe looks at what the kernel can do; what `tulle up` will do is not missing yet.
func probe(b redirect.Backend) error {
	if b.Name() != mesh.RedirectEBPF {
		return b.Probe()
	}
	err := redirect.Node{}.Probe()
	if errors.Is(err, redirect.ErrNoBPFFS) {
		return nil
	}
	return err
}

func ipv6(context.Context, *Config) []Result {
	r := Result{Check: "IPv6", Verdict: OK}
	if !network.HasIPv6() {
		r.Verdict, r.Detail = Warning, "the kernel has none; workloads get IPv4 addresses only"
	}
	return []Result{r}
}

// firewall looks for what drops packets that cross the bridge.
func firewall(context.Context, *Config) []Result {
	r := Result{Check: "firewall lets the mesh's packets pass", Verdict: OK}
	dropped, err := network.DroppedForward()
	switch {
	case err != nil:
		r.Verdict, r.Detail = Warning, err.Error()
	case len(dropped) > 0:
		open, err := network.ForwardAccepted(dropped)
		if err == nil && open {
			r.Detail = "its FORWARD policy is drop, and tulle's exception is in place"
			break
		}
		r.Verdict, r.Detail = Failed, "its FORWARD policy is drop (Docker sets that), and tulle's exception is missing"
		r.Fix = fmt.Sprintf("iptables -I FORWARD -i %[1]s -j ACCEPT && iptables -I FORWARD -o %[1]s -j ACCEPT", host.BridgeName)
	}
	return append([]Result{r}, legacyFirewall()...)
}

// legacyFirewall looks at the rules of the old kind, which nftables does not show.
func legacyFirewall() []Result {
	// Asking for a table that is not there would make it.
	tables, err := os.ReadFile("/proc/net/ip_tables_names")
	if err != nil || !slices.Contains(strings.Fields(string(tables)), "filter") {
		return nil
	}
	out, err := exec.Command("iptables-legacy", "-S", "FORWARD").Output()
	if err != nil || !strings.Contains(string(out), "-P FORWARD DROP") {
		return nil
	}
	if strings.Contains(string(out), host.BridgeName) {
		return nil
	}
	return []Result{{
		Check: "old firewall lets the mesh's packets pass", Verdict: Failed, Detail: "the policy of iptables-legacy's FORWARD chain is DROP",
		Fix: fmt.Sprintf("iptables-legacy -I FORWARD -i %[1]s -j ACCEPT && iptables-legacy -I FORWARD -o %[1]s -j ACCEPT", host.BridgeName),
	}}
}
