// Package check finds out what is wrong with a mesh on one host, from the kernel
// up to each workload's proxy, and says for each finding what to do.
//
// Each check looks and changes nothing. One that cannot be made, because what it
// stands on has failed, is skipped rather than reported again.
package check
