// Package kube does for the injector what needs the cluster: it knows the
// namespaces, and keeps what pods with a proxy and the API server that calls the
// webhook depend on.
//
//	namespaces := kube.New(kube.Config{Client: client, Roots: authority.Watch…})
//	err := namespaces.Run(ctx)
//
// The model: each pass compares what is with what should be and writes the
// difference. Any number of replicas may do so at once; they write the same.
package kube
