// Package agent redirects the traffic of one node's pods. It runs once on each
// node, as root, and is asked by the CNI plugin over a unix socket:
//
//	plugin -> agent  one packet: Request, and the pod's network namespace as a
//	                 file descriptor
//	agent -> plugin  one packet: Reply
//
// It knows nothing of Kubernetes' API: what a pod wants is in its annotations,
// which the container runtime hands to the plugin. Pods that started before
// the plugin was there are found in the results that every runtime's CNI
// library keeps on disk (Repair).
//
// It fails closed: a meshed pod whose traffic cannot be redirected does not
// start. Its death changes nothing for pods that run.
package agent
