// Package workload runs a command as a workload of the mesh, the way
// `docker run` runs a container:
//
//	lease -> namespace -> wire -> redirect -> proxy -> command
//
// and takes all of it down again in the opposite order. Run is the whole of
// `tulle run`; a Replica is one line of the drawing above.
//
// The process that called Run supervises its replicas for as long as they live.
// The daemon is asked for names, addresses and join tokens only: while it is
// away everything goes on, and the lease is taken up again when it is back.
//
// Non-goals: images, file systems, resource limits. A workload sees the host's
// files, and runs as root unless told otherwise; being in the mesh is not a sandbox.
package workload
