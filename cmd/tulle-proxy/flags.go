package main

import (
	"bufio"
	"context"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"sync"

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
	f.SetOutput(stderr)
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
	if err := f.Parse(args); err != nil {
		return c, err
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
	c.Token = tokens(tokenFD)
	c.Ready = readiness(readyFD)
	return c, errors.Join(errs...)
}

func readRoots(path string) ([][]byte, error) {
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

// tokens asks the parent for a join token: a line "token", answered by a line.
func tokens(fd int) func(context.Context) (string, error) {
	if fd < 0 {
		return func(context.Context) (string, error) {
			return "", errors.New("no -token-fd to ask for a join token on")
		}
	}
	file := os.NewFile(uintptr(fd), "token-fd")
	lines := bufio.NewReader(file)
	var mu sync.Mutex
	return func(context.Context) (string, error) {
		mu.Lock()
		defer mu.Unlock()
		if _, err := io.WriteString(file, "token\n"); err != nil {
			return "", err
		}
		line, err := lines.ReadString('\n')
		if err != nil {
			return "", err
		}
		return strings.TrimSpace(line), nil
	}
}

// readiness tells the parent, once, that traffic is served.
func readiness(fd int) func() {
	if fd < 0 {
		return func() {}
	}
	file := os.NewFile(uintptr(fd), "ready-fd")
	return func() {
		_, _ = io.WriteString(file, "ready\n")
		_ = file.Close()
	}
}
