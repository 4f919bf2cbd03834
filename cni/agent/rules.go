package agent

import (
	"errors"
	"fmt"
	"slices"

	"github.com/tulle-mesh/tulle/cni/redirect"
	"github.com/tulle-mesh/tulle/mesh/cluster"
)

// maxPorts bounds how many ports a pod may leave out, ranges counted in full.
const maxPorts = 1024

// Rules are what a pod's annotations ask for.
func Rules(annotations map[string]string) (redirect.Rules, error) {
	var rules redirect.Rules
	var errs []error
	for _, row := range []struct {
		key  string
		into *[]int
	}{
		{cluster.SkipInboundPorts, &rules.SkipInbound},
		{cluster.SkipOutboundPorts, &rules.SkipOutbound},
	} {
		value, given := annotations[row.key]
		if !given || value == "" {
			continue
		}
		list, err := cluster.ParsePorts(value)
		if err == nil {
			*row.into, err = expand(list)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("annotation %s: %w", row.key, err))
		}
	}
	errs = append(errs, rules.Validate())
	return rules, errors.Join(errs...)
}

// expand writes ranges out, each port once.
func expand(list []cluster.Ports) ([]int, error) {
	total := 0
	for _, p := range list {
		total += int(p.Last) - int(p.First) + 1
	}
	if total > maxPorts {
		return nil, fmt.Errorf("lists %d ports, at most %d can be left out; opt the pod out with %s=%s instead",
			total, maxPorts, cluster.Inject, cluster.Disabled)
	}
	ports := make([]int, 0, total)
	for _, p := range list {
		for port := int(p.First); port <= int(p.Last); port++ {
			ports = append(ports, port)
		}
	}
	slices.Sort(ports)
	return slices.Compact(ports), nil
}
