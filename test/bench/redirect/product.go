package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// product is the mesh itself: `tulle up`, a server and a client under `tulle run`, each
// with its proxy, and mutual TLS between the two.
func product(redirect string) stage {
	return stage{redirect, func(bin string) (*scene, error) { return startProduct(bin, redirect) }}
}

func startProduct(bin, redirect string) (*scene, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	tulle := filepath.Join(bin, "tulle")
	var client *process
	for _, args := range [][]string{
		{"up", "--redirect", redirect},
		{"run", fmt.Sprintf("server:%d", appPort), "--", self, "echo", "1", at("0.0.0.0", appPort), ""},
		{"run", "client", "--", self, "call", "0", at("server", appPort)},
	} {
		if client, err = begin(exec.Command(tulle, args...)); err != nil {
			return nil, err
		}
	}
	others, err := running(func(argv []string) bool {
		return filepath.Base(argv[0]) == "tulle-proxy" || len(argv) > 1 && argv[1] == "echo"
	})
	if err != nil {
		return nil, err
	}
	if len(others) != 3 {
		return nil, fmt.Errorf("processes %v, not two proxies and a server", others)
	}
	s := &scene{client: client, others: others}
	// The host's own has entries of what the proxies say to the control plane.
	for _, name := range []string{"/run/netns/tulle-client-1", "/run/netns/tulle-server-1"} {
		ns, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		if err := in(ns, leavePortsAtOnce); err != nil {
			return nil, err
		}
		s.tracked = append(s.tracked, ns)
	}
	return s, nil
}

// direct is the same client and server without a mesh.
func direct(string) (*scene, error) {
	client, server, err := pair()
	if err != nil {
		return nil, err
	}
	app, err := start(server, 1, 0, "echo", at("0.0.0.0", appPort), "")
	if err != nil {
		return nil, err
	}
	return newScene(client, at(serverAddr, appPort), []int{app.pid()}, client, server)
}

// running returns the processes whose arguments are so. There is nobody here but us.
func running(so func(argv []string) bool) ([]int, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	var pids []int
	for _, dir := range dirs {
		text, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) || len(text) == 0 {
			continue // it has ended
		}
		if err != nil {
			return nil, err
		}
		var pid int
		if _, err := fmt.Sscan(filepath.Base(dir), &pid); err != nil {
			return nil, err
		}
		if so(strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00")) {
			pids = append(pids, pid)
		}
	}
	return pids, err
}
