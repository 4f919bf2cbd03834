package main

import (
	"fmt"
	"os/exec"
	"strings"
)

// proxyUID is the user of HAProxy's processes, by which a redirect knows them.
const proxyUID = 2103

// redirect brings what is for the application to a pair, as cni/redirect does
// for Tulle: on the way out of the client, and on the way into the server.
func (l *lab) redirect(s site) error {
	rules := fmt.Sprintf("table ip bench {\n chain out {\n  type nat hook output priority -100;\n  meta skuid %d accept\n", proxyUID)
	for d, port := range backendPorts {
		rules += fmt.Sprintf("  tcp dport %d redirect to :%d\n", port, outPorts[d])
	}
	rules += " }\n chain in {\n  type nat hook prerouting priority -100;\n"
	for d, port := range backendPorts {
		rules += fmt.Sprintf("  tcp dport %d redirect to :%d\n", port, inPorts[d])
	}
	rules += " }\n}\n"
	for _, ns := range []string{s.clientNS, s.serverNS} {
		cmd := exec.Command("ip", "netns", "exec", ns, "nft", "-f", "-")
		cmd.Stdin = strings.NewReader(rules)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("nft: %w\n%s", err, out)
		}
	}
	return nil
}
