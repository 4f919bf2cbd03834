// Package kube drives the mesh on a real Kubernetes cluster, which ./cluster
// makes from packages: `./just cluster-up`, `./just test-kube`, `./just
// cluster-down`. Without one, its tests are skipped.
package kube
