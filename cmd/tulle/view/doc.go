// Package view holds the commands that only look: stat, edges, why, top, tap,
// proxies, identity and dashboard. All of them read the JSON API of the
// running control plane over its unix socket, so they show what the dashboard
// shows.
//
// Names and paths come from workloads; control characters in them are replaced
// before they reach a terminal.
package view
