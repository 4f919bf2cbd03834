// Package proxy is the data plane: one small proxy beside each workload.
//
// The redirect brings it what the workload sends and what others send to the
// workload. Two files tell the story, each step one named call in packet order:
//
//	outbound.go  accept -> origin -> directory -> sniff -> balance -> session -> forward -> record
//	inbound.go   accept -> origin -> mtls or plaintext -> policy -> sniff -> forward -> record
//
// forward is http.go (per request) or relay.go (opaque bytes). The state that the
// data path reads is published as immutable snapshots: what is behind an address
// (directory.go) and what the proxy proves itself with (package mtls). What
// happened leaves as one mesh.Exchange (record.go), from which metrics.go and
// telemetry.go make their figures.
//
// Non-goals: configuration by file, name resolution, changing messages.
package proxy
