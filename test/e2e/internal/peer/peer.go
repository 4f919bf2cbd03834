package peer

import (
	"fmt"
	"os"
	"sort"
	"strings"
)

// programs is what `peer NAME` can run; each returns its exit code.
var programs = map[string]func(args []string) int{
	"serve":     serve,
	"dial":      dial,
	"web":       web,
	"sink":      sink,
	"websocket": websocket,
	"wsdial":    wsdial,
	"load":      load,
	"smtpd":     smtpd,
	"exit":      exit,
	"forker":    forker,
	"signals":   signals,
}

// Main runs the program that args names and returns its exit code.
func Main(args []string) int {
	if len(args) > 0 {
		if program := programs[args[0]]; program != nil {
			return program(args[1:])
		}
	}
	names := make([]string, 0, len(programs))
	for name := range programs {
		names = append(names, name)
	}
	sort.Strings(names)
	fmt.Fprintln(os.Stderr, "usage: peer", strings.Join(names, "|"), "ARGS…")
	return 2
}
