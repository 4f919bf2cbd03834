package cluster

import (
	"strings"
)

// HashLabel is what a Deployment marks the pods of one revision by.
const HashLabel = "pod-template-hash"

// Owner names the workload that a pod belongs to, as its user knows it: of the
// controller's kind and name, which are empty if there is none, the pod's
// HashLabel and the pod's own name.
func Owner(kind, name, hash, pod string) string {
	switch kind {
	case "":
		return pod
	case "ReplicaSet":
		if hash != "" {
			return strings.TrimSuffix(name, "-"+hash) // of a Deployment
		}
	case "Job":
		// A CronJob names its Jobs by the minute they are due in.
		if i := strings.LastIndexByte(name, '-'); i > 0 && len(name)-i > 8 && strings.Trim(name[i+1:], "0123456789") == "" {
			return name[:i]
		}
	}
	return name
}
