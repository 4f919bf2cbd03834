package main

import (
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"strings"

	"github.com/tulle-mesh/tulle/mesh"
	"github.com/tulle-mesh/tulle/proxy"
)

// parse makes a configuration from the command line.
func parse(args []string, stderr io.Writer) (proxy.Config, error) {
	c := proxy.Config{Version: version}
	var identity, rootsFile, networks, policy string
	var tokenFD, readyFD int
	var level slog.Level
	f := flag.NewFlagSet("tulle-proxy", flag.ContinueOnError)
	f.SetOutput(io.Discard) // run tells of errors, in one place
	f.StringVar(&c.Workload, "workload", "", "name of the replica, as in web-2")
	f.StringVar(&c.Service, "service", "", "name of its service, as in web")
	f.StringVar(&identity, "identity", "", "SPIFFE ID to ask a certificate for")
	f.StringVar(&c.Control, "control", "", "address of the control plane's gRPC, host:port")
	f.StringVar(&rootsFile, "roots-file", "", "PEM file of the roots to trust at first")
	f.StringVar(&networks, "networks", "", "prefixes of the mesh's addresses, by commas")
	f.StringVar(&c.Redirect, "redirect", "", "redirect backend in use, for display")
	f.StringVar(&policy, "policy", "permissive", "permissive, or strict: refuse clients outside the mesh")
	f.IntVar(&tokenFD, "token-fd", -1, "socket to ask for join tokens on")
	f.IntVar(&readyFD, "ready-fd", -1, "file to write \"ready\" to once traffic is served")
	f.TextVar(&level, "log-level", slog.LevelInfo, "debug, info, warn or error")
	if err := f.Parse(args); errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(stderr, "Usage of tulle-proxy:")
		f.SetOutput(stderr)
		f.PrintDefaults()
		return c, err
	} else if err != nil {
		return c, fmt.Errorf("%w; `tulle-proxy -h` lists all flags", err)
	}
	var errs []error
	if f.NArg() > 0 {
		errs = append(errs, fmt.Errorf("unexpected argument %q", f.Arg(0)))
	}
	c.Log = newLog(stderr, level)
	var err error
	if c.ID, err = mesh.ParseID(identity); err != nil {
		errs = append(errs, fmt.Errorf("-identity: %w", err))
	}
	if c.Roots, err = readRoots(rootsFile); err != nil {
		errs = append(errs, fmt.Errorf("-roots-file: %w", err))
	}
	if c.Networks, err = parseNetworks(networks); err != nil {
		errs = append(errs, fmt.Errorf("-networks: %w", err))
	}
	switch policy {
	case "permissive":
	case "strict":
		c.Strict = true
	default:
		errs = append(errs, fmt.Errorf("-policy %q: must be permissive or strict", policy))
	}
	if tokenFD < 0 {
		errs = append(errs, errors.New("-token-fd: must be given: without a join token there is no certificate"))
	} else if c.Token, err = tokens(tokenFD); err != nil {
		errs = append(errs, fmt.Errorf("-token-fd: %w", err))
	}
	if c.Ready, err = readiness(readyFD); err != nil {
		errs = append(errs, fmt.Errorf("-ready-fd: %w", err))
	}
	if len(errs) == 0 { // it would only say the same again
		errs = append(errs, c.Validate())
	}
	return c, errors.Join(errs...)
}

func readRoots(path string) ([][]byte, error) {
	if path == "" {
		return nil, errors.New("must be given: it is what proves the control plane at first")
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var roots [][]byte
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		if block.Type == "CERTIFICATE" {
			roots = append(roots, block.Bytes)
		}
	}
	if len(roots) == 0 {
		return nil, fmt.Errorf("%s: no certificate in PEM form", path)
	}
	return roots, nil
}

func parseNetworks(list string) ([]netip.Prefix, error) {
	var networks []netip.Prefix
	for s := range strings.SplitSeq(list, ",") {
		if s == "" {
			continue
		}
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, err
		}
		networks = append(networks, p.Masked())
	}
	return networks, nil
}
