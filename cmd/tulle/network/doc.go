// Package network makes the wires of a mesh on one host: a bridge, and for
// each replica a network namespace with a veth pair into that bridge.
//
// Everything here speaks netlink; no program is executed but iptables-restore,
// where the host's masquerading is asked to go through it. What changes the
// host itself is described as a journal.Change first, so that Undo can take it
// back after a crash. What belongs to one replica goes away with its namespace.
package network
