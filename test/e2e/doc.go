// Package e2e drives the whole product the way a user does: it starts `tulle up`
// and `tulle run` on real programs and compares what they see with and without
// the mesh.
//
//	go test ./test/e2e                  # all of it, as root
//	go test ./test/e2e -run Transparency/nftables/curl -v
//	TULLE_BIN=bin go test ./test/e2e    # these binaries instead of fresh ones
//
// The test binary starts itself anew in namespaces of its own (processes,
// network, mounts, host name, IPC), which stand for the host: with a loopback,
// without an uplink, with an empty /run and /var/lib. All that a run makes dies
// with it, even by kill -9, and several runs can go side by side.
//
// Host is a `tulle up`; Direct is the same network without the mesh. Both are a
// stage on which servers and clients are put, see stage_test.go. The programs
// that no distribution has are in internal/peer. packages.txt lists the Debian
// packages that the tests call.
package e2e
