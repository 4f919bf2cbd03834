// Package mesh holds the words that every part of Tulle shares: who somebody
// is (ID), what happened (Exchange), how long it took (Histogram), and the few
// numbers both ends of a wire must agree on.
//
// It imports the standard library only and starts no goroutine.
package mesh
