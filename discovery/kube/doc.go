// Package kube makes a discovery.State know a Kubernetes cluster: its services,
// their endpoints, and which of these are in the mesh.
//
//	source, err := kube.New(kube.Config{Client: client, State: state, TrustDomain: "cluster.local"})
//	err = source.Run(ctx)
//
// The model: informers keep what little is needed of Services, EndpointSlices,
// Pods, Nodes and Namespaces. What changes marks services as stale; one
// goroutine builds those anew, all others keep their pointers, and publishes
// the whole.
//
// A pod is in the mesh if it was admitted with a proxy. An endpoint whose pod
// is not known yet is left out until it is: taken for one outside the mesh it
// would be sent plaintext.
//
// Not here: node ports and addresses of load balancers outside the cluster.
// Connections to them pass the proxies untouched, and kube-proxy serves them.
package kube
