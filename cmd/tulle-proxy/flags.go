package main

import (
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

	"github.com/tulle-mesh/tulle/mesh"
	"github.com/tulle-mesh/tulle/proxy"
)

// parse makes a configuration from the command line.
func parse(args []string, stderr io.Writer) (proxy.Config, error) {
	c := proxy.Config{Version: mesh.Version}
	var identity, rootsFile, tokenFile, networks, policy string
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
	f.Func("address", "address of the workload in a network that it shares with others; once for each family", func(s string) error {
		a, err := netip.ParseAddr(s)
		c.Addresses = append(c.Addresses, a)
		return err
	})
	f.StringVar(&c.Redirect, "redirect", "", "redirect backend in use, for display; cni: find out")
	f.BoolVar(&c.RedirectProbe, "redirect-probe", false, fmt.Sprintf("answer /ready at port %d, which only the redirect leads here", mesh.RedirectProbePort))
	f.StringVar(&policy, "policy", "permissive", "permissive, strict: refuse clients outside the mesh, or ask: as the control plane says")
	f.Func("probe", "what the admin port asks the application at /probe/NAME: NAME=http://:8080/healthz, https, tcp or grpc; may be repeated", func(s string) error {
		probe, err := proxy.ParseProbe(s)
		c.Probes = append(c.Probes, probe)
		return err
	})
	f.StringVar(&tokenFile, "token-file", "", "file with the token to get certificates by; read anew each time")
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
	if c.Networks, err = mesh.ParseNetworks(networks); err != nil {
		errs = append(errs, fmt.Errorf("-networks: %w", err))
	}
	switch policy {
	case "permissive":
	case "strict":
		c.Strict = true
	case "ask":
		c.Strict, c.AskPolicy = true, true
	default:
		errs = append(errs, fmt.Errorf("-policy %q: must be permissive or strict, or ask", policy))
	}
	if c.Token, err = tokenSourceOf(tokenFD, tokenFile); err != nil {
		errs = append(errs, err)
	}
	if c.Ready, err = readiness(readyFD); err != nil {
		errs = append(errs, fmt.Errorf("-ready-fd: %w", err))
	}
	if len(errs) == 0 { // it would only say the same again
		errs = append(errs, c.Validate())
	}
	return c, errors.Join(errs...)
}

// tokenSourceOf returns where tokens come from: `tulle run` hands out one at a
// time, the kubelet keeps a file fresh.
func tokenSourceOf(fd int, path string) (func(context.Context) (string, error), error) {
	switch {
	case fd >= 0 && path != "":
		return nil, errors.New("-token-fd, -token-file: only one of them can be given")
	case path != "":
		return func(context.Context) (string, error) { return readToken(path) }, nil
	case fd < 0:
		return nil, errors.New("-token-fd or -token-file: must be given: without a token there is no certificate")
	}
	get, err := tokens(fd)
	if err != nil {
		return nil, fmt.Errorf("-token-fd: %w", err)
	}
	return get, nil
}

func readToken(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxToken))
	token := strings.TrimSpace(string(b))
	if err == nil && token == "" {
		err = fmt.Errorf("%s: it is empty", path)
	}
	return token, err
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
