package main

// floor is two relays that copy bytes and know nothing: no TLS, no protocol.
// What is above it is what a proxy's work costs.
var floor = pair{name: "floor", command: func(l *lab, s *side, _ string) []string {
	args := []string{l.self, "relay"}
	for _, leg := range s.Legs() {
		args = append(args, leg.Listen+"="+leg.Dial)
	}
	return args
}}
