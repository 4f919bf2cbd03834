package main

func haproxyCommand(_ *lab, _ *side, file string) []string {
	return []string{"haproxy", "-db", "-f", file}
}

// haproxy is Debian's, tuned as its documentation advises.
var haproxy = pair{name: "haproxy", conf: "haproxy.cfg", command: haproxyCommand}

// haproxyRedirected is the same with a redirect in the kernel before each side,
// as every transparent proxy needs one.
var haproxyRedirected = pair{name: "haproxy-redirected", conf: "haproxy.cfg", command: haproxyCommand, redirect: true}
