package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"time"
)

// load is the shop's source of load. It sends for as long as its standard input
// is open, and then says what it counted.
type load struct {
	process       *process
	stdin, stdout *os.File
}

// counted is what the source of load counted itself.
type counted struct {
	Sent   int     `json:"sent"`
	Failed int     `json:"failed"`
	Reason string  `json:"reason"` // of the first failure
	P50    float64 `json:"p50_ms"`
	P95    float64 `json:"p95_ms"`
	P99    float64 `json:"p99_ms"`
}

func (s *stage) startLoad(shop string, rate int) (*load, error) {
	theirStdin, stdin, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer theirStdin.Close()
	stdout, theirStdout, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer theirStdout.Close()
	p, err := s.start("load", theirStdin, theirStdout, "run", "load", "--", shop, "load", "--rate", strconv.Itoa(rate), "http://web.mesh:8080/")
	if err != nil {
		return nil, err
	}
	return &load{p, stdin, stdout}, nil
}

// stop ends the sending; the process stays, so that the mesh's view of it does too.
func (l *load) stop() (counted, error) {
	defer l.stdout.Close()
	if err := l.stdin.Close(); err != nil {
		return counted{}, err
	}
	if err := l.stdout.SetReadDeadline(time.Now().Add(stopPatience)); err != nil {
		return counted{}, err
	}
	var c counted
	if err := json.NewDecoder(l.stdout).Decode(&c); err != nil {
		return counted{}, fmt.Errorf("the source of load did not say what it counted: %w", err)
	}
	return c, nil
}
