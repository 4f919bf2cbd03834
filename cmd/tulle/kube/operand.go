package kube

import "strings"

// meshName returns the mesh's own name of what kubectl knows by a kind and a
// name; false if the mesh has none for such a thing.
func meshName(kind, name, namespace string) (string, bool) {
	switch kind {
	case "svc", "service", "services", "deploy", "deployment", "deployments", "sts", "statefulset", "statefulsets",
		"ds", "daemonset", "daemonsets", "job", "jobs", "cj", "cronjob", "cronjobs":
		return name + "." + namespace, true
	case "po", "pod", "pods":
		return name, true
	case "ns", "namespace", "namespaces":
		return "*." + name, true
	}
	return "", false
}

// inMeshTerms puts what kubectl's users type into the mesh's own names:
// deploy/web is web.NAMESPACE, of the flag -n or of the context; pod/web-1 is
// web-1; ns/shop is *.shop, all of that namespace. A name without a kind stays.
func inMeshTerms(args []string, namespace string) []string {
	var rest []string
	for i := 0; i < len(args); i++ {
		flag, value, attached := strings.Cut(args[i], "=")
		switch {
		case flag != "-n" && flag != "--namespace":
			rest = append(rest, args[i])
		case attached:
			namespace = value
		case i+1 < len(args):
			i++
			namespace = args[i]
		}
	}
	for i, arg := range rest {
		kind, name, ok := strings.Cut(arg, "/")
		if !ok || name == "" || strings.Contains(name, "/") {
			continue
		}
		if own, ok := meshName(kind, name, namespace); ok {
			rest[i] = own
		}
	}
	return rest
}
