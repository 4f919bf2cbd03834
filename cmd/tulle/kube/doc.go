// Package kube is the part of the command line that works on a Kubernetes
// cluster: install, mesh, check, uninstall and their like.
//
// It does with the cluster what the user's kubeconfig lets it do, names what
// is missing where that is too little, and keeps no state of its own: what is
// installed is what the cluster says.
package kube
