package cluster

import "strings"

// CutDomain takes what follows a Service's or a pod's name off a name in the
// cluster's DNS: "web.shop" is left of "web.shop.svc" and of
// "web.shop.svc.cluster.local.", whatever the cluster's domain. Names that are
// none of those, such as "api.svc.example.com", are not changed. Source:
// kubernetes.io/docs/concepts/services-networking/dns-pod-service.
func CutDomain(name string) (inside string, ok bool) {
	labels := strings.Split(strings.TrimSuffix(name, "."), ".")
	for i, label := range labels {
		if label == "svc" && i >= 2 { // what is before a name's namespace is the name
			return strings.Join(labels[:i], "."), true
		}
	}
	return name, false
}
