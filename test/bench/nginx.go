package main

// nginx is Debian's, with its stream module for TCP. It gives each gRPC call a
// connection of its own to the other side for as long as the call takes.
var nginx = pair{name: "nginx", conf: "nginx.conf", command: func(_ *lab, _ *side, file string) []string {
	return []string{"nginx", "-c", file}
}}
