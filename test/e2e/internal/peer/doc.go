// Package peer holds the little programs that the end-to-end tests put on the
// two ends of a connection where no program of the distribution can be made to
// misbehave on demand: a server that resets, a client that sends one byte at a
// time, a sink that counts.
//
// The test binary runs them when it is called as `e2e.test peer NAME ARGS…`.
// They know nothing of the mesh: the same command runs with and without it.
package peer
