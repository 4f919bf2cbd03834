// Package host is `tulle up`: the control plane of one machine, put together
// from the mesh's components.
//
//	lock -> what an earlier daemon left -> authority -> state -> network -> listeners -> serve
//
// and, at the end, the workloads are asked to stop and the host is put back as
// it was. A daemon that is killed instead leaves everything running; the next
// one adopts it, and Down can restore the host without any.
package host
